"""When a transformer leaves padding out, and what it then returns.

A packed forward pass computes the real tokens of a batch alone (:mod:`pyseq.modules.packing`). Features are spread over
the padded batch again, so that what a model returns has the same shape and, at real tokens, the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from pyseq.models.model import BaseModel
from pyseq.modules.linear import is_hooked
from pyseq.modules.packing import Packing
from pyseq.ops import dispatch


def can_pack(model: nn.Module, *parts: Any) -> bool:
    """Whether all ``parts`` (encoder, decoder) pack, and no hook watches what a module of ``model`` is given."""
    return all(getattr(part, "packs", False) for part in parts) and not any(map(is_hooked, model.modules()))


def packs(model: BaseModel, tokens: Tensor) -> bool:
    """Whether a forward pass over ``tokens`` [B x T] should leave padding out: on request, or where it is faster."""
    wanted = model.pack_sequences
    if wanted is False or torch.compiler.is_compiling():
        return False
    return bool(wanted or is_faster(model, tokens)) and model.can_pack()


def is_faster(module: nn.Module, tokens: Tensor) -> bool:
    """Whether a pass of ``module`` over ``tokens`` is known to be faster without padding.

    It is on the CPU, wherever attention has a kernel. On a GPU that has not been measured.
    """
    dtype = next(module.parameters()).dtype
    return tokens.device.type == "cpu" and dispatch.choose("attention", "cpu", dtype) != "torch"


def unpacked(
    decoder: Any, target: Packing, x: Tensor, states: list[Tensor], features_only: bool
) -> tuple[Tensor, dict[str, Any]]:
    """What the decoder's ``forward`` returns, from the features [N x 1 x C] and states of its real tokens."""
    features = target.unpack(x)
    extra = {"attn": [None], "inner_states": UnpackedStates(target, states)}
    return (features if features_only else decoder.output_layer(features)), extra


class UnpackedStates(Sequence[Tensor]):
    """States [T x B x C] between layers, spread over the padded batch when somebody asks for one."""

    def __init__(self, packing: Packing, states: list[Tensor]) -> None:
        self._packing, self._states = packing, states

    def __len__(self) -> int:
        return len(self._states)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self._packing.unpack(state).transpose(0, 1) for state in self._states[index]]
        return self._packing.unpack(self._states[index]).transpose(0, 1)
