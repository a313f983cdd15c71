"""Where the tensors of an update lie: lists of tensors, checked, as a table of addresses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyseq.ops import dispatch

# A list for each, of one length; None for what there is not.
Columns = Sequence[Sequence[Tensor] | None]
COLUMNS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "masters or remainders")
HALF = (torch.bfloat16, torch.float16)


# What the core calls dtypes (csrc/cpu/python_tensor.h) and DLPack calls devices.
TENSOR_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int16)
DLPACK_DEVICES = {1: "cpu", 2: "cuda"}


@functools.cache
def dlpack_device(device_type: int, index: int) -> torch.device:
    """The device that DLPack calls this."""
    name = DLPACK_DEVICES[device_type]
    return torch.device(name) if name == "cpu" else torch.device(name, index)


NO_ROWS = torch.empty(0, 8, dtype=torch.int64)

WriteBack = list[tuple[int, Tensor, Tensor]]  # the column of a tensor, it, and the copy that is updated in its place


class Dtypes(NamedTuple):
    """The dtypes of an update. ``extra``: float32 for masters, int16 for remainders, None for neither."""

    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype
    extra: torch.dtype | None


class Memory(NamedTuple):
    """Where tensors lie whose norm is to be taken: the table of pyseq.ops.grad_norm.Kernel."""

    table: Tensor  # int64 [tensors, 3]
    device: torch.device
    dtypes: frozenset[torch.dtype]
    copies: list[Tensor]  # of tensors that leave gaps or overlap: the table has their addresses


def increment_version(tensors: Sequence[Tensor]) -> None:
    """Tell autograd that ``tensors`` change, so that it refuses a backward pass that needs what they were."""
    core = dispatch.core()
    if core is None or not core.increment_versions(tensors):
        torch.autograd.graph.increment_version(tensors)


class AdamPlan:
    """The table of an :func:`pyseq.ops.adam_` call, kept between calls with the same tensors.

    Every call compares the addresses of all tensors with the table, and makes a new one only where some have changed. A
    caller that knows that nothing but gradients can have moved calls :meth:`follow` first.

    Attributes:
        table: int64 [rows, 8] on the CPU, contiguous. A row is a stretch of memory:
            {param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, master or remainder, numel, key}. The first six are
            addresses, 0 for what there is not; ``numel`` is positive and counts elements; ``key`` is the place of the
            tensor in the lists. Tensors that follow each other in every column are one row, with the key of the first,
            unless states are bf16: there an element is known by its key and its place in the tensor.
        dtypes: of the tensors.
        device: of all of them.
        cache: for kernels: what they derive from the table, for example its copy on a GPU. Emptied when it changes.
    """

    def __init__(self) -> None:
        self.table = NO_ROWS
        self.dtypes = Dtypes(torch.float32, torch.float32, torch.float32, None)
        self.device = torch.device("cpu")
        self.cache: dict[str, Any] = {}
        self._native: Any = None  # the core's AdamTable; None where it cannot read the tensors
        self._described: tuple[list[int], int, int] | None = None  # dtypes and device as the core names them
        self._gradients: Memory | None = None  # as gradients() returns it; None where they have moved

    def update(self, columns: Columns) -> WriteBack:
        """Take in where the tensors of ``columns`` lie.

        Tensors that are not dense, or laid out otherwise than their parameter, are replaced by copies; the result says
        which to write back after the update.

        Raises:
            TypeError, ValueError: the tensors cannot be updated together; see :func:`check_columns`.
        """
        core = dispatch.core()
        self._gradients = None
        self._native = self._native or (None if core is None else core.AdamTable())
        if self._native is None or not self._native.read(tuple(columns)) or not self._take():
            self._native = None
            check_columns(columns)
            return self._take_slowly(columns)
        return []

    def follow(self, params: list[Tensor]) -> bool:
        """Take in where the gradients of ``params`` lie, which are those of the last :meth:`update`.

        Parameters are looked at; all other tensors are taken to lie where they did.

        Returns:
            False where the parameters or the kind of gradients have changed: :meth:`update` then.
        """
        follows = self._native is not None and bool(self._native.follow(params))
        if follows and self._native.moved():
            self._gradients = None
            self._set_table_if_new()
        return follows

    def gradients(self) -> Memory:
        """Where the gradients lie, after :meth:`follow`."""
        if self._gradients is None:
            rows = torch.frombuffer(self._native.norm_rows(), dtype=torch.int64).view(-1, 3)
            self._gradients = Memory(rows, self.device, frozenset([self.dtypes.grad]), [])
        return self._gradients

    def _take(self) -> bool:
        """Take what the core has read; False where it is not something to update."""
        described = self._native.described()
        if described != self._described:
            numbers, device_type, index = described
            kinds = [None if number < 0 else TENSOR_TYPES[number] for number in numbers]
            if device_type not in DLPACK_DEVICES or not _takes(kinds):
                return False
            self.dtypes = Dtypes(kinds[0], kinds[1], kinds[2], kinds[5])  # type: ignore[arg-type]
            self.device = dlpack_device(device_type, index)
            self._described = described
        self._set_table_if_new()
        return True

    def _set_table_if_new(self) -> None:
        if not self._native.same_rows(self.table.data_ptr(), len(self.table)):
            rows = self._native.rows()
            self._set_table(torch.frombuffer(rows, dtype=torch.int64).view(-1, 8) if rows else NO_ROWS)

    def _take_slowly(self, columns: Columns) -> WriteBack:
        params = columns[0]
        assert params is not None
        self._described = None
        rows: list[list[int]] = []
        back: WriteBack = []
        for i, param in enumerate(params):
            tensors = [None if column is None else column[i] for column in columns]
            flat = _same_layout(tensors)
            for place, (old, new) in enumerate(zip(tensors, flat)):
                if old is not None and new is not None and old is not new:
                    back.append((place, old, new))
            if param.numel():
                rows.append([0 if tensor is None else tensor.data_ptr() for tensor in flat] + [param.numel(), i])
        table = torch.tensor(rows, dtype=torch.int64).view(-1, 8)
        if not torch.equal(table, self.table):
            self._set_table(table)
        if params:
            self.dtypes, self.device = dtypes_of(columns), params[0].device
        return back

    def _set_table(self, table: Tensor) -> None:
        self.table = table
        self.cache.clear()


def _same_layout(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors of a row, or copies, all dense and laid out as the parameter or else contiguous."""
    param = tensors[0]
    assert param is not None
    order = param if is_dense(param) else param.contiguous()

    def fitting(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or (_strides(tensor) == _strides(order) and not tensor.is_neg()):
            return tensor
        return torch.empty_like(order, dtype=tensor.dtype, memory_format=torch.preserve_format).copy_(tensor)

    return [fitting(tensor) for tensor in tensors]


def _strides(tensor: Tensor) -> list[int]:
    """The strides that matter."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride()) if size > 1]


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill ``numel`` places in memory, in whatever order."""
    return tensor.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def dtypes_of(columns: Columns) -> Dtypes:
    """The dtypes of lists that are not empty."""
    param, grad, exp_avg, _, _, extra = (None if column is None else column[0].dtype for column in columns)
    assert param is not None and grad is not None and exp_avg is not None
    return Dtypes(param, grad, exp_avg, extra)


def check_columns(columns: Columns) -> None:
    """Raise TypeError or ValueError where lengths, shapes, devices or dtypes do not fit, or a tensor is expanded."""
    params = columns[0]
    assert params is not None
    for name, column in zip(COLUMNS, columns):
        if column is not None and len(column) != len(params):
            raise ValueError(f"{len(params)} params and {len(column)} {name}: the lists must be of one length")
    if not params:
        return
    _check_dtypes(columns)
    device = params[0].device
    for name, column in zip(COLUMNS, columns):
        for i, tensor in enumerate(column or ()):
            if tensor.layout is not torch.strided:
                raise TypeError(f"{name}[{i}] is of layout {tensor.layout}: only dense tensors can be updated")
            if tensor.shape != params[i].shape:
                raise ValueError(f"{name}[{i}] has shape {tuple(tensor.shape)}, its param {tuple(params[i].shape)}")
            if tensor.device != device:
                raise ValueError(f"{name}[{i}] is on {tensor.device}, params[0] on {device}: call once for each device")
            expanded = any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride()))
            if expanded and tensor.numel() and name != "grads":
                raise ValueError(f"{name}[{i}] is expanded: its elements share memory and cannot be updated")


