"""The three matrix products of a chunk of rows h [R x D], weights W [V x D] and logits or their gradient g [R x V].

Where our own product pays (:func:`pyseq.ops.gemm.pays`) they are that. Elsewhere on the CPU the library behind
``torch.mm`` copies all of W into an order of its own for each fp32 product, which with AVX-512 takes half as long as a
product with 100 rows. So g W is left to oneDNN there, where torch has it, and so is h W^T where rows are wide enough to
pay for the copy of its result, by blocks that stay in the cache; otherwise torch.mm gets blocks of W that do.

The sum of g^T h over chunks is as fast as it should be, in place. Where h and g have 16 bits and the sum has 32, torch
does that in one operation on GPUs only. Our own (:mod:`pyseq.ops.outer_products`) does where the processor multiplies
bf16; elsewhere products are rounded to 16 bits before they are added.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pyseq.ops import dispatch, outer_products
from pyseq.ops.gemm import gemm_

ONEDNN_MOST_ROWS = 512
ONEDNN_LEAST_WIDTH = 256  # of h, for h W^T
ONEDNN_PRODUCT_BYTES = 1 << 19
CACHED_WEIGHT_BYTES = 2 << 20
CACHED_PRODUCT_BYTES = 2 << 20


def logits(chunk: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """h W^T + b, in the first rows of ``buffer``."""
    out = buffer[: len(chunk)]
    if _is_for_core(chunk, weight):
        gemm_(out, chunk, weight.t(), bias=bias)
        return out
    if _is_for_onednn(chunk) and chunk.size(1) >= ONEDNN_LEAST_WIDTH:
        classes = max(ONEDNN_PRODUCT_BYTES // (len(chunk) * chunk.element_size()), 256)
        for begin in range(0, len(weight), classes):
            part = slice(begin, begin + classes)
            out[:, part].copy_(_onednn(chunk, weight[part], None if bias is None else bias[part]))
        return out
    classes = len(weight)
    if chunk.device.type == "cpu" and chunk.dtype == torch.float32:
        classes = max(CACHED_WEIGHT_BYTES // max(chunk.size(1) * chunk.element_size(), 1), 64)
    for begin in range(0, len(weight), classes):
        part = slice(begin, begin + classes)
        if bias is None:
            torch.mm(chunk, weight[part].t(), out=out[:, part])
        else:
            torch.addmm(bias[part], chunk, weight[part].t(), out=out[:, part])
    return out


def input_gradient(gradient: Tensor, weight: Tensor, out: Tensor) -> None:
    """g W, into ``out`` [R x D]."""
    if _is_for_core(gradient, weight):
        gemm_(out, gradient, weight)
    elif _is_for_onednn(gradient) and out.numel() > 0:
        out.copy_(_onednn(gradient, weight.t(), None))
    else:
        torch.mm(gradient, weight, out=out)


def add_weight_gradient(total: Tensor, gradient: Tensor, chunk: Tensor, first: bool) -> None:
    """Add g^T h to ``total`` [V x D], which holds nothing yet if ``first``."""
    if _is_for_core(total, gradient, chunk):
        gemm_(total, gradient.t(), chunk, accumulate=not first)
    elif total.dtype == gradient.dtype:
        torch.addmm(total, gradient.t(), chunk, beta=0.0 if first else 1.0, out=total)
    elif _is_for_outer_products(total, gradient, chunk):
        outer_products.outer_products_(total, gradient, chunk, accumulate=not first)
    elif gradient.is_cuda and _adds_to_fp32():
        torch.addmm(total, gradient.t(), chunk, out_dtype=total.dtype, beta=0.0 if first else 1.0, out=total)
    else:
        _add_blocks(total, gradient, chunk, first)


def _add_blocks(total: Tensor, gradient: Tensor, chunk: Tensor, first: bool) -> None:
    """The same by blocks of classes, whose 16-bit products are still in the cache when they are added."""
    classes = max(CACHED_PRODUCT_BYTES // max(chunk.size(1) * chunk.element_size(), 1), 256)
    for begin in range(0, len(total), classes):
        product = gradient[:, begin : begin + classes].t() @ chunk
        block = total[begin : begin + classes]
        _ = block.copy_(product) if first else block.add_(product)


def _is_for_core(*tensors: Tensor) -> bool:
    fits = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return fits and dispatch.choose("linear", "cpu", torch.float32) == "cpp"


def _is_for_outer_products(total: Tensor, *rows: Tensor) -> bool:
    fits = total.dtype == torch.float32 and all(t.device.type == "cpu" and t.dtype == torch.bfloat16 for t in rows)
    return fits and dispatch.choose("linear_cross_entropy", "cpu", torch.bfloat16) == "cpp" and outer_products.pays()


def _is_for_onednn(rows: Tensor) -> bool:
    fits = rows.device.type == "cpu" and rows.dtype == torch.float32 and 0 < len(rows) <= ONEDNN_MOST_ROWS
    return fits and rows.size(1) > 0 and _onednn_is_better()


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product


@functools.cache
def _onednn_is_better() -> bool:
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@functools.cache
def _adds_to_fp32() -> bool:
    """Whether ``torch.addmm`` takes 16-bit factors and an fp32 sum on a GPU: since torch 2.8."""
    return hasattr(torch.ops.aten.addmm, "dtype_out")
