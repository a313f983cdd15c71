"""Tables of memory in Triton: kernels that run over many tensors in one launch.

A table is int64 [rows, WIDTH] on the device; its last column is the number of the row's first chunk, counted over all
rows. A program works on one chunk.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def with_chunks(table: Tensor, numel_column: int, chunk: int) -> tuple[Tensor, int]:
    """``table`` (on the CPU) without rows of no elements and with the column of first chunks; and all chunks."""
    table = table[table[:, numel_column] > 0]
    counts = (table[:, numel_column] + (chunk - 1)) // chunk
    ends = counts.cumsum(0)
    return torch.cat([table, (ends - counts).unsqueeze(1)], dim=1), int(ends[-1]) if len(table) else 0


class DeviceTable:
    """A table's copy on a device, and what else a launch needs of it; made again where it or the stream has changed."""

    _of_graphs: list[Tensor] = []  # what replays of CUDA graphs read stays where it is

    def __init__(self) -> None:
        self._key: tuple[torch.device, int] | None = None
        self._table = torch.empty(0)
        self._found: tuple[Tensor, Any] = self._table, None

    def get(
        self, table: Tensor, device: torch.device, prepare: Callable[[Tensor], tuple[Tensor, Any]]
    ) -> tuple[Tensor, Any]:
        """What ``prepare`` makes of ``table`` (on the CPU): a tensor, which is moved to ``device``, and anything.

        Raises:
            RuntimeError: a CUDA graph is being captured, and the copy is not there yet.
        """
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        key = device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        known = self._key is not None and self._key[0] == device and torch.equal(self._table, table)
        if capturing:
            if not known:
                raise RuntimeError("before this is captured in a CUDA graph, call it once with the same tensors")
            self._of_graphs.append(self._found[0])
        elif not known or self._key != key:
            rows, rest = prepare(table)
            self._key, self._table = key, table.clone()
            self._found = rows.to(device, non_blocking=True), rest
        return self._found


def search_steps(rows: int) -> int:
    """The halvings that find one row among ``rows``."""
    return max(rows - 1, 0).bit_length()


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Kernels are launched on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def bits_of(number: float) -> int:
    """The bits of a double. Triton would take a Python float for fp32."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


@triton.jit
def double_of(bits):
    """The double with these bits (int64, or int32 where they are few)."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def row_of_chunk(table, rows, steps, chunk, WIDTH: tl.constexpr):
    """A pointer to the row whose chunk this is."""
    low = chunk * 0
    high = low + rows - 1
    for _ in range(steps):
        middle = (low + high + 1) // 2
        here = tl.load(table + middle * WIDTH + (WIDTH - 1)) <= chunk
        low = tl.where(here, middle, low)
        high = tl.where(here, high, middle - 1)
    return table + low * WIDTH


@triton.jit
def column(row, index: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The address in a column of a row. ``ALIGNED``: it is a multiple of 16, so that threads may access 16 bytes."""
    pointer = tl.load(row + index).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def elements(row, index: tl.constexpr, ALIGNED: tl.constexpr):
    """The number of elements in a column of a row. ``ALIGNED``: a multiple of 16, which masks need to be."""
    count = tl.load(row + index)
    if ALIGNED:
        count = tl.multiple_of(count, 16)
    return count


def is_aligned(addresses_and_sizes: Tensor) -> bool:
    """Whether :func:`column` and :func:`elements` may be told so."""
    return bool((addresses_and_sizes % 16 == 0).all())


@triton.jit
def as_float32(values):
    """``values`` in fp32. By their bits if they are bf16: the interpreter takes subnormal bf16 numbers for 0."""
    if values.dtype == tl.bfloat16:
        return (values.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return values.to(tl.float32)