def _check_dtypes(columns: Columns) -> None:
    for name, column in zip(COLUMNS, columns):
        for i, tensor in enumerate(column or ()):
            if tensor.dtype != column[0].dtype:  # type: ignore[index]
                raise TypeError(
                    f"{name}[{i}] is {tensor.dtype} and {name}[0] {column[0].dtype}: "  # type: ignore[index]
                    "call once for each combination of dtypes"
                )
    found = [None if column is None else column[0].dtype for column in columns]
    if not _takes(found):
        param, grad, *states, extra = found
        raise TypeError(
            f"cannot update {param} params with {grad} grads, {states} states and {extra} masters or remainders: "
            "params are fp32, bf16, fp16 or fp64; grads of their dtype or fp32 (bf16 or fp16 beside fp32 params); "
            "states all fp32 or all bf16; masters fp32, beside bf16 or fp16 params; remainders int16, beside bf16 "
            "params; beside fp64 params everything is fp64"
        )


def _takes(found: Sequence[torch.dtype | None]) -> bool:
    """Whether there is an update of params, grads, three states and masters or remainders of these dtypes."""
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, extra = found
    if exp_avg_sq != exp_avg or max_exp_avg_sq not in (None, exp_avg):
        return False
    if param == torch.float64:
        return grad == exp_avg == torch.float64 and extra is None
    grads = (torch.float32, *HALF) if param == torch.float32 else (torch.float32, param)
    extras: dict[torch.dtype | None, tuple[torch.dtype | None, ...]] = {
        torch.float32: (None,),
        torch.bfloat16: (None, torch.float32, torch.int16),
        torch.float16: (None, torch.float32),
    }
    fits = param in extras and grad in grads and extra in extras[param]
    return fits and exp_avg in (torch.float32, torch.bfloat16)
