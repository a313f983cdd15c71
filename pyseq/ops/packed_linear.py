"""Weights of a linear layer in the order in which the core's matrix product reads them (csrc/cpu/packed_linear.h)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops import dispatch

PANEL_WIDTH = 16  # as in csrc/cpu/packed_linear.h


class PackedLinear(NamedTuple):
    """``x @ weight.T + bias`` with N columns, in P panels of 16 columns, zeros past the last column.

    In bf16, neighbours in a row of ``weight`` are pairs, with a zero after the last. x is fp32, rounded to bf16 for the
    product, whose sums are fp32.
    """

    panels: Tensor  # P x depth x 16 fp32, or P x ceil(depth / 2) x 16 x 2 bf16
    bias: Tensor | None  # P * 16, fp32
    columns: int
    depth: int

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        """Copies of ``weight`` [N x depth] and ``bias`` [N].

        They are in fp32, but for a weight that is bf16 where the core multiplies that.
        """
        columns, depth = weight.shape
        missing = -columns % PANEL_WIDTH
        kept = None if bias is None else F.pad(bias.detach().float(), (0, missing))
        if weight.dtype == torch.bfloat16 and dispatch.multiplies_bf16():
            pairs = F.pad(weight.detach(), (0, depth % 2, 0, missing)).view(-1, PANEL_WIDTH, (depth + 1) // 2, 2)
            return cls(pairs.transpose(1, 2).contiguous(), kept, columns, depth)
        panels = F.pad(weight.detach().float(), (0, 0, 0, missing)).view(-1, PANEL_WIDTH, depth)
        return cls(panels.transpose(1, 2).contiguous(), kept, columns, depth)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        return self  # nothing changes it

    @property
    def bf16(self) -> bool:
        return self.panels.dtype == torch.bfloat16

    def addresses(self) -> tuple[int, int]:
        """Where panels and bias lie; 0 for no bias."""
        return self.panels.data_ptr(), 0 if self.bias is None else self.bias.data_ptr()

    def reference(self, x: Tensor) -> Tensor:
        """The product in plain torch, in the dtype of ``x`` [... x depth]."""
        weight = self.panels.transpose(1, 2).flatten(0, 1).flatten(1)[: self.columns, : self.depth]
        bias = None if self.bias is None else self.bias[: self.columns].to(x.dtype)
        rounded = x.bfloat16().to(x.dtype) if self.bf16 else x
        return F.linear(rounded, weight.to(x.dtype), bias)


def identity(*tensors: Tensor | None) -> tuple[tuple[int, int], ...]:
    """What changes when one of these tensors is replaced or written to."""
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors if t is not None)


def check_packed(packed: PackedLinear, x: Tensor) -> None:
    """Raise TypeError unless ``packed`` and ``x`` [rows x depth] are fp32, on one device, and fit."""
    if x.dim() != 2 or x.size(1) != packed.depth:
        raise TypeError(f"x {tuple(x.shape)} does not fit weights for rows of {packed.depth} numbers")
    if x.dtype != torch.float32 or x.device != packed.panels.device:
        raise TypeError(f"x ({x.dtype}, {x.device}) must be fp32 on {packed.panels.device}, where the weights are")
