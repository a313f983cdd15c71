"""The 2-norm of many tensors together, and the factor that clips them to a norm, without waiting for the device.

    norm   = |scale| sqrt(sum_i x_i^2)
    factor = scale min(1, max_norm / (norm + 1e-6))

The factor is meant for :func:`pyseq.ops.adam_`, which applies it as it reads the gradients: clipping then costs no pass
over them. Squares are summed in fixed blocks of each tensor, so that the result depends neither on threads nor on where
the tensors lie. The norm is right to the last bits of fp32, and finite wherever it can be.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.gpu_memory import UploadedTable, stream_of, workspace
from pyseq.ops.segments import DLPACK_DEVICES, Memory, dlpack_device, is_dense

DTYPE_NUMBERS = {**dispatch.DTYPE_NUMBERS, torch.float64: 3}
CLIP_EPS = 1e-6

dispatch.register_operation(
    "grad_norm",
    cpp=frozenset(DTYPE_NUMBERS),
    triton=frozenset(DTYPE_NUMBERS),
    cuda=frozenset(DTYPE_NUMBERS),
)


class GradNorm(NamedTuple):
    """0-d fp32 tensors on the device of the gradients, views of one buffer. Nothing waits for them."""

    norm: Tensor  # the 2-norm of scale * all tensors together
    factor: Tensor  # scale * min(1, max_norm / (norm + 1e-6)); scale if there is no max_norm
    found_inf: Tensor  # 1 if the norm is inf or nan, else 0


@torch.no_grad()
def grad_norm(tensors: Sequence[Tensor], *, max_norm: float | None = None, scale: Tensor | float = 1.0) -> GradNorm:
    """The norm of ``scale * tensors`` and the factor that an update has to multiply the tensors by.

    Args:
        tensors: any shapes, strides and floating dtypes, mixed or not, on one device. They are not changed.
        max_norm: the norm to clip to; None does not clip.
        scale: what the tensors are to be multiplied by in any case, for example 1 / the sample size. A tensor has one
            element and is read on the device.

    Returns:
        See :class:`GradNorm`. Of no tensors: 0, ``scale``, 0, on the CPU.

    Raises:
        TypeError: a tensor that is not floating-point, or sparse.
        ValueError: tensors on several devices, or ``max_norm`` that is negative or nan.
    """
    _check_max_norm(max_norm)
    if torch.compiler.is_compiling():
        return norm_from_squares(sum_of_squares(tensors), max_norm=max_norm, scale=scale)
    return norm_of(tensors, _memory_of(tensors), max_norm, scale)


def norm_of(tensors: Sequence[Tensor], memory: Memory, max_norm: float | None, scale: Tensor | float) -> GradNorm:
    """:func:`grad_norm` of tensors of which it is known where they lie."""
    kernel, scale = _kernel(memory), _scale_on(memory.device, scale)
    if kernel is None:
        return norm_from_squares(reference(tensors, memory.device), max_norm=max_norm, scale=scale)
    return GradNorm(*kernel.grad_norm(memory.table, memory.device, max_norm, scale).unbind())


@torch.no_grad()
def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of all elements, 0-d fp64: what ranks add up before :func:`norm_from_squares`.

    Arguments and errors are those of :func:`grad_norm`.
    """
    if torch.compiler.is_compiling():
        total: Tensor = torch.ops.pyseq.sum_of_squares(list(tensors))
        return total
    memory = _memory_of(tensors)
    kernel = _kernel(memory)
    if kernel is None:
        return reference(tensors, memory.device)
    return kernel.sum_of_squares(memory.table, memory.device)


@torch.no_grad()
def norm_from_squares(total: Tensor, *, max_norm: float | None = None, scale: Tensor | float = 1.0) -> GradNorm:
    """:func:`grad_norm` of tensors whose squares add up to ``total`` (0-d fp64), on its device."""
    _check_max_norm(max_norm)
    scale = torch.as_tensor(_scale_on(total.device, scale), dtype=torch.float64, device=total.device)
    norm = (total.double().sqrt() * scale.abs()).float()
    clipped = scale if max_norm is None else scale * (max_norm / (norm.double() + CLIP_EPS)).clamp(max=1.0)
    found_inf = norm.isfinite().logical_not()
    return GradNorm(*torch.stack([norm, clipped.float(), found_inf.float()]).unbind())


