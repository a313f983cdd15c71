"""Parameters by name: those of old checkpoints, and those of deeper models."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from pyseq.errors import CheckpointError
from pyseq.modules.transformer_config import layers_to_keep

_LAYER = re.compile(r"(?P<side>(?:.*\.)?(?P<part>encoder|decoder))\.layers\.(?P<number>\d+)(?P<rest>\..*)")


def upgrade_children(module: nn.Module, state_dict: dict[str, Tensor], name: str) -> None:
    """Ask every module below ``module`` to bring its own entries up to date, outer ones first."""
    for child_name, child in module.named_children():
        full_name = f"{name}.{child_name}" if name else child_name
        named, whole = (getattr(child, hook, None) for hook in ("upgrade_state_dict_named", "upgrade_state_dict"))
        if named is not None:
            named(state_dict, full_name)
        elif whole is not None:
            whole(state_dict)
        upgrade_children(child, state_dict, full_name)


def prune_layers(state_dict: dict[str, Any], cfg: Any) -> dict[str, Any]:
    """Keep the layers that ``cfg.encoder_layers_to_keep`` and ``cfg.decoder_layers_to_keep`` name, renumbered from 0.

    Both options are reset, so that what is saved next is not pruned a second time.

    Raises:
        CheckpointError: the checkpoint does not have one of the layers.
    """
    keep = {part: layers_to_keep(getattr(cfg, f"{part}_layers_to_keep", None)) for part in ("encoder", "decoder")}
    if not any(keep.values()):
        return state_dict
    pruned = {}
    seen: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    for name, value in state_dict.items():
        match = _LAYER.fullmatch(name)
        kept = keep[match["part"]] if match else None
        if match and kept is not None:
            number = int(match["number"])
            seen[match["part"]].add(number)
            if number not in kept:
                continue
            name = f"{match['side']}.layers.{kept.index(number)}{match['rest']}"
        pruned[name] = value
    for part, kept in keep.items():
        missing = sorted(set(kept or ()) - seen[part])
        if missing:
            raise CheckpointError(
                f"--{part}-layers-to-keep asks for layers {missing}; the checkpoint has {len(seen[part])} {part} layers"
            )
        if kept is not None:
            setattr(cfg, f"{part}_layers_to_keep", None)
    return pruned


def describe_misfit(model: nn.Module, state_dict: dict[str, Any]) -> str:
    """How the names and shapes in ``state_dict`` differ from those of ``model``; empty if they do not."""
    own = model.state_dict()
    shapes = [
        f"{name} {_shape(state_dict[name])} instead of {_shape(value)}"
        for name, value in own.items()
        if name in state_dict and isinstance(value, Tensor) and _shape(state_dict[name]) != _shape(value)
    ]
    differences = {
        "it lacks": [name for name in own if name not in state_dict],
        "the model has no": [name for name in state_dict if name not in own],
        "other sizes:": shapes,
    }
    told = [f"{what} {_some(names)}" for what, names in differences.items() if names]
    if not told:
        return ""
    return (
        f"the checkpoint does not fit this {type(model).__name__}: {'; '.join(told)}. It was trained with another "
        "--arch, other model options, or another dictionary."
    )


def _shape(value: Any) -> str:
    return " x ".join(map(str, value.shape)) or "scalar"


def _some(names: list[str], count: int = 3) -> str:
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")
