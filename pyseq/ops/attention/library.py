"""How attention enters the autograd graph: straight in eager calls, as an operator under torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyseq.ops.attention import kernels
from pyseq.ops.attention.definition import Options
from pyseq.ops.attention.kernels import CppKernel, Inputs, Kernel, TritonKernel


class Attention(torch.autograd.Function):
    """The way of eager calls: straight to the kernel, without the dispatcher of torch.library."""

    @staticmethod
    def forward(
        ctx: Any,
        packed: Tensor,
        query: Tensor | None,
        query_offsets: Tensor,
        key_offsets: Tensor,
        seed: Tensor | None,
        options: Options,
        kernel: type[Kernel],
    ) -> Tensor:
        inputs = Inputs(packed, query, query_offsets, key_offsets, seed)
        out, log_sums = kernels.forward(kernel, inputs, options)
        ctx.save_for_backward(out, log_sums, *inputs)
        ctx.options = kernel, options
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        out, log_sums, *inputs = ctx.saved_tensors
        kernel, options = ctx.options
        grads = kernels.backward(kernel, grad_out, out, log_sums, Inputs(*inputs), options)
        return (*grads, None, None, None, None, None)


_library = torch.library.Library("pyseq", "FRAGMENT")
_INPUTS = (
    "Tensor packed, Tensor? query, Tensor query_offsets, Tensor key_offsets, Tensor? seed, SymInt longest_query, "
    "SymInt longest_key, bool causal, float scale, float p"
)
_library.define(f"attention({_INPUTS}) -> (Tensor out, Tensor log_sums)")
# The gradient of a query that is part of packed is a tensor without elements.
_library.define(
    f"attention_backward(Tensor grad_out, Tensor out, Tensor log_sums, {_INPUTS}) -> (Tensor packed, Tensor query)"
)


def _sorted(arguments: tuple[Any, ...]) -> tuple[Inputs, Options]:
    return Inputs(*arguments[:5]), Options(*arguments[5:])


def _present(grads: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    packed, query = grads
    return packed, packed.new_empty(0) if query is None else query


def _register(device: str, kernel: type[Kernel]) -> None:
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return kernels.forward(kernel, *_sorted(arguments))

    def backward(grad_out: Tensor, out: Tensor, log_sums: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        return _present(kernels.backward(kernel, grad_out, out, log_sums, *_sorted(arguments)))

    _library.impl("attention", forward, device)
    _library.impl("attention_backward", backward, device)


_register("CPU", CppKernel)
_register("CUDA", TritonKernel)


@torch.library.register_fake("pyseq::attention", lib=_library)
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    return kernels.allocate(_sorted(arguments)[0])


@torch.library.register_fake("pyseq::attention_backward", lib=_library)
def _(grad_out: Tensor, out: Tensor, log_sums: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return _present(kernels.allocate_gradients(_sorted(arguments)[0]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, ctx.options = inputs[:5], inputs[5:]
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad_out: Tensor, unused: Tensor) -> tuple[Tensor | None, ...]:
    packed, query = torch.ops.pyseq.attention_backward(grad_out, *ctx.saved_tensors, *ctx.options)
    return packed, query if ctx.needs_input_grad[1] else None, *[None] * 8


torch.library.register_autograd("pyseq::attention", _gradient, setup_context=_save, lib=_library)
