"""Plug-ins that extend a shipped one and register without a dataclass have its options as well as their own."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from pyseq import compat
from pyseq.cli.plugins import load_plugins
from pyseq.config.config import config_from_args
from pyseq.config.parser import get_training_parser, parse_args_and_arch

pytestmark = pytest.mark.skipif(not compat.install(), reason="the real fairseq is installed")
load_plugins()


def options(*argv: str) -> argparse.Namespace:
    return parse_args_and_arch(get_training_parser(), ["data-bin", "--arch", "transformer_tiny", *argv])


def test_criterion() -> None:
    from fairseq.criterions import register_criterion
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

    @register_criterion("subclass_inherits")
    class Inherits(LabelSmoothedCrossEntropyCriterion):
        pass

    @register_criterion("subclass_extends")
    class Extends(LabelSmoothedCrossEntropyCriterion):
        def __init__(self, task: Any, sentence_avg: bool, label_smoothing: float, extra: int) -> None:
            super().__init__(task, sentence_avg, label_smoothing)
            self.extra = extra

        @staticmethod
        def add_args(parser: Any) -> None:
            LabelSmoothedCrossEntropyCriterion.add_args(parser)
            parser.add_argument("--extra", type=int, default=3)

    task = argparse.Namespace(target_dictionary=None)
    for name, more in (("subclass_inherits", []), ("subclass_extends", ["--extra", "4"])):
        args = options("--criterion", name, "--label-smoothing", "0.2", "--optimizer", "adam", *more)
        from pyseq.criterions import build_criterion

        criterion = build_criterion(config_from_args(args).criterion, task)
        assert criterion.eps == 0.2 and criterion.sentence_avg is False
        assert getattr(criterion, "extra", 4) == 4


def test_task() -> None:
    from fairseq.tasks import register_task
    from fairseq.tasks.translation import TranslationTask

    @register_task("subclass_task")
    class Extends(TranslationTask):
        @staticmethod
        def add_args(parser: Any) -> None:
            TranslationTask.add_args(parser)
            parser.add_argument("--experts", type=int, default=3)

    args = options("--task", "subclass_task", "--experts", "5", "-s", "de", "--optimizer", "adam")
    assert (args.data, args.experts, args.source_lang, args.left_pad_source) == ("data-bin", 5, "de", True)


def test_optimizer_and_schedule() -> None:
    import torch
    from fairseq.optim import register_optimizer
    from fairseq.optim.adam import FairseqAdam
    from fairseq.optim.lr_scheduler import register_lr_scheduler
    from fairseq.optim.lr_scheduler.inverse_square_root_schedule import InverseSquareRootSchedule

    from pyseq.optim import build_optimizer
    from pyseq.optim.lr_scheduler import build_lr_scheduler

    @register_optimizer("subclass_adam")
    class MyAdam(FairseqAdam):
        pass

    @register_lr_scheduler("subclass_sqrt")
    class MySchedule(InverseSquareRootSchedule):
        pass

    chosen = ["--optimizer", "subclass_adam", "--lr-scheduler", "subclass_sqrt", "--lr", "0.5"]
    cfg = config_from_args(options(*chosen, "--adam-betas", "(0.8, 0.9)", "--warmup-updates", "10"))
    optimizer = build_optimizer(cfg.optimizer, [torch.nn.Parameter(torch.ones(1))])
    schedule = build_lr_scheduler(cfg.lr_scheduler, optimizer)
    assert isinstance(optimizer, MyAdam) and optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert schedule.step_update(5) == pytest.approx(0.25)


def test_language_model() -> None:
    from fairseq.models import register_model, register_model_architecture
    from fairseq.models.transformer_lm import TransformerLanguageModel

    @register_model("subclass_lm")
    class MyLM(TransformerLanguageModel):
        @staticmethod
        def add_args(parser: Any) -> None:
            TransformerLanguageModel.add_args(parser)
            parser.add_argument("--gates", type=int)

    @register_model_architecture("subclass_lm", "subclass_lm_arch")
    def arch(args: Any) -> None:
        args.gates = getattr(args, "gates", 7)

    given = ["data-bin", "--task", "language_modeling", "--arch", "subclass_lm_arch", "--optimizer", "adam"]
    args = parse_args_and_arch(get_training_parser(), [*given, "--decoder-layers", "2"])
    assert (args.decoder_layers, args.gates) == (2, 7)
