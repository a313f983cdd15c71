"""Shapes of the parameters that an optimizer sees: even lists, and those of pyseq's own architectures."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace

import torch
from torch import Tensor

from pyseq.models import build_model

Shapes = list[tuple[int, ...]]
# Architecture and vocabulary (IWSLT'14 and WMT'16 de-en with joined BPE, GPT-2's own).
ARCHITECTURES = {
    "iwslt": ("transformer_iwslt_de_en", 10_000),
    "base": ("transformer_wmt_en_de", 32_768),
    "big": ("transformer_vaswani_wmt_en_de_big", 32_768),
    "gpt2-medium": ("transformer_lm_gpt2_medium", 50_257),
}


class _Symbols:
    """As much of a dictionary as a model looks at."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> str:
        return str(index)

    def pad(self) -> int:
        return 1


def even(tensors: int, elements: int) -> Shapes:
    """``tensors`` tensors with ``elements`` elements in all; what does not divide is dropped."""
    return [(elements // tensors,)] * tensors


def of_model(name: str) -> Shapes:
    """Shapes of the trained parameters of one of ARCHITECTURES. No memory is taken."""
    architecture, size = ARCHITECTURES[name]
    symbols = _Symbols(size)
    task = SimpleNamespace(
        source_dictionary=symbols, target_dictionary=symbols, dictionary=symbols, output_dictionary=symbols
    )
    options = Namespace(
        arch=architecture,
        share_all_embeddings=True,
        share_decoder_input_output_embed=True,
        tokens_per_sample=1024,
        max_target_positions=1024,
    )
    with torch.device("meta"):
        model = build_model(options, task)
    return [tuple(parameter.shape) for parameter in model.parameters() if parameter.requires_grad]


def count_of(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def allocate(shapes: Shapes, dtype: torch.dtype, device: torch.device, adjacent: bool, scale: float) -> list[Tensor]:
    """Normal random tensors of the shapes: each with memory of its own, or all in one piece of memory."""
    if not adjacent:
        return [torch.randn(shape, device=device).mul_(scale).to(dtype) for shape in shapes]
    counts = [torch.Size(shape).numel() for shape in shapes]
    flat = torch.randn(sum(counts), device=device).mul_(scale).to(dtype)
    return [part.view(shape) for part, shape in zip(flat.split(counts), shapes)]


def bound_to(parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """The parameters as leaves with those gradients."""
    for parameter, gradient in zip(parameters, gradients):
        parameter.requires_grad_()
        parameter.grad = gradient
    return parameters
