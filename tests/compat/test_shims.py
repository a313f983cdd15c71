"""fairseq functions that are more than another name of ours."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import pytest
import torch

from pyseq import compat
from pyseq.compat import registries, shims
from pyseq.compat.file_io import PathManager
from pyseq.config import ConfigGroup
from pyseq.errors import CheckpointError, ConfigError
from pyseq.registry import REGISTRIES

pytestmark = pytest.mark.skipif(not compat.install(), reason="the real fairseq is installed")


def test_perplexity() -> None:
    assert shims.get_perplexity(torch.tensor(3.0)) == 8.0
    assert shims.get_perplexity(1.5, round=3) == round(2**1.5, 3)
    assert shims.get_perplexity(1.0, base=math.e) == round(math.e, 2)
    assert shims.get_perplexity(None) == 0.0
    assert shims.get_perplexity(5000) == math.inf


def test_seed_as_a_call_and_as_a_context() -> None:
    torch.manual_seed(5)
    expected_after = torch.rand(3)
    torch.manual_seed(5)
    with shims.set_torch_seed(1):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected_after)
    shims.set_torch_seed(1)
    assert torch.equal(torch.rand(3), inside)


def test_choice_enum_in_a_dataclass_becomes_choices() -> None:
    from fairseq.dataclass import ChoiceEnum, FairseqDataclass
    from fairseq.dataclass.utils import gen_parser_from_dataclass

    Mode = ChoiceEnum(["soft", "hard"])

    @dataclasses.dataclass
    class Options(FairseqDataclass):
        mode: Mode = dataclasses.field(default="soft", metadata={"help": "how"})
        width: int = dataclasses.field(default=3, metadata={"help": "how wide"})

    Options.__annotations__["mode"] = Mode  # the annotation is text here, and Mode is local
    parser = argparse.ArgumentParser()
    gen_parser_from_dataclass(parser, Options())
    assert vars(parser.parse_args([])) == {"mode": "soft", "width": 3}
    assert parser.parse_args(["--mode", "hard"]).mode == "hard"
    with pytest.raises(SystemExit):
        parser.parse_args(["--mode", "other"])
    without_defaults = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    gen_parser_from_dataclass(without_defaults, Options(), delete_default=True)
    assert vars(without_defaults.parse_args([])) == {}


def test_registry_dicts_are_live() -> None:
    from fairseq.criterions import CRITERION_REGISTRY, FairseqCriterion, register_criterion
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_INV_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_REGISTRY
    from fairseq.models.transformer import TransformerModel, transformer_iwslt_de_en
    from fairseq.registry import REGISTRIES as THEIRS
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

    assert MODEL_REGISTRY["transformer"] is ARCH_MODEL_REGISTRY["transformer_iwslt_de_en"] is TransformerModel
    assert ARCH_CONFIG_REGISTRY["transformer_iwslt_de_en"] is transformer_iwslt_de_en
    assert "transformer_tiny" in ARCH_MODEL_INV_REGISTRY["transformer"]
    assert {"translation", "language_modeling"} <= set(TASK_REGISTRY) and "translation" in TASK_DATACLASS_REGISTRY
    before = len(CRITERION_REGISTRY)
    register_criterion("shims_live")(type("Live", (FairseqCriterion,), {}))
    assert len(CRITERION_REGISTRY) == before + 1 and "shims_live" in CRITERION_REGISTRY
    assert "shims_live" in THEIRS["criterion"]["registry"] and THEIRS["criterion"]["default"] == "cross_entropy"
    assert "model" not in THEIRS
    with pytest.raises(KeyError):
        CRITERION_REGISTRY["nothing"]


def test_setup_registry_of_ones_own() -> None:
    made = registries.setup_registry("--shims-kind", base_class=dict, default="plain")
    assert made is not None
    build, register, classes, dataclasses_ = made
    register("plain")(type("Plain", (dict,), {}))
    assert build({}, choice="plain") == {} and list(classes) == ["plain"] and list(dataclasses_) == []
    assert registries.setup_registry("--shims-kind") is None
    del REGISTRIES["shims_kind"]


def test_legacy_bases_keep_args() -> None:
    from fairseq.criterions import LegacyFairseqCriterion
    from fairseq.optim import LegacyFairseqOptimizer
    from fairseq.optim.lr_scheduler import LegacyFairseqLRScheduler

    from pyseq.criterions import Criterion, build_criterion, register_criterion
    from pyseq.optim import Optimizer
    from pyseq.optim.lr_scheduler import LRScheduler

    task = argparse.Namespace(target_dictionary=None)

    @register_criterion("shims_legacy")
    class Old(LegacyFairseqCriterion):
        def __init__(self, args, task):
            super().__init__(args, task)
            self.power = args.power

    class OldOptimizer(LegacyFairseqOptimizer):
        def __init__(self, args, params):
            super().__init__(args)
            self._optimizer = torch.optim.SGD(params, lr=args.lr[0])

    class OldSchedule(LegacyFairseqLRScheduler):
        pass

    args = argparse.Namespace(criterion="shims_legacy", power=3, lr=[0.5])
    criterion = build_criterion(args, task)
    optimizer = OldOptimizer(args, [torch.nn.Parameter(torch.ones(1))])
    schedule = OldSchedule(args, optimizer)
    assert isinstance(criterion, Criterion) and criterion.power == 3 and criterion.args is args
    assert isinstance(optimizer, Optimizer) and optimizer.args is args and optimizer.get_lr() == 0.5
    assert isinstance(schedule, LRScheduler) and schedule.args is args and schedule.best is None


def test_parsers_and_flat_namespaces() -> None:
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    parser = options.get_generation_parser(default_task="language_modeling")
    args = options.parse_args_and_arch(parser, input_args=["data-bin", "--path", "model.pt", "--beam", "3"])
    assert (args.data, args.path, args.beam, args.task) == ("data-bin", "model.pt", 3, "language_modeling")
    cfg = convert_namespace_to_omegaconf(args)
    assert cfg.generation.beam == 3 and cfg.task._name == "language_modeling"


def test_component_of_a_model(tmp_path: Path) -> None:
    from pyseq.models import Encoder

    class Small(Encoder):
        def __init__(self) -> None:
            super().__init__(None)
            self.fc = torch.nn.Linear(2, 2)

    source, target = Small(), Small()
    saved = {f"encoder.{k}": v for k, v in source.state_dict().items()} | {"decoder.fc.weight": torch.zeros(1)}
    torch.save({"model": saved}, tmp_path / "model.pt")
    shims.load_pretrained_component_from_model(target, str(tmp_path / "model.pt"))
    assert torch.equal(source.fc.weight, target.fc.weight)
    with pytest.raises(CheckpointError, match="only an Encoder or a Decoder"):
        shims.load_pretrained_component_from_model(torch.nn.Linear(1, 1), str(tmp_path / "model.pt"))


def test_path_manager(tmp_path: Path) -> None:
    PathManager.mkdirs(str(tmp_path / "a" / "b"))
    with PathManager.open(str(tmp_path / "a" / "x"), "w") as file:
        file.write("ü")
    assert PathManager.copy(str(tmp_path / "a" / "x"), str(tmp_path / "y"))
    assert not PathManager.copy(str(tmp_path / "a" / "x"), str(tmp_path / "y"))
    assert sorted(PathManager.ls(str(tmp_path / "a"))) == ["b", "x"] and PathManager.isfile(str(tmp_path / "y"))
    PathManager.rm(str(tmp_path / "y"))
    assert not PathManager.exists(str(tmp_path / "y"))


def test_what_is_not_carried_says_so() -> None:
    module = torch.nn.Linear(1, 1)
    assert shims.quant_noise(module, 0.0, 8) is module
    for call in (
        lambda: shims.quant_noise(module, 0.1, 8),
        lambda: shims.checkpoint_wrapper(module, offload_to_cpu=True),
        lambda: shims.gen_parser_from_dataclass(argparse.ArgumentParser(), ConfigGroup(), with_prefix="x"),
        lambda: shims.load_model_ensemble(["a.pt"], num_shards=2),
    ):
        with pytest.raises(ConfigError, match="not carried"):
            call()


def test_stand_in_for_omegaconf() -> None:
    pytest.importorskip("pyseq.compat.omegaconf")
    from pyseq.compat.omegaconf import II, MISSING

    assert II("optimization.lr") == "${optimization.lr}" and MISSING == "???"
