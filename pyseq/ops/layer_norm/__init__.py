"""Layer normalisation (Ba et al. 2016) of the last dimension, with dropout and a residual before it::

    z = dropout(x) + residual                                     rounded to the dtype of x
    y = (z - mean(z)) / sqrt(var(z) + eps) * weight + bias        var: the mean of squares, as in the paper

A transformer's blocks end (post-norm) or begin (pre-norm) with it. Arithmetic is fp32 or better. The forward pass reads
x and the residual and writes z and y, once each; the backward pass reads grad y and z and writes the gradients of x and
the residual. Sums for the gradients of weight and bias are taken in a fixed order. Dropout draws as
:func:`pyseq.ops.dropout` does.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.dropout import check_seed, limit
from pyseq.ops.dropout import reference as dropout_reference
from pyseq.ops.layer_norm.kernels import KERNELS, Options
from pyseq.ops.layer_norm.library import LayerNorm
from pyseq.ops.random import draw_seed

dispatch.register_operation("layer_norm", cpp=dispatch.KERNEL_DTYPES, triton=dispatch.KERNEL_DTYPES)

__all__ = ["layer_norm", "reference"]

_LONGEST_TRITON_ROW = 65536  # a program holds a row


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
        y, z = LayerNorm.apply(input, residual, weight, bias, options, seed, KERNELS[chosen])
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
