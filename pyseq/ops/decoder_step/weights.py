"""What the layers of a decoder are made of, in the form in which a step reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops.packed_linear import PackedLinear

ACTIVATIONS = {"relu": 0, "gelu": 1}  # the numbers are those of csrc/cpu/decoder_step.h
ADDRESSES = 18  # of a layer, in the order of csrc/cpu/bindings_decoding.cpp

Norm = tuple["Tensor | None", "Tensor | None"]  # weight and bias [C]


class PlainLinear(NamedTuple):
    """``x @ weight.T + bias`` for torch's own product. The model's dtype and device."""

    weight: Tensor  # N x depth
    bias: Tensor | None  # N

    def __deepcopy__(self, memo: dict[int, Any]) -> PlainLinear:
        return self  # nothing changes it

    @property
    def columns(self) -> int:
        return self.weight.size(0)

    @property
    def depth(self) -> int:
        return self.weight.size(1)

    def reference(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


Linear = PackedLinear | PlainLinear


class SourceWeights(NamedTuple):
    """What a layer has for its attention to the source. Keys and values are projected by ``DecoderWeights.source``."""

    norm: Norm
    query: Linear  # C to C
    out: Linear  # C to C


class LayerWeights(NamedTuple):
    """A layer: packed for the core, with norms in fp32; plain for the others."""

    self_norm: Norm
    qkv: Linear  # C to 3 C: query, key, value
    self_out: Linear  # C to C
    final_norm: Norm
    fc1: Linear  # C to F
    fc2: Linear  # F to C
    source: SourceWeights | None

    def addresses(self) -> list[int]:
        """Where its numbers lie, if it is packed; else nothing."""
        if isinstance(self.qkv, PlainLinear):
            return []
        parts: list[Any] = [self.self_norm, self.qkv, self.self_out, self.final_norm, self.fc1, self.fc2]
        if self.source is not None:
            parts += self.source
        found: list[int] = []
        for part in parts:
            if isinstance(part, PackedLinear):
                found += part.addresses()
            else:
                found += [0 if t is None else t.data_ptr() for t in part]
        return found + [0] * (ADDRESSES - len(found))


@dataclass(frozen=True, eq=False)
class DecoderWeights:
    """All layers, ready for :func:`decoder_step`.

    Attributes:
        layers: either all have ``source`` or none has.
        source: weight [layers * 2 C x encoder C] and bias of the keys and values of all layers: for each layer its key,
            then its value.
        norm_first: pre-norm.
        activation: one of :data:`ACTIVATIONS`.
        eps: of all norms.
    """

    layers: list[LayerWeights]
    source: tuple[Tensor, Tensor | None] | None
    heads: int
    norm_first: bool
    activation: str
    eps: float
    table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", torch.tensor([layer.addresses() for layer in self.layers]))

    def __deepcopy__(self, memo: dict[int, Any]) -> DecoderWeights:
        return self  # nothing changes them

    @property
    def dim(self) -> int:
        return self.layers[0].qkv.depth

    @property
    def inner(self) -> int:
        return self.layers[0].fc1.columns

    @property
    def packed(self) -> bool:
        """Whether they are in the core's form."""
        return isinstance(self.layers[0].qkv, PackedLinear)

    @property
    def bf16(self) -> bool:
        """Whether they are in the core's form, products in bf16."""
        qkv = self.layers[0].qkv
        return isinstance(qkv, PackedLinear) and qkv.bf16
