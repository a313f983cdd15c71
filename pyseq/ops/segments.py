"""Where the tensors of an update lie: lists of tensors, checked, as a table of addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# A list for each, of one length; None for what there is not.
Columns = Sequence[Sequence[Tensor] | None]
COLUMNS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "masters or remainders")
HALF = (torch.bfloat16, torch.float16)


class Dtypes(NamedTuple):
    """The dtypes of an update. ``extra``: float32 for masters, int16 for remainders, None for neither."""

    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype
    extra: torch.dtype | None


class AdamPlan:
    """The table of an :func:`pyseq.ops.adam_` call, kept between calls with the same tensors.

    Every call compares the addresses of all tensors with the table, and makes a new one only where some have changed.

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
        self.table = torch.empty(0, 8, dtype=torch.int64)
        self.dtypes = Dtypes(torch.float32, torch.float32, torch.float32, None)
        self.device = torch.device("cpu")
        self.cache: dict[str, Any] = {}

    def update(self, columns: Columns) -> None:
        """Take in where the tensors of ``columns`` lie. Each must be dense, with the strides of its parameter."""
        params = columns[0]
        assert params is not None
        rows = [
            [0 if column is None else column[i].data_ptr() for column in columns] + [params[i].numel(), i]
            for i in range(len(params))
            if params[i].numel()
        ]
        table = torch.tensor(rows, dtype=torch.int64).view(-1, 8)
        if not torch.equal(table, self.table):
            self.table = table
            self.cache.clear()
        if params:
            self.dtypes, self.device = dtypes_of(columns), params[0].device


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
            if name != "grads" and any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride())):
                raise ValueError(f"{name}[{i}] is expanded: its elements share memory and cannot be updated")


def _check_dtypes(columns: Columns) -> None:
    for name, column in zip(COLUMNS, columns):
        for i, tensor in enumerate(column or ()):
            if tensor.dtype != column[0].dtype:  # type: ignore[index]
                raise TypeError(
                    f"{name}[{i}] is {tensor.dtype} and {name}[0] {column[0].dtype}: "  # type: ignore[index]
                    "call once for each combination of dtypes"
                )
    found = dtypes_of(columns)
    states = [column[0].dtype for column in columns[2:5] if column is not None]
    if not _takes(found) or any(dtype != found.state for dtype in states):
        raise TypeError(
            f"cannot update {found.param} params with {found.grad} grads, {states} states and {found.extra} masters or "
            "remainders: params are fp32, bf16, fp16 or fp64; grads of their dtype or fp32 (bf16 or fp16 beside fp32 "
            "params); states all fp32 or all bf16; masters fp32, beside bf16 or fp16 params; remainders int16, beside "
            "bf16 params; beside fp64 params everything is fp64"
        )


def _takes(found: Dtypes) -> bool:
    if found.param == torch.float64:
        return found == Dtypes(torch.float64, torch.float64, torch.float64, None)
    grads = (torch.float32, *HALF) if found.param == torch.float32 else (torch.float32, found.param)
    extras: dict[torch.dtype, tuple[torch.dtype | None, ...]] = {
        torch.float32: (None,),
        torch.bfloat16: (None, torch.float32, torch.int16),
        torch.float16: (None, torch.float32),
    }
    return (
        found.param in extras
        and found.grad in grads
        and found.state in (torch.float32, torch.bfloat16)
        and found.extra in extras[found.param]
    )
