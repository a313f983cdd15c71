"""The back ends of attention behind the torch reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.attention.checks import check_offsets
from pyseq.ops.attention.definition import Options
from pyseq.ops.dropout import limit, scale


class Inputs(NamedTuple):
    """What attention reads. In self-attention there is no ``query``: it is the last third of ``packed``."""

    packed: Tensor  # [Tk, 3 or 2, H, D]: key, value and perhaps query
    query: Tensor | None  # [Tq, H, D]
    query_offsets: Tensor
    key_offsets: Tensor
    seed: Tensor | None

    def heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value: [T, H, D] each."""
        return split(self.packed, self.query)


def split(packed: Tensor, query: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    key, value, *rest = packed.unbind(1)
    return rest[0] if query is None else query, key, value


def check(inputs: Inputs, options: Options) -> None:
    query, key, _ = inputs.heads()
    check_offsets("query_segments", inputs.query_offsets, options.longest_query, query.size(0))
    check_offsets("key_segments", inputs.key_offsets, options.longest_key, key.size(0))


def allocate(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The output [Tq, H, D] and the log-sum-exp [Tq, H]."""
    query, _, _ = inputs.heads()
    out = query.new_empty(query.shape)
    return out, query.new_empty(query.shape[:2], dtype=torch.float32)


def allocate_gradients(inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    """The gradients of ``packed`` and ``query``."""
    packed, query = inputs.packed, inputs.query
    return packed.new_empty(packed.shape), None if query is None else query.new_empty(query.shape)


class Kernel:
    """A back end of this operation. Tensors lie on its device; the last dimension of each is contiguous."""

    @staticmethod
    def forward(inputs: Inputs, options: Options, out: Tensor, log_sums: Tensor) -> None:
        """Fill the output, and of each query the log of the sum of exp of its scaled scores, fp32."""
        raise NotImplementedError

    @staticmethod
    def backward(
        grad_out: Tensor,
        out: Tensor,
        log_sums: Tensor,
        inputs: Inputs,
        options: Options,
        grad_packed: Tensor,
        grad_query: Tensor | None,
    ) -> None:
        """Fill the gradients."""
        raise NotImplementedError


def _rows(tensor: Tensor) -> tuple[int, int, int]:
    """Address and strides of [T, H, D], as the core takes them."""
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1)


def _shape(inputs: Inputs, options: Options) -> tuple[Any, ...]:
    query, _, _ = inputs.heads()
    return (
        dispatch.DTYPE_NUMBERS[query.dtype],
        inputs.query_offsets.numel() - 1,
        *query.shape[1:],
        (inputs.query_offsets.data_ptr(), inputs.key_offsets.data_ptr()),
        (
            options.longest_key,
            options.causal,
            options.scale,
            options.p,
            0 if inputs.seed is None else inputs.seed.data_ptr(),
        ),
    )


class CppKernel(Kernel):
    @staticmethod
    def forward(inputs: Inputs, options: Options, out: Tensor, log_sums: Tensor) -> None:
        tensors = map(_rows, (*inputs.heads(), out))
        dispatch.required_core().attention_forward(
            *_shape(inputs, options), *tensors, log_sums.data_ptr(), torch.get_num_threads()
        )

    @staticmethod
    def backward(
        grad_out: Tensor,
        out: Tensor,
        log_sums: Tensor,
        inputs: Inputs,
        options: Options,
        grad_packed: Tensor,
        grad_query: Tensor | None,
    ) -> None:
        dispatch.required_core().attention_backward(
            *_shape(inputs, options),
            *map(_rows, (*inputs.heads(), out, grad_out)),
            log_sums.data_ptr(),
            *map(_rows, split(grad_packed, grad_query)),
            torch.get_num_threads(),
        )


class TritonKernel(Kernel):
    @staticmethod
    def forward(inputs: Inputs, options: Options, out: Tensor, log_sums: Tensor) -> None:
        from pyseq.kernels import attention as kernels

        draws = kernels.Draws(inputs.seed, limit(options.p), scale(options.p))
        kernels.forward(inputs, options, draws, out, log_sums, wide=not out.is_cuda)

    @staticmethod
    def backward(
        grad_out: Tensor,
        out: Tensor,
        log_sums: Tensor,
        inputs: Inputs,
        options: Options,
        grad_packed: Tensor,
        grad_query: Tensor | None,
    ) -> None:
        from pyseq.kernels import attention as kernels

        draws = kernels.Draws(inputs.seed, limit(options.p), scale(options.p))
        grads = split(grad_packed, grad_query)
        kernels.backward(grad_out, out, log_sums, inputs, options, draws, grads, wide=not out.is_cuda)


KERNELS: dict[str, type[Kernel]] = {"cpp": CppKernel, "triton": TritonKernel}


def readable(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy, with its last dimension contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.size(-1) == 1 else tensor.contiguous()


def forward(kernel: type[Kernel], inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """The output [Tq, H, D] and the log-sum-exp [Tq, H]."""
    inputs = _with_contiguous_dims(inputs)
    check(inputs, options)
    out, log_sums = allocate(inputs)
    kernel.forward(inputs, options, out, log_sums)
    return out, log_sums


def backward(
    kernel: type[Kernel], grad_out: Tensor, out: Tensor, log_sums: Tensor, inputs: Inputs, options: Options
) -> tuple[Tensor, Tensor | None]:
    """The gradients of ``packed`` and ``query``."""
    inputs = _with_contiguous_dims(inputs)
    grads = allocate_gradients(inputs)
    kernel.backward(readable(grad_out), out, log_sums, inputs, options, *grads)
    return grads


def _with_contiguous_dims(inputs: Inputs) -> Inputs:
    query = None if inputs.query is None else readable(inputs.query)
    return inputs._replace(packed=readable(inputs.packed), query=query)
