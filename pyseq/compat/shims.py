"""fairseq functions whose arguments differ from ours."""

from __future__ import annotations

import argparse
import builtins
import importlib
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyseq import utils
from pyseq.config import ChoiceEnum as StringEnum
from pyseq.config import ConfigGroup
from pyseq.config import parser as parsers
from pyseq.config.flags import add_group_arguments
from pyseq.errors import CheckpointError, ConfigError
from pyseq.modules import checkpoint_activations
from pyseq.training import checkpoint, distributed
from pyseq.training.checkpoint_file import load_checkpoint_file
from pyseq.user_dir import import_user_dir

# The version whose interface this is.
FAIRSEQ_VERSION = "0.12.2"

SPACE_NORMALIZER = re.compile(r"\s+")


# fairseq.utils


def get_perplexity(loss: Any, round: int = 2, base: int = 2) -> float:
    """``base ** loss``, 0 without a loss and infinity where it overflows."""
    if loss is None:
        return 0.0
    try:
        return float(builtins.round(base ** utils.item(loss), round))
    except OverflowError:
        return float("inf")


class set_torch_seed:
    """Seed torch now; as a context manager, restore the random state at the end."""

    def __init__(self, seed: int) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        utils.set_torch_seed(seed)

    def __enter__(self) -> set_torch_seed:
        return self

    def __exit__(self, *error: Any) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


def import_user_module(args: Any) -> None:
    import_user_dir(getattr(args, "user_dir", None))


def safe_hasattr(obj: Any, name: str) -> bool:
    return getattr(obj, name, None) is not None


def safe_getattr(obj: Any, name: str, default: Any = None) -> Any:
    return getattr(obj, name, default)


# fairseq.dataclass


def ChoiceEnum(choices: list[str]) -> type[StringEnum]:
    """An enum of these strings, as the type of a dataclass field."""
    make: Any = StringEnum
    enum: type[StringEnum] = make("Choices", {choice: choice for choice in choices})
    return enum


def gen_parser_from_dataclass(
    parser: argparse.ArgumentParser,
    dataclass_instance: ConfigGroup | type[ConfigGroup],
    delete_default: bool = False,
    with_prefix: str | None = None,
) -> None:
    if with_prefix is not None:
        raise ConfigError("gen_parser_from_dataclass(with_prefix=...) is not carried: write the dataclass's fields out")
    add_group_arguments(parser, dataclass_instance, suppress_defaults=delete_default)


# fairseq.options: as in fairseq, whoever has a parser has all plug-ins.


def _load_plugins() -> None:
    importlib.import_module("pyseq.cli.plugins").load_plugins()


def get_training_parser(default_task: str = "translation") -> parsers.Parser:
    _load_plugins()
    return parsers.get_training_parser(default_task)


def get_generation_parser(interactive: bool = False, default_task: str = "translation") -> parsers.Parser:
    _load_plugins()
    return parsers.get_generation_parser(interactive, default_task)


def get_interactive_generation_parser(default_task: str = "translation") -> parsers.Parser:
    return get_generation_parser(True, default_task)


def get_eval_lm_parser(default_task: str = "language_modeling") -> parsers.Parser:
    _load_plugins()
    return parsers.get_eval_lm_parser(default_task)


def get_validation_parser(default_task: str | None = None) -> parsers.Parser:
    _load_plugins()
    return parsers.get_validation_parser(default_task)


def parse_args_and_arch(
    parser: parsers.Parser,
    input_args: list[str] | None = None,
    parse_known: bool = False,
    suppress_defaults: bool = False,
    modify_parser: Any = None,
) -> Any:
    if suppress_defaults:
        raise ConfigError("parse_args_and_arch(suppress_defaults=True) is not carried")
    return parsers.parse_args_and_arch(parser, input_args, parse_known, modify_parser)


# fairseq.checkpoint_utils


def load_checkpoint_to_cpu(
    path: str, arg_overrides: dict[str, Any] | None = None, load_on_all_ranks: bool = False
) -> dict[str, Any]:
    """The content of a checkpoint; ``cfg`` in it is a Config, with ``arg_overrides`` applied."""
    state = load_checkpoint_file(path)
    if state.get("cfg") is not None or state.get("args") is not None:
        state["cfg"] = checkpoint.config_of(state, path)
        checkpoint.override(state["cfg"], arg_overrides or {})
    return state


def load_model_ensemble_and_task(
    filenames: list[str],
    arg_overrides: dict[str, Any] | None = None,
    task: Any = None,
    strict: bool = True,
    suffix: str = "",
    num_shards: int = 1,
) -> tuple[list[Any], Any, Any]:
    if num_shards != 1:
        raise ConfigError("sharded checkpoints are not carried")
    return checkpoint.load_model_ensemble_and_task(
        filenames, arg_overrides=arg_overrides, task=task, strict=strict, suffix=suffix
    )


def load_model_ensemble(*args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
    models, cfg, _ = load_model_ensemble_and_task(*args, **kwargs)
    return models, cfg


def load_pretrained_component_from_model(component: nn.Module, checkpoint: str, strict: bool = True) -> nn.Module:
    """Load an encoder's or decoder's weights out of a whole model's checkpoint."""
    from pyseq.models import Decoder, Encoder

    prefix = {Encoder: "encoder.", Decoder: "decoder."}
    side = next((prefix[base] for base in prefix if isinstance(component, base)), None)
    if side is None:
        raise CheckpointError(
            f"{checkpoint}: only an Encoder or a Decoder can be loaded from a model, not a {type(component).__name__}"
        )
    saved = load_checkpoint_file(checkpoint)["model"]
    component.load_state_dict(
        {key.removeprefix(side): value for key, value in saved.items() if key.startswith(side)}, strict=strict
    )
    return component


# fairseq.distributed.utils


def get_rank(group: Any = None) -> int:
    return distributed.rank()


def get_world_size(group: Any = None) -> int:
    return distributed.world_size()


def is_master(args: Any = None) -> bool:
    return distributed.is_master()


# fairseq.models.fairseq_encoder


class EncoderOut(NamedTuple):
    """What encoders of old plug-ins return. Those of today return a dict with these keys."""

    encoder_out: Tensor  # T x B x C
    encoder_padding_mask: Tensor | None  # B x T
    encoder_embedding: Tensor | None  # B x T x C
    encoder_states: list[Tensor] | None  # T x B x C each
    src_tokens: Tensor | None  # B x T
    src_lengths: Tensor | None  # B x 1


# fairseq.modules


def checkpoint_wrapper(m: nn.Module, offload_to_cpu: bool = False) -> nn.Module:
    if offload_to_cpu:
        raise ConfigError("checkpoint_wrapper(offload_to_cpu=True) is not carried")
    return checkpoint_activations(m)


def quant_noise(module: nn.Module, p: float, block_size: int) -> nn.Module:
    """The module itself; quantization noise (``p`` > 0) is not carried."""
    if p > 0:
        raise ConfigError("quantization noise is not carried: leave --quant-noise-pq at 0")
    return module
