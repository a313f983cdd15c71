"""How layer_norm enters the autograd graph: straight in eager calls, as an operator under torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyseq.ops.layer_norm.kernels import (
    CppKernel,
    Gradients,
    Kernel,
    Options,
    TritonKernel,
    allocate,
    allocate_gradients,
)


class LayerNorm(torch.autograd.Function):
    """The way of eager calls: straight to the kernel, without the dispatcher of torch.library."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        options: Options,
        seed: Tensor | None,
        kernel: type[Kernel],
    ) -> tuple[Tensor, Tensor | None]:
        y, z, mean, rstd = kernel.forward(x, residual, weight, bias, options, seed)
        ctx.save_for_backward(x if z is None else z, mean, rstd, weight, seed)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.options = options, kernel
        ctx.set_materialize_grads(False)
        return y, z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_z: Tensor | None) -> tuple[Tensor | None, ...]:
        z, mean, rstd, weight, seed = ctx.saved_tensors
        options, kernel = ctx.options
        grad_y = torch.zeros_like(z) if grad_y is None else grad_y
        grads = kernel.backward(grad_y, grad_z, z, mean, rstd, weight, options, seed, ctx.needs_input_grad[1])
        return (*_to_inputs(ctx, grads, weight), None, None, None)


def _to_inputs(ctx: Any, grads: Gradients, weight: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of x, residual, weight and bias, None for those that nobody asked for."""
    wants = ctx.needs_input_grad
    return (
        (grads.residual if grads.x is None else grads.x) if wants[0] else None,
        grads.residual if wants[1] else None,
        grads.weight.to(weight.dtype) if wants[2] and weight is not None else None,
        grads.bias.to(ctx.bias_dtype) if wants[3] and ctx.bias_dtype is not None else None,
    )


# The same for torch.compile, which needs operators that it can see. What is absent is a tensor without elements.
_library = torch.library.Library("pyseq", "FRAGMENT")
_library.define(
    "layer_norm(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, float p, Tensor? seed)"
    " -> (Tensor y, Tensor z, Tensor mean, Tensor rstd)"
)
_library.define(
    "layer_norm_backward(Tensor grad_y, Tensor? grad_z, Tensor z, Tensor mean, Tensor rstd, Tensor? weight, float eps, "
    "float p, Tensor? seed, bool wants_residual) -> (Tensor residual, Tensor x, Tensor weight, Tensor bias)"
)


def _present(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


def _register(device: str, kernel: type[Kernel]) -> None:
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        p: float,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, z, mean, rstd = kernel.forward(x, residual, weight, bias, Options(eps, p), seed)
        return y, _present(z, x), mean, rstd

    def backward(
        grad_y: Tensor,
        grad_z: Tensor | None,
        z: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        eps: float,
        p: float,
        seed: Tensor | None,
        wants_residual: bool,
    ) -> tuple[Tensor, ...]:
        grads = kernel.backward(grad_y, grad_z, z, mean, rstd, weight, Options(eps, p), seed, wants_residual)
        return tuple(_present(grad, z) for grad in grads)

    _library.impl("layer_norm", forward, device)
    _library.impl("layer_norm_backward", backward, device)


_register("CPU", CppKernel)
_register("CUDA", TritonKernel)


@torch.library.register_fake("pyseq::layer_norm", lib=_library)
def _(
    x: Tensor, residual: Tensor | None, weight: Any, bias: Any, eps: float, p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, z, mean, rstd = allocate(x, keeps_z=residual is not None or seed is not None)
    return y, _present(z, x), mean, rstd


@torch.library.register_fake("pyseq::layer_norm_backward", lib=_library)
def _(
    grad_y: Tensor,
    grad_z: Tensor | None,
    z: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    eps: float,
    p: float,
    seed: Tensor | None,
    wants_residual: bool,
) -> tuple[Tensor, ...]:
    return tuple(_present(grad, z) for grad in allocate_gradients(z, seed is not None, wants_residual))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, bias, ctx.eps, ctx.p, seed = inputs
    _, z, mean, rstd = output
    ctx.save_for_backward(x if residual is None and seed is None else z, mean, rstd, weight, seed)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad_y: Tensor | None, grad_z: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    z, mean, rstd, weight, seed = ctx.saved_tensors
    grad_y = torch.zeros_like(z) if grad_y is None else grad_y
    grad_z = None if grad_z is None or grad_z.numel() == 0 else grad_z
    options = ctx.eps, ctx.p, seed, ctx.needs_input_grad[1]
    of_z, of_x, *parameters = torch.ops.pyseq.layer_norm_backward(grad_y, grad_z, z, mean, rstd, weight, *options)
    grads = Gradients(of_z, of_x if seed is not None else None, *parameters)
    return (*_to_inputs(ctx, grads, weight), None, None, None)


torch.library.register_autograd("pyseq::layer_norm", _gradient, setup_context=_save, lib=_library)
