"""Layer normalisation (Ba et al. 2016) of the last dimension, with dropout and a residual before it::

    z = dropout(x) + residual                                     rounded to the dtype of x
    y = (z - mean(z)) / sqrt(var(z) + eps) * weight + bias        var: the mean of squares, as in the paper

A transformer's blocks end (post-norm) or begin (pre-norm) with it. Arithmetic is fp32 or better. The forward pass reads
x and the residual and writes z and y, once each; the backward pass reads grad y and z and writes the gradients of x and
the residual. Sums for the gradients of weight and bias are taken in a fixed order. Dropout draws as
:func:`pyseq.ops.dropout` does.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.dropout import check_seed, limit, scale
from pyseq.ops.dropout import reference as dropout_reference
from pyseq.ops.random import draw_seed

dispatch.register_operation("layer_norm", cpp=dispatch.KERNEL_DTYPES, triton=dispatch.KERNEL_DTYPES)

_LONGEST_TRITON_ROW = 65536  # a program holds a row


class Options(NamedTuple):
    eps: float
    p: float


class Gradients(NamedTuple):
    residual: Tensor | None  # that of z
    x: Tensor | None  # None where it is that of z
    weight: Tensor  # fp32
    bias: Tensor  # fp32


@overload
def layer_norm(
    input: Tensor,
    weight: Tensor | None = ...,
    bias: Tensor | None = ...,
    eps: float = ...,
    *,
    residual: Tensor | None = ...,
    p: float = ...,
    seed: Tensor | None = ...,
    return_sum: Literal[False] = ...,
) -> Tensor: ...


@overload
def layer_norm(
    input: Tensor,
    weight: Tensor | None = ...,
    bias: Tensor | None = ...,
    eps: float = ...,
    *,
    residual: Tensor | None = ...,
    p: float = ...,
    seed: Tensor | None = ...,
    return_sum: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def layer_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    return_sum: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Layer norm of ``dropout(input) + residual`` over the last dimension.

    Args:
        input: [..., C], floating-point.
        weight, bias: [C], any floating dtype.
        eps: added to the variance.
        residual: of the shape, dtype and device of ``input``.
        p: dropout probability, in [0, 1].
        seed: for dropout, see :func:`pyseq.ops.dropout`.
        return_sum: return z too, which a pre-norm block carries on.

    Returns:
        y, or (y, z), of the shape and dtype of ``input``. Differentiable once.

    Raises:
        ValueError, TypeError: an argument does not fit.
    """
    _check(input, weight, bias, residual, p, seed)
    chosen = dispatch.choose("layer_norm", input.device.type, input.dtype)
    drops = limit(p) >= 0
    if drops and seed is None:
        seed = draw_seed(input.device)
    options = Options(float(eps), float(p) if drops else 0.0)
    seed = seed if drops else None
    if chosen == "torch" or (chosen == "triton" and input.size(-1) > _LONGEST_TRITON_ROW):
        y, z = reference(input, residual, weight, bias, options, seed)
    elif torch.compiler.is_compiling():
        y, z, _, _ = torch.ops.pyseq.layer_norm(input, residual, weight, bias, *options, seed)
    else:
        y, z = _LayerNorm.apply(input, residual, weight, bias, options, seed, KERNELS[chosen])
    plain = residual is None and not drops
    return (y, input if plain else z) if return_sum else y


