"""The state that Adam keeps for a parameter: which tensors, of which dtypes, where they lie, how they are loaded.

    step             fp32, 0-d, on the parameter's device; one tensor for all parameters that have made the same steps
    exp_avg          fp32, or bf16 (``state_dtype``); fp64 for fp64 parameters
    exp_avg_sq       the same
    max_exp_avg_sq   the same; with amsgrad
    master           fp32: what a 16-bit parameter is the rounding of ("whole")
    remainder        int16: the bits of the master that a bf16 parameter does not have ("remainder")

The keys are those of torch.optim.Adam, and the last two. For a parameter that is a DTensor they are DTensors too.
"""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pyseq.errors import CheckpointError
from pyseq.ops.grad_norm import is_dense
from pyseq.optim.sharded import is_dtensor, local, part_like, spread_like

Masters = Literal["auto", "none", "whole", "remainder"]
State = dict[str, Any]

HALF = (torch.float16, torch.bfloat16)
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
EXTRAS = {"master": torch.float32, "remainder": torch.int16}
LINE = 64  # bytes of a cache line
APART = 1 << 20  # bytes that are worth a mapping of their own


class StateMismatchError(CheckpointError, ValueError):
    """A saved state does not fit the parameter or the settings."""


@dataclass(frozen=True)
class StatePolicy:
    """What state parameters get, by their dtype."""

    masters: Masters = "auto"
    state_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.masters not in ("auto", "none", "whole", "remainder"):
            raise ValueError(f"masters must be 'auto', 'none', 'whole' or 'remainder', not {self.masters!r}")
        if self.state_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"state_dtype must be torch.float32 or torch.bfloat16, not {self.state_dtype}")

    def check(self, dtype: torch.dtype) -> None:
        """Raise TypeError if there is no state for parameters of ``dtype``."""
        if dtype.is_complex:
            raise TypeError(f"{dtype} parameters are not supported: optimize torch.view_as_real of them")
        if dtype not in (torch.float32, torch.float64, *HALF):
            raise TypeError(f"{dtype} parameters are not supported: they must be fp32, fp64, bf16 or fp16")
        if self.masters == "remainder" and dtype == torch.float16:
            raise TypeError("masters='remainder' is for bf16 parameters: fp16 is no prefix of fp32. Take 'whole'.")

    def columns(self, dtype: torch.dtype, amsgrad: bool) -> dict[str, torch.dtype]:
        """The tensors of the state of a ``dtype`` parameter, without ``step``, and their dtypes."""
        moments = torch.float64 if dtype == torch.float64 else self.state_dtype
        columns = dict.fromkeys(MOMENTS if amsgrad else MOMENTS[:2], moments)
        extra = self.extra(dtype)
        return columns if extra is None else {**columns, extra: EXTRAS[extra]}

    def extra(self, dtype: torch.dtype) -> str | None:
        if dtype not in HALF or self.masters == "none":
            return None
        if self.masters == "auto":
            return "remainder" if dtype == torch.bfloat16 else "master"
        return "master" if self.masters == "whole" else "remainder"


def complete(params: list[Tensor], states: list[State], columns: dict[str, torch.dtype]) -> None:
    """Add to ``states`` what they lack of ``columns``: zeros; for masters, the parameters."""
    for key, dtype in columns.items():
        lacking = [(param, state) for param, state in zip(params, states) if key not in state]
        for (param, state), part in zip(lacking, zeros([param for param, _ in lacking], dtype)):
            if key == "master":
                part.copy_(local(param))
            state[key] = spread_like(part, param)