def reference(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The sum of squares in fp64, in plain torch: what the kernels compute."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for tensor in tensors:
        total += tensor.detach().double().square().sum()
    return total


class Kernel:
    """A back end of this operation.

    ``table`` is int64 [tensors, 3] on the CPU, contiguous: the address of each tensor on ``device``, the number of its
    elements (maybe 0), which lie side by side there in whatever order, and its dtype as a number of ``DTYPE_NUMBERS``.
    ``scale`` is a number, or an fp32 tensor of one element on ``device``. A kernel neither waits for the device nor
    changes the tensors. The same values in tensors of the same sizes and dtypes give the same bits, wherever they lie.
    """

    @staticmethod
    def grad_norm(table: Tensor, device: torch.device, max_norm: float | None, scale: Tensor | float) -> Tensor:
        """{norm, factor, found_inf}: fp32 [3] on ``device``."""
        raise NotImplementedError

    @staticmethod
    def sum_of_squares(table: Tensor, device: torch.device) -> Tensor:
        """fp64, 0-d, on ``device``."""
        raise NotImplementedError


class CppKernel(Kernel):
    @staticmethod
    def grad_norm(table: Tensor, device: torch.device, max_norm: float | None, scale: Tensor | float) -> Tensor:
        out = torch.empty(3)
        number, address = (1.0, scale.data_ptr()) if isinstance(scale, Tensor) else (scale, 0)
        dispatch.required_core().grad_norm(
            table.data_ptr(),
            len(table),
            number,
            address,
            -1.0 if max_norm is None else max_norm,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    @staticmethod
    def sum_of_squares(table: Tensor, device: torch.device) -> Tensor:
        total = dispatch.required_core().sum_of_squares(table.data_ptr(), len(table), torch.get_num_threads())
        return torch.tensor(total, dtype=torch.float64)


class TritonKernel(Kernel):
    @staticmethod
    def grad_norm(table: Tensor, device: torch.device, max_norm: float | None, scale: Tensor | float) -> Tensor:
        from pyseq.kernels import grad_norm as kernels

        out = torch.empty(3, device=device)
        kernels.grad_norm(table, None, scale, max_norm, out)
        return out

    @staticmethod
    def sum_of_squares(table: Tensor, device: torch.device) -> Tensor:
        from pyseq.kernels import grad_norm as kernels

        squares = torch.empty((), dtype=torch.float64, device=device)
        kernels.grad_norm(table, squares, 1.0, None, None)
        return squares


class CudaKernel(Kernel):
    @staticmethod
    def grad_norm(table: Tensor, device: torch.device, max_norm: float | None, scale: Tensor | float) -> Tensor:
        out = torch.empty(3, device=device)
        number, address = (1.0, scale.data_ptr()) if isinstance(scale, Tensor) else (scale, 0)
        _launch_cuda(table, device, number, address, -1.0 if max_norm is None else max_norm, 0, out.data_ptr())
        return out

    @staticmethod
    def sum_of_squares(table: Tensor, device: torch.device) -> Tensor:
        squares = torch.empty((), dtype=torch.float64, device=device)
        _launch_cuda(table, device, 1.0, 0, -1.0, squares.data_ptr(), 0)
        return squares


_uploaded_segments = UploadedTable()


def _launch_cuda(table: Tensor, device: torch.device, *scale_and_results: float) -> None:
    native = dispatch.required_cuda()
    segments = torch.empty(len(table), 4, dtype=torch.int64)
    count, packs = native.norm_segments(table.data_ptr(), len(table), segments.data_ptr())
    with torch.cuda.device(device):
        stream = stream_of(device)
        uploaded = None
        if count > native.norm_inline_segments:
            uploaded = _uploaded_segments.get(segments[:count], device, stream)
        native.grad_norm(
            segments.data_ptr(),
            0 if uploaded is None else uploaded.data_ptr(),
            count,
            packs,
            *scale_and_results[:3],
            workspace(device, stream).data_ptr(),
            *scale_and_results[3:],
            stream,
        )


KERNELS: dict[str, type[Kernel]] = {"cpp": CppKernel, "triton": TritonKernel, "cuda": CudaKernel}


def _memory_of(tensors: Sequence[Tensor]) -> Memory:
    """Where the tensors lie. Raises TypeError or ValueError for what has no norm."""
    table = torch.empty(len(tensors), 3, dtype=torch.int64)
    core = dispatch.core()
    found = None if core is None else core.norm_table(tensors, table.data_ptr())
    if found is not None and found[1] in DLPACK_DEVICES:
        dtypes, device_type, index = found
        return Memory(table, dlpack_device(device_type, index), _dtypes_of_mask(dtypes), [])
    device = _common_device(tensors)
    dense = [tensor if is_dense(tensor) else tensor.contiguous() for tensor in tensors]
    for i, tensor in enumerate(dense):
        table[i] = torch.tensor([tensor.data_ptr(), tensor.numel(), DTYPE_NUMBERS.get(tensor.dtype, -1)])
    return Memory(table, device, frozenset(tensor.dtype for tensor in tensors), dense)


@functools.cache
def _dtypes_of_mask(mask: int) -> frozenset[torch.dtype]:
    return frozenset(dtype for dtype, number in DTYPE_NUMBERS.items() if mask >> number & 1)


def _kernel(memory: Memory) -> type[Kernel] | None:
    """The kernel for tensors of all these dtypes; None for the reference."""
    chosen = {dispatch.choose("grad_norm", memory.device.type, dtype) for dtype in memory.dtypes}
    return KERNELS[chosen.pop()] if len(chosen) == 1 and chosen != {"torch"} else None


def _common_device(tensors: Sequence[Tensor]) -> torch.device:
    for tensor in tensors:
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            raise TypeError(f"the norm is that of dense floating-point tensors, not {tensor.dtype}, {tensor.layout}")
        if tensor.device != tensors[0].device:
            raise ValueError(f"tensors are on {tensors[0].device} and on {tensor.device}: call once for each device")
    return tensors[0].device if tensors else torch.device("cpu")


def _check_max_norm(max_norm: float | None) -> None:
    if max_norm is not None and (math.isnan(max_norm) or max_norm < 0):
        raise ValueError(f"max_norm must be a number of at least 0, or None, not {max_norm}")


def _scale_on(device: torch.device, scale: Tensor | float) -> Tensor | float:
    if not isinstance(scale, Tensor):
        return float(scale)
    if scale.numel() != 1:
        raise ValueError(f"scale must have one element, not shape {tuple(scale.shape)}")
    return scale.detach().to(device, torch.float32, non_blocking=True).reshape(())


# The same for torch.compile, which needs an operator that it can see.
_library = torch.library.Library("pyseq", "FRAGMENT")
_library.define("sum_of_squares(Tensor[] tensors) -> Tensor")
_library.impl("sum_of_squares", sum_of_squares, "CompositeExplicitAutograd")


@torch.library.register_fake("pyseq::sum_of_squares", lib=_library)
def _(tensors: Sequence[Tensor]) -> Tensor:
    return torch.empty((), dtype=torch.float64, device=_common_device(tensors))
