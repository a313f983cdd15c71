"""The linear layer ``y = x W^T + b``, and relu after it.

The products of its backward pass are ``grad x = g W`` and ``grad W = g^T x``, where g is the gradient of y, zero where
relu was; grad b, the sums of the columns of g, comes with the second.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from pyseq.ops import dispatch
from pyseq.ops.gemm import gemm_, pays

Activation = Literal["none", "relu"]

# Matrix products of other dtypes and devices are what torch's libraries are for.
dispatch.register_operation("linear", cpp=frozenset({torch.float32}), pays=lambda backend: pays(), library=True)

# With fewer, the copy of a factor takes as long as it saves, and the libraries of torch are as fast.
LEAST_ROWS = 256
LEAST_FEATURES = 32


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Activation = "none") -> Tensor:
    """``F.linear``, then relu if ``activation`` says so.

    Args:
        input: [..., C].
        weight: [F x C].
        bias: [F].

    Returns:
        [..., F].

    Raises:
        ValueError: an activation that there is not. What ``F.linear`` raises.
    """
    if activation not in ("none", "relu"):
        raise ValueError(f"the activation of a linear layer is 'none' or 'relu', not {activation!r}")
    relu = activation == "relu"
    if not _is_for_kernel(input, weight, bias):
        return reference(input, weight, bias, relu)
    if torch.compiler.is_compiling():
        result: Tensor = torch.ops.pyseq.linear(input, weight, bias, relu)
        return result
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, weight, bias)):
        return _Linear.apply(input, weight, bias, relu)
    return forward(input, weight, bias, relu)


def reference(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """The same in plain torch."""
    y = F.linear(input, weight, bias)
    return torch.relu(y) if relu else y


def _is_for_kernel(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if any(t.dtype != torch.float32 or t.device.type != "cpu" or t.layout != torch.strided for t in tensors):
        return False
    if torch.is_autocast_enabled("cpu") or weight.dim() != 2 or input.dim() == 0:
        return False
    features, classes = weight.size(1), weight.size(0)
    if input.size(-1) != features or (bias is not None and bias.shape != weight.shape[:1]):
        return False  # torch says what is wrong with them
    if min(features, classes) < LEAST_FEATURES or input.numel() < LEAST_ROWS * features:
        return False
    if not torch.compiler.is_compiling() and not _are_plain(tensors):
        return False
    return dispatch.choose("linear", "cpu", torch.float32) == "cpp"


def _are_plain(tensors: tuple[Tensor, ...]) -> bool:
    """Whether the tensors are their memory, and nothing watches what is done with them."""
    watched = torch._C._len_torch_dispatch_stack() > 0 or torch._C._are_functorch_transforms_active()
    if watched or forward_ad._current_level >= 0:
        return False
    return all(type(t) in (Tensor, nn.Parameter) and not t.is_neg() for t in tensors)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.size(-1))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """y, by the kernel."""
    y = x.new_empty(*x.shape[:-1], len(weight))
    gemm_(_rows(y), _rows(x), weight.t(), bias=bias, relu=relu)
    return y


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, y: Tensor | None, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias that are ``wanted``, by the kernel. ``y`` is given where relu was."""
    if y is not None:
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
    of_x, of_weight, of_bias = (None, None, None)
    g = _rows(grad)
    if wanted[0]:
        of_x = x.new_empty(x.shape)
        gemm_(_rows(of_x), g, weight)
    if wanted[1]:
        of_weight = weight.new_empty(weight.shape)
        of_bias = weight.new_empty(len(weight)) if wanted[2] else None
        gemm_(of_weight, g.t(), _rows(x), row_sums=of_bias)
    elif wanted[2]:
        of_bias = g.sum(dim=0)
    return of_x, of_weight, of_bias


def _differentiable_backward(
    grad: Tensor, x: Tensor, weight: Tensor, y: Tensor | None, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same in operations of torch, which have derivatives."""
    if y is not None:
        grad = torch.where(y > 0, grad, 0.0)
    g = _rows(grad)
    return (
        grad @ weight if wanted[0] else None,
        g.t() @ _rows(x) if wanted[1] else None,
        g.sum(dim=0) if wanted[2] else None,
    )


class _Linear(torch.autograd.Function):
    """The way of eager calls: straight to the kernel, without the dispatcher of torch.library."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        y = forward(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        x, weight, y = ctx.saved_tensors
        twice = torch.is_grad_enabled()  # derivatives will be asked of what is computed here
        compute = _differentiable_backward if twice or not _are_plain((grad,)) else backward
        return (*compute(grad, x, weight, y, ctx.needs_input_grad[:3]), None)


# The same for torch.compile, which needs operators that it can see. What is absent is a tensor without elements.
_library = torch.library.Library("pyseq", "FRAGMENT")
_library.define("linear(Tensor x, Tensor weight, Tensor? bias, bool relu) -> Tensor")
_library.define(
    "linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor? y, bool[3] wanted)"
    " -> (Tensor x, Tensor weight, Tensor bias)"
)


def _present(grads: tuple[Tensor | None, ...], like: Tensor) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0) if grad is None else grad for grad in grads)


def _backward(grad: Tensor, x: Tensor, weight: Tensor, y: Tensor | None, wanted: Any) -> tuple[Tensor, ...]:
    return _present(backward(grad, x, weight, y, wanted), x)


_library.impl("linear", forward, "CPU")
_library.impl("linear_backward", _backward, "CPU")


@torch.library.register_fake("pyseq::linear", lib=_library)
def _(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(0))


@torch.library.register_fake("pyseq::linear_backward", lib=_library)
def _(grad: Tensor, x: Tensor, weight: Tensor, y: Tensor | None, wanted: Any) -> tuple[Tensor, ...]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    return _present(tuple(x.new_empty(shape) if wants else None for shape, wants in zip(shapes, wanted)), x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, relu = inputs
    ctx.save_for_backward(x, weight, output if relu else None)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:3]
    grads = torch.ops.pyseq.linear_backward(grad, *ctx.saved_tensors, wanted)
    return (*(found if wants else None for found, wants in zip(grads, wanted)), None)


torch.library.register_autograd("pyseq::linear", _gradient, setup_context=_save, lib=_library)
