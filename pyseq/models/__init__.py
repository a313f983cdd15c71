"""Models and their architectures. A plug-in registers in the same way as the models here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from pyseq.config.group import ConfigGroup, group_from
from pyseq.errors import ConfigError, nearest
from pyseq.models.decoder import Decoder
from pyseq.models.encoder import Encoder
from pyseq.models.incremental_decoder import IncrementalDecoder
from pyseq.models.model import BaseModel, EncoderDecoderModel, EncoderModel, LanguageModel
from pyseq.registry import (
    ARCHITECTURES,
    Architecture,
    Registry,
    architecture,
    choice_of,
    import_siblings,
    same_definition,
)

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[[Any], None])

MODELS = Registry("model", BaseModel, required=True)


def register_model(name: str, dataclass: type[ConfigGroup] | None = None) -> Callable[[C], C]:
    """Decorator that makes a :class:`BaseModel` available as ``name``.

    With a dataclass for its options, ``name`` is also an architecture, which sets nothing.

    Raises:
        ConfigError: another class has the name, the class is no BaseModel, or ``dataclass`` is no ConfigGroup.
    """

    def add(cls: C) -> C:
        MODELS.register(name, dataclass)(cls)
        if dataclass is not None:
            _add_architecture(Architecture(name, name, _set_nothing, cls))
        return cls

    return add


def register_model_architecture(model_name: str, arch_name: str) -> Callable[[F], F]:
    """Decorator that makes a function of the options (a namespace) available as ``--arch arch_name``.

    The function sets, in place, the options that the namespace does not have yet:
    ``args.encoder_layers = getattr(args, "encoder_layers", 3)``; it may call other architectures for the rest.

    Raises:
        ConfigError: there is no such model, another architecture has the name, or it is no function.
    """

    def add(fill_in: F) -> F:
        new = Architecture(arch_name, model_name, fill_in, fill_in)
        if model_name not in MODELS:
            raise ConfigError(
                f"architecture '{arch_name}' ({new.where}) is of an unknown model '{model_name}'. "
                f"{nearest(model_name, MODELS)}"
            )
        if not callable(fill_in):
            raise ConfigError(f"architecture '{arch_name}' must be a function of the options, not {fill_in!r}")
        _add_architecture(new)
        return fill_in

    return add


def _set_nothing(args: Any) -> None:
    pass


def _add_architecture(new: Architecture) -> None:
    old = ARCHITECTURES.get(new.name)
    if old is not None and not _same_architecture(old, new):
        raise ConfigError(
            f"architecture '{new.name}' is registered twice: at {old.where} and at {new.where}. Rename one of them."
        )
    ARCHITECTURES[new.name] = new


def _same_architecture(old: Architecture, new: Architecture) -> bool:
    """Whether both come from one definition, imported twice."""
    if old.where == new.where:
        return True
    functions: list[Any] = [old.fill_in, new.fill_in]
    return all(hasattr(fn, "__qualname__") for fn in functions) and same_definition(*functions)


def build_model(cfg: Any, task: Any, from_checkpoint: bool = False) -> Any:
    """Make the model that ``cfg`` names.

    Args:
        cfg: the model's node of the config, whose ``_name`` is a model or an architecture; or a flat namespace with
            ``arch``; or a dict of such a node. What the architecture sets is filled in, in place.
        task: what the model is for.
        from_checkpoint: whether ``cfg`` was read from a checkpoint. Nothing depends on it.

    Raises:
        ConfigError: no model or architecture has the name, or its options do not fit together.
    """
    if isinstance(cfg, dict):
        cfg = argparse.Namespace(**cfg)
    name = choice_of(cfg, "arch")
    if name is None:
        raise ConfigError("--arch is required: it names the model")
    if name in ARCHITECTURES or name not in MODELS:
        chosen = architecture(name)
        chosen.fill_in(cfg)
        name = chosen.model_name
    entry = MODELS.entry(name)
    if entry.group is not None and not isinstance(cfg, entry.group):
        cfg = group_from(entry.group, cfg)
    return entry.cls.build_model(cfg, task)  # type: ignore[attr-defined]


import_siblings(__file__, __name__)

__all__ = [
    "ARCHITECTURES",
    "MODELS",
    "BaseModel",
    "Decoder",
    "Encoder",
    "EncoderDecoderModel",
    "EncoderModel",
    "IncrementalDecoder",
    "LanguageModel",
    "build_model",
    "register_model",
    "register_model_architecture",
]
