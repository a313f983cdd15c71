"""Dropout (Srivastava et al. 2014): ``x_i / (1 - p)`` with probability ``1 - p``, else 0; and something added to it.

Whether element i stays depends on a seed and on i alone (:mod:`pyseq.ops.random`): no mask is kept for the backward
pass, which draws it again, and the result is the same for any number of threads, on every back end. A number has 16
bits, so as many are dropped as the nearest multiple of 2^-16 says; what stays is scaled by ``1 / (1 - p)``, with ``p``
as given. ``p`` below 2^-17 is 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.random import draw_seed, random_halves

dispatch.register_operation("dropout", cpp=dispatch.KERNEL_DTYPES, triton=dispatch.KERNEL_DTYPES)


def dropout(input: Tensor, p: float = 0.5, *, residual: Tensor | None = None, seed: Tensor | None = None) -> Tensor:
    """``dropout(input) + residual``, in one pass.

    Args:
        input: any shape, floating-point.
        p: probability of 0, in [0, 1]. A dropped inf or nan is 0.
        residual: of the shape, dtype and device of ``input``.
        seed: int64 [1] on the device of ``input``; None draws one from torch's generator of that device.

    Returns:
        Of the shape and dtype of ``input``, contiguous; ``input`` itself if there is nothing to drop or add.

    Raises:
        ValueError, TypeError: ``p``, ``residual`` or ``seed`` do not fit.
    """
    _check(input, p, residual, seed)
    if limit(p) < 0:
        return input if residual is None else input + residual
    chosen = dispatch.choose("dropout", input.device.type, input.dtype)
    seed = draw_seed(input.device) if seed is None else seed
    if chosen == "torch":
        return reference(input, residual, p, seed)
    if torch.compiler.is_compiling():
        result: Tensor = torch.ops.pyseq.dropout(input, residual, p, seed)
        return result
    return _Dropout.apply(input, residual, p, seed, KERNELS[chosen])


def limit(p: float) -> int:
    """Random halves above this number stay: -1 if all do, 65535 if none does."""
    return math.floor(p * 65536 + 0.5) - 1


def scale(p: float) -> float:
    """What stays is multiplied by this."""
    return 1.0 / (1.0 - p) if p < 1.0 else 0.0


def keep_mask(seed: Tensor, count: int, p: float) -> Tensor:
    """Which of ``count`` elements stay: bool [count]."""
    return random_halves(seed, count) > limit(p)


def reference(x: Tensor, residual: Tensor | None, p: float, seed: Tensor) -> Tensor:
    """Dropout in plain torch: what the kernels compute. Dropped elements are replaced: 0 times inf would be nan."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    kept = torch.where(keep_mask(seed, x.numel(), p).view(x.shape), wide * scale(p), 0.0)
    return (kept if residual is None else kept + residual).to(x.dtype).contiguous()


def _check(input: Tensor, p: float, residual: Tensor | None, seed: Tensor | None) -> None:
    if not input.is_floating_point():
        raise TypeError(f"dropout is for floating-point tensors, not {input.dtype}")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"the dropout probability must be in [0, 1], not {p}")
    if residual is not None:
        if residual.shape != input.shape:
            raise ValueError(f"residual {tuple(residual.shape)} and input {tuple(input.shape)} differ in shape")
        if residual.dtype != input.dtype or residual.device != input.device:
            raise TypeError(
                f"residual ({residual.dtype}, {residual.device}) and input ({input.dtype}, {input.device}) differ"
            )
    check_seed(seed, input)


def check_seed(seed: Tensor | None, input: Tensor) -> None:
    """Raise if a seed is not what an operation on ``input`` takes."""
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != input.device):
        raise TypeError(
            f"a seed is one int64 number on the device of the input ({input.device}), "
            f"not {tuple(seed.shape)} {seed.dtype} on {seed.device}"
        )


class Kernel:
    """A back end of this operation. Tensors lie on its device."""

    @staticmethod
    def apply(x: Tensor, residual: Tensor | None, p: float, seed: Tensor) -> Tensor:
        """Dropout of ``x``, plus ``residual`` if there is one. Contiguous."""
        raise NotImplementedError


class CppKernel(Kernel):
    @staticmethod
    def apply(x: Tensor, residual: Tensor | None, p: float, seed: Tensor) -> Tensor:
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        out = torch.empty_like(x)
        dispatch.required_core().dropout(
            x.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            out.data_ptr(),
            dispatch.DTYPE_NUMBERS[x.dtype],
            x.numel(),
            p,
            seed.data_ptr(),
            torch.get_num_threads(),
        )
        return out


class TritonKernel(Kernel):
    @staticmethod
    def apply(x: Tensor, residual: Tensor | None, p: float, seed: Tensor) -> Tensor:
        from pyseq.kernels import dropout as kernels

        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        out = torch.empty_like(x)
        kernels.dropout(x, residual, out, limit(p), scale(p), seed)
        return out


KERNELS: dict[str, type[Kernel]] = {"cpp": CppKernel, "triton": TritonKernel}


class _Dropout(torch.autograd.Function):
    """The way of eager calls: straight to the kernel, without the dispatcher of torch.library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, p: float, seed: Tensor, kernel: type[Kernel]) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.options = p, kernel
        return kernel.apply(x, residual, p, seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        p, kernel = ctx.options
        (seed,) = ctx.saved_tensors
        grad_x = _Dropout.apply(grad, None, p, seed, kernel) if ctx.needs_input_grad[0] else None
        return grad_x, grad if ctx.needs_input_grad[1] else None, None, None, None


# The same for torch.compile, which needs an operator that it can see.
_library = torch.library.Library("pyseq", "FRAGMENT")
_library.define("dropout(Tensor x, Tensor? residual, float p, Tensor seed) -> Tensor")
_library.impl("dropout", CppKernel.apply, "CPU")
_library.impl("dropout", TritonKernel.apply, "CUDA")


@torch.library.register_fake("pyseq::dropout", lib=_library)
def _(x: Tensor, residual: Tensor | None, p: float, seed: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.p, seed = inputs
    ctx.save_for_backward(seed)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    (seed,) = ctx.saved_tensors
    grad_x = torch.ops.pyseq.dropout(grad, None, ctx.p, seed) if ctx.needs_input_grad[0] else None
    return grad_x, grad if ctx.needs_input_grad[1] else None, None, None


torch.library.register_autograd("pyseq::dropout", _gradient, setup_context=_save, lib=_library)
