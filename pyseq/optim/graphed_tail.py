"""The gradients' norm and Adam's update as two CUDA graphs: what the host does for them is to ask for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyseq.ops.cuda_graphs import Record, record
from pyseq.ops.grad_norm import GradNorm
from pyseq.ops.segments import increment_version
from pyseq.optim.buckets import same_items
from pyseq.optim.clip_grad import measure
from pyseq.optim.fused_adam import FusedAdam


class _Norm(NamedTuple):
    """A recorded norm, and what it was recorded for."""

    grads: list[Tensor]
    max_norm: float
    scale: Tensor
    replay: Callable[[], GradNorm]


class _Update(NamedTuple):
    """An update that has been made or, at the second time, recorded; and what for."""

    memory: list[Tensor]
    settings: list[dict[str, Any]]
    rates: list[Tensor]
    compute: Callable[[], None]
    replay: Callable[[], None] | None = None


class GraphedTail:
    """Records the norm and the update where all that they touch lies where it did the time before, and replays them.

    What changes from update to update is written to memory that the graphs read: the learning rates and the factor of
    the gradients, in fp32. Everything else is compared; where it has changed, it is recorded anew.
    """

    def __init__(self, optimizer: FusedAdam, record: Record = record) -> None:
        self._optimizer, self._record = optimizer, record
        self._norm: _Norm | None = None
        self._update: _Update | None = None
        self._found: GradNorm | None = None  # what the recorded norm writes, and the recorded update reads

    def measure(self, grads: list[Tensor], max_norm: float, scale: Tensor | float) -> GradNorm:
        """As :func:`pyseq.optim.clip_grad.measure`, of tensors on one device that stay where they are.

        Returns:
            A norm of its own; a factor and a found_inf that the next call overwrites, and that :meth:`step` takes.
        """
        norm = self._norm
        if norm is None or norm.max_norm != max_norm or not same_items(norm.grads, grads):
            norm = self._norm = self._new_norm(grads, max_norm)
            self._update = None
        norm.scale.fill_(scale)
        self._found = found = norm.replay()
        return found._replace(norm=found.norm.clone())

    def step(self, factor: Tensor | float | None, found_inf: Tensor | None) -> bool:
        """Update the parameters, if these are what :meth:`measure` has just found and the update can be recorded.

        Returns:
            Whether it has been done. Where it has not, the caller makes a step, after which others may be recorded.
        """
        found = self._found
        if found is None or factor is not found.factor or found_inf is not found.found_inf:
            return False
        memory = None if self._optimizer.has_step_hooks() else self._optimizer.settled_memory()
        if memory is None:
            return False
        groups = self._optimizer.param_groups
        settings = [{key: group[key] for key in group if key not in ("params", "lr")} for group in groups]
        update = self._update
        if update is None or update.settings != settings or not same_items(update.memory, memory):
            update = self._update = self._new_update(found, memory, settings)
        elif update.replay is None:
            update = self._update = update._replace(replay=self._record(update.compute, None))
        for rate, group in zip(update.rates, groups):
            rate.fill_(group["lr"])
        if update.replay is None:
            update.compute()  # whatever is loaded, compiled or uploaded once is so before it is recorded
        else:
            update.replay()
            increment_version([param for group in groups for param in group["params"]])
        return True

    def _new_norm(self, grads: list[Tensor], max_norm: float) -> _Norm:
        scale = torch.ones((), device=grads[0].device)

        def compute() -> GradNorm:
            return measure(grads, max_norm=max_norm, scale=scale)

        compute()
        return _Norm(grads, max_norm, scale, self._record(compute, None))

    def _new_update(self, found: GradNorm, memory: list[Tensor], settings: list[dict[str, Any]]) -> _Update:
        optimizer = self._optimizer
        rates = [torch.zeros((), device=found.norm.device) for _ in optimizer.param_groups]

        def compute() -> None:
            numbers = [group["lr"] for group in optimizer.param_groups]
            try:
                for group, rate in zip(optimizer.param_groups, rates):
                    group["lr"] = rate
                optimizer.step(factor=found.factor, found_inf=found.found_inf)
            finally:
                for group, number in zip(optimizer.param_groups, numbers):
                    group["lr"] = number

        return _Update(memory, settings, rates, compute)
