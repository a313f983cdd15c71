"""cross_entropy for torch.compile, which needs an operator that it can see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.cross_entropy.autograd import second_derivative
from pyseq.ops.cross_entropy.kernels import KERNELS, CppKernel, Kernel, Options, TritonKernel, allocate

_library = torch.library.Library("pyseq", "FRAGMENT")
_OPTIONS = "float label_smoothing, str smoothing_form, float z_loss, float soft_cap, Tensor? weight, int ignore_index"
_library.define(
    f"cross_entropy(Tensor logits, Tensor target, {_OPTIONS})"
    " -> (Tensor loss, Tensor nll, Tensor correct, Tensor stats)"
)
_library.define(
    f"cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor stats, {_OPTIONS}) -> Tensor"
)


def _register(device: str, kernel_of: Callable[[Tensor], type[Kernel]]) -> None:
    def forward(logits: Tensor, target: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *options, ignore_index = arguments
        return tuple(kernel_of(logits).forward(logits, target, Options(*options), ignore_index))

    def backward(grad_loss: Tensor, logits: Tensor, target: Tensor, stats: Tensor, *arguments: Any) -> Tensor:
        *options, ignore_index = arguments
        return kernel_of(logits).backward(grad_loss, logits, target, stats, Options(*options), ignore_index)

    _library.impl("cross_entropy", forward, device)
    _library.impl("cross_entropy_backward", backward, device)


def _gpu_kernel(logits: Tensor) -> type[Kernel]:
    chosen = dispatch.choose("cross_entropy", logits.device.type, logits.dtype)
    return KERNELS.get(chosen, TritonKernel)  # the graph may be older than a backend("torch") that it runs in


_register("CPU", lambda logits: CppKernel)
_register("CUDA", _gpu_kernel)


@torch.library.register_fake("pyseq::cross_entropy", lib=_library)
def _(logits: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, ...]:
    return tuple(allocate(logits))


@torch.library.register_fake("pyseq::cross_entropy_backward", lib=_library)
def _(grad_loss: Tensor, logits: Tensor, *options: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, *ctx.options, weight, ctx.ignore_index = inputs
    _, nll, correct, stats = output
    ctx.save_for_backward(logits, target, stats, weight)
    ctx.mark_non_differentiable(nll, correct, stats)


def _gradient(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    logits, target, stats, weight = ctx.saved_tensors
    grad = torch.ops.pyseq.cross_entropy_backward(
        grad_loss, logits, target, stats, *ctx.options, weight, ctx.ignore_index
    )
    return grad, *[None] * 7


torch.library.register_autograd("pyseq::cross_entropy", _gradient, setup_context=_save, lib=_library)
torch.library.register_autograd("pyseq::cross_entropy_backward", second_derivative, lib=_library)