def reference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    options: Options,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y and z in plain torch: what the kernels compute."""
    wide = torch.promote_types(x.dtype, torch.float32)
    z = x.to(wide)
    if seed is not None:
        z = dropout_reference(z, None, options.p, seed)
    if residual is not None:
        z = z + residual.to(wide)
    z = z.to(x.dtype)
    weight, bias = (None if t is None else t.to(wide) for t in (weight, bias))
    y = F.layer_norm(z.to(wide), x.shape[-1:], weight, bias, options.eps)
    return y.to(x.dtype), z


def _check(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, p: float, seed: Tensor | None
) -> None:
    if not input.is_floating_point():
        raise TypeError(f"layer_norm is for floating-point tensors, not {input.dtype}")
    if input.dim() == 0:
        raise ValueError("layer_norm needs a dimension to normalise; the input has none")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"the dropout probability must be in [0, 1], not {p}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.shape != input.shape[-1:]:
            raise ValueError(f"{name} {tuple(tensor.shape)} does not fit the last dimension of {tuple(input.shape)}")
        if tensor.device != input.device or not tensor.is_floating_point():
            raise TypeError(f"{name} ({tensor.dtype}, {tensor.device}) does not fit the input, on {input.device}")
    if residual is not None:
        if residual.shape != input.shape:
            raise ValueError(f"residual {tuple(residual.shape)} and input {tuple(input.shape)} differ in shape")
        if residual.dtype != input.dtype or residual.device != input.device:
            raise TypeError(
                f"residual ({residual.dtype}, {residual.device}) and input ({input.dtype}, {input.device}) differ"
            )
    check_seed(seed, input)


def _fp32(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach().float().contiguous()


class Kernel:
    """A back end of this operation. Tensors lie on its device."""

    @staticmethod
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        options: Options,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """y, z (None where it is x), and of each row the mean and 1 / sqrt(var + eps), fp32."""
        raise NotImplementedError

    @staticmethod
    def backward(
        grad_y: Tensor,
        grad_z: Tensor | None,
        z: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        options: Options,
        seed: Tensor | None,
        wants_residual: bool,
    ) -> Gradients:
        """The gradients. ``wants_residual`` False leaves out that of the residual where it is not that of x."""
        raise NotImplementedError


def _allocate(x: Tensor, keeps_z: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = math.prod(x.shape[:-1])  # numel() of a shape makes torch.compile take it for a constant
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return y, torch.empty_like(y) if keeps_z else None, mean, rstd


def _allocate_gradients(z: Tensor, drops: bool, wants_residual: bool) -> Gradients:
    def like_z() -> Tensor:
        return torch.empty_like(z, memory_format=torch.contiguous_format)

    return Gradients(
        like_z() if wants_residual or not drops else None,
        like_z() if drops else None,
        z.new_empty(z.size(-1), dtype=torch.float32),
        z.new_empty(z.size(-1), dtype=torch.float32),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _shape(x: Tensor) -> tuple[int, int]:
    """Rows and columns."""
    return math.prod(x.shape[:-1]), x.size(-1)


class CppKernel(Kernel):
    @staticmethod
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        options: Options,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        weight, bias = _fp32(weight), _fp32(bias)
        y, z, mean, rstd = _allocate(x, keeps_z=residual is not None or seed is not None)
        dispatch.required_core().layer_norm_forward(
            dispatch.DTYPE_NUMBERS[x.dtype],
            *_shape(x),
            *(_address(t) for t in (weight, bias)),
            options.p,
            *(_address(t) for t in (seed, x, residual)),
            options.eps,
            *(_address(t) for t in (y, z, mean, rstd)),
            torch.get_num_threads(),
        )
        return y, z, mean, rstd

    @staticmethod
    def backward(
        grad_y: Tensor,
        grad_z: Tensor | None,
        z: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        options: Options,
        seed: Tensor | None,
        wants_residual: bool,
    ) -> Gradients:
        grad_y, z, weight = grad_y.contiguous(), z.contiguous(), _fp32(weight)
        grad_z = None if grad_z is None else grad_z.contiguous()
        out = _allocate_gradients(z, seed is not None, wants_residual)
        dispatch.required_core().layer_norm_backward(
            dispatch.DTYPE_NUMBERS[z.dtype],
            *_shape(z),
            _address(weight),
            0,
            options.p,
            *(_address(t) for t in (seed, grad_y, grad_z, z, mean, rstd, *out)),
            torch.get_num_threads(),
        )
        return out


class TritonKernel(Kernel):
    @staticmethod
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        options: Options,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        from pyseq.kernels import layer_norm as kernels

        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        y, z, mean, rstd = _allocate(x, keeps_z=residual is not None or seed is not None)
        draws = kernels.Draws(seed, limit(options.p), scale(options.p))
        kernels.forward(x, residual, _fp32(weight), _fp32(bias), options.eps, draws, y, z, mean, rstd)
        return y, z, mean, rstd

    @staticmethod
    def backward(
        grad_y: Tensor,
        grad_z: Tensor | None,
        z: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        options: Options,
        seed: Tensor | None,
        wants_residual: bool,
    ) -> Gradients:
        from pyseq.kernels import layer_norm as kernels

        grad_y, z = grad_y.contiguous(), z.contiguous()
        grad_z = None if grad_z is None else grad_z.contiguous()
        out = _allocate_gradients(z, seed is not None, wants_residual)
        draws = kernels.Draws(seed, limit(options.p), scale(options.p))
        kernels.backward(grad_y, grad_z, z, mean, rstd, _fp32(weight), draws, *out)
        return out


KERNELS: dict[str, type[Kernel]] = {"cpp": CppKernel, "triton": TritonKernel}


class _LayerNorm(torch.autograd.Function):
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
    y, z, mean, rstd = _allocate(x, keeps_z=residual is not None or seed is not None)
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
    return tuple(_present(grad, z) for grad in _allocate_gradients(z, seed is not None, wants_residual))


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