def zeros(params: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Zeros for what this rank holds of ``params``.

    Those of plain tensors are in one piece of memory; those of DTensors are not, since torch cannot deepcopy a DTensor
    that does not begin where its memory does.
    """
    together = iter(in_one_piece([param for param in params if not is_dtensor(param)], dtype))
    return [torch.zeros_like(local(param), dtype=dtype) if is_dtensor(param) else next(together) for param in params]


def in_one_piece(like: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Zeros with the shapes of ``like``, and its strides where it is dense, in one piece of memory for each device.

    They follow each other without a gap where ``like`` do, in whatever order they are listed, so that kernels can take
    them as one stretch; others begin at a cache line.
    """
    ends: dict[torch.device, int] = {}
    starts = [0] * len(like)
    behind: int | None = None  # the address at which the tensor before ends
    align = LINE // dtype.itemsize
    for i in sorted(range(len(like)), key=lambda i: like[i].data_ptr()):
        tensor = like[i]
        end = ends.get(tensor.device, 0)
        starts[i] = end if tensor.data_ptr() == behind else -(-end // align) * align
        behind = tensor.data_ptr() + tensor.numel() * tensor.element_size()
        ends[tensor.device] = starts[i] + tensor.numel()
    memory = {device: _zeros(end, dtype, device) for device, end in ends.items()}
    return [
        memory[tensor.device].as_strided(tensor.shape, _strides(tensor), start) for tensor, start in zip(like, starts)
    ]


def _zeros(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros of one dimension; on a CPU, if there are many, in memory apart from the heap.

    They stay for the whole run, and in the heap they would take the place that what comes and goes has left.
    """
    size = count * dtype.itemsize
    if device.type == "cpu" and size >= APART and hasattr(mmap, "MAP_PRIVATE"):
        with contextlib.suppress(OSError):  # torch says better what is wrong
            return torch.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=dtype)
    return torch.zeros(count, dtype=dtype, device=device)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Those of a tensor without gaps whose elements lie in the same order, where there is one."""
    return tensor.stride() if is_dense(tensor) else torch.empty(tensor.shape, device="meta").stride()


def load(policy: StatePolicy, params: list[Tensor], saved: list[State]) -> list[State]:
    """Copies of ``saved``, the states of ``params``, in the form of this file. No bit is lost.

    Raises:
        StateMismatchError: a shape is not that of the parameter; a number would be rounded; a state has another kind of
            master than ``policy``.
    """
    states: list[State] = [{} for _ in params]
    steps: dict[tuple[torch.device, float], Tensor] = {}
    for i, (param, old, state) in enumerate(zip(params, saved, states)):
        if not old:
            continue
        _check_shapes(i, param, old)
        place = local(param).device, float(old["step"])
        if place not in steps:
            steps[place] = torch.full((), place[1], dtype=torch.float32, device=place[0])
        state["step"] = steps[place]
        state.update({key: value for key, value in old.items() if key not in ("step", *MOMENTS, *EXTRAS)})
    for key in (*MOMENTS, *EXTRAS):
        holders: dict[torch.dtype, list[int]] = {}
        for i, (param, old) in enumerate(zip(params, saved)):
            dtype = _dtype_of_loaded(policy, i, param, key, old[key]) if key in old else None
            if dtype is not None:
                holders.setdefault(dtype, []).append(i)
        for dtype, indices in holders.items():
            for i, part in zip(indices, zeros([params[i] for i in indices], dtype)):
                part.copy_(part_like(saved[i][key], params[i]))
                states[i][key] = spread_like(part, params[i])
    return states


def _dtype_of_loaded(policy: StatePolicy, i: int, param: Tensor, key: str, value: Tensor) -> torch.dtype | None:
    """The dtype that ``value`` is kept in; None if it is of no use."""
    if key in EXTRAS:
        if value.dtype != EXTRAS[key]:
            return None  # torch.optim has cast it to the parameter's dtype, and has not kept it up
        if key not in policy.columns(param.dtype, False):
            raise StateMismatchError(
                f"the saved optimizer state of parameter {i} has a {key!r} (masters='{_kind(key)}'), which a "
                f"{_name(param.dtype)} parameter does not have with masters={policy.masters!r}"
            )
        return value.dtype
    dtype = policy.columns(param.dtype, True)[key]
    if torch.promote_types(value.dtype, dtype) != dtype and not torch.equal(value.to(dtype).to(value.dtype), value):
        raise StateMismatchError(
            f"the saved {key} of parameter {i} is {_name(value.dtype)} and would be rounded to {_name(dtype)}: build "
            "the optimizer with another state_dtype, or round the saved state"
        )
    return dtype


def _check_shapes(i: int, param: Tensor, old: State) -> None:
    for key in (*MOMENTS, *EXTRAS):
        if key in old and old[key].shape != param.shape:
            raise StateMismatchError(
                f"the optimizer state of parameter {i} has shape {tuple(old[key].shape)} in the checkpoint and "
                f"{tuple(param.shape)} in the model. Begin with a fresh optimizer (--reset-optimizer)."
            )


def _kind(key: str) -> str:
    return "whole" if key == "master" else key


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
