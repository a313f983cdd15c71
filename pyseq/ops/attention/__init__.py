"""Attention of packed sequences: block-diagonal softmax attention, without padding and without a stored mask.

The formulas are in :mod:`pyseq.ops.attention.definition`, beside the torch reference; the back ends in
:mod:`pyseq.ops.attention.kernels`. The weights never exist as a whole: the backward pass computes them again from the
log-sum-exp of each query, and draws dropout again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.attention.checks import check_cross, check_self
from pyseq.ops.attention.definition import Options, Segments, reference
from pyseq.ops.attention.kernels import KERNELS, Inputs, check
from pyseq.ops.attention.library import Attention
from pyseq.ops.dropout import limit
from pyseq.ops.random import draw_seed

__all__ = ["Segments", "cross_attention", "self_attention"]

dispatch.register_operation("attention", cpp=dispatch.KERNEL_DTYPES, triton=dispatch.KERNEL_DTYPES)


def self_attention(
    kvq: Tensor,
    segments: Segments,
    *,
    causal: bool = False,
    scale: float | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Attention of the tokens of each segment over those of the same segment.

    Args:
        kvq: [T, 3, H, D], floating-point: key, value and query of each token. Strides are free.
        segments: where the sequences are.
        causal: token i of a segment sees tokens 0 to i.
        scale: of the scores; None is 1 / sqrt(D).
        p: probability of dropping a weight, in [0, 1].
        seed: for dropout, see :func:`pyseq.ops.dropout`.

    Returns:
        [T, H, D], contiguous, of the dtype of ``kvq``. Differentiable; by the kernels, once.

    Raises:
        ValueError, TypeError: an argument does not fit. Offsets on a GPU are trusted.
    """
    check_self(kvq, segments, p, seed)
    return _attention(kvq, None, segments, segments, causal, scale, p, seed)


def cross_attention(
    query: Tensor,
    kv: Tensor,
    query_segments: Segments,
    key_segments: Segments,
    *,
    scale: float | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Attention of the queries of each segment over the keys of the segment of that number.

    Args:
        query: [Tq, H, D], floating-point. Strides are free.
        kv: [Tk, 2, H, D]: key and value of each token.
        query_segments, key_segments: where the sequences are; as many of each.
        scale, p, seed: as for :func:`self_attention`.

    Returns:
        [Tq, H, D], as for :func:`self_attention`; 0 for a query whose segment has no key.

    Raises:
        ValueError, TypeError: an argument does not fit. Offsets on a GPU are trusted.
    """
    check_cross(query, kv, query_segments, key_segments, p, seed)
    return _attention(kv, query, query_segments, key_segments, False, scale, p, seed)


def _attention(
    packed: Tensor,
    query: Tensor | None,
    query_segments: Segments,
    key_segments: Segments,
    causal: bool,
    scale: float | None,
    p: float,
    seed: Tensor | None,
) -> Tensor:
    """Attention, where ``packed`` is kvq, or kv beside ``query``."""
    chosen = dispatch.choose("attention", packed.device.type, packed.dtype)
    drops = limit(p) >= 0
    options = Options(
        query_segments.longest,
        key_segments.longest,
        causal,
        packed.size(-1) ** -0.5 if scale is None else float(scale),
        float(p) if drops else 0.0,
    )
    if drops and seed is None:
        seed = draw_seed(packed.device)
    inputs = Inputs(packed, query, query_segments.offsets, key_segments.offsets, seed if drops else None)
    if chosen == "torch":
        if not torch.compiler.is_compiling():
            check(inputs, options)
        return reference(*inputs.heads(), *inputs[2:4], options, inputs.seed)
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.pyseq.attention(*inputs, *options)[0]
        return out
    return Attention.apply(*inputs, options, KERNELS[chosen])
