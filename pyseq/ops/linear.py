"""A linear layer, ``input weight^T + bias``, and the rectifier after it, by a matrix product of our own on CPUs.

The kernel (csrc/cpu/gemm.h) is chosen for fp32 where it was measured to be faster than the library behind torch: on
processors with AVX2 and without AVX-512. Elsewhere, and for other dtypes, the products are torch's.
Each element is a sum in one fixed order, whatever the number of threads.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyseq.ops import dispatch

Activation = Literal["none", "relu"]

dispatch.register_operation("linear", isas=frozenset({"avx2"}), cpp=frozenset({torch.float32}))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Activation = "none") -> Tensor:
    """``F.linear(input, weight, bias)``, and its positive part with ``activation="relu"``.

    Args:
        input: [..., K].
        weight: [N, K].
        bias: [N].

    Returns:
        [..., N]. Differentiable; by the kernel, once.

    Raises:
        ValueError: there is no such activation.
        RuntimeError: sizes or dtypes do not fit, as torch says it.
    """
    if activation not in ("none", "relu"):
        raise ValueError(f"activation must be 'none' or 'relu', not {activation!r}")
    if _has_kernel(input, weight, bias):
        result: Tensor = _Linear.apply(input, weight, bias, activation == "relu")
        return result
    return reference(input, weight, bias, activation)


def reference(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    y = F.linear(input, weight, bias)
    return F.relu(y) if activation == "relu" else y


def multiplies(*tensors: Tensor) -> bool:
    """Whether :func:`gemm_` is for these tensors: fp32 on a CPU where it is the faster, or forced."""
    if dispatch.forced() not in (None, "cpp") or torch.compiler.is_compiling():
        return False
    plain = all(type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32 and t.is_cpu for t in tensors)
    return plain and dispatch.choose("linear", "cpu", torch.float32) == "cpp"


def gemm_(
    out: Tensor, a: Tensor, b: Tensor, *, accumulate: bool = False, bias: Tensor | None = None, relu: bool = False
) -> None:
    """``out (+)= a b``, then ``+ bias``, then its positive part; fp32 on the CPU, unknown to autograd.

    Args:
        out: [M, N] without gaps within a row.
        a, b: [M, K] and [K, N] of any strides, in other memory than ``out``.
        bias: [N], contiguous.
    """
    dispatch.required_core().gemm(
        a.size(0),
        b.size(1),
        a.size(1),
        a.data_ptr(),
        *a.stride(),
        b.data_ptr(),
        *b.stride(),
        out.data_ptr(),
        out.stride(0),
        accumulate,
        0 if bias is None else bias.data_ptr(),
        relu,
        torch.get_num_threads(),
    )


def _has_kernel(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernel takes this call. What does not fit is left to torch, which says so."""
    tensors = (input, weight) if bias is None else (input, weight, bias)
    fits = weight.dim() == 2 and input.dim() > 0 and input.size(-1) == weight.size(1)
    fits = fits and (bias is None or bias.shape == weight.shape[:1])
    return fits and multiplies(*tensors) and not torch.is_autocast_enabled("cpu")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        rows = input.reshape(-1, input.size(-1))
        out = rows.new_empty(len(rows), len(weight))
        gemm_(out, rows, weight.t(), bias=None if bias is None else bias.contiguous(), relu=relu)
        y = out.view(*input.shape[:-1], len(weight))
        ctx.save_for_backward(input, weight, y if relu else None)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        input, weight, y = ctx.saved_tensors
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        grad = grad.reshape(-1, len(weight))
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = grad.new_empty(input.shape)
            gemm_(of_input.view(-1, input.size(-1)), grad, weight)
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
            gemm_(of_weight, grad.t(), input.reshape(-1, input.size(-1)))
        return of_input, of_weight, grad.sum(0) if ctx.needs_input_grad[2] else None, None
