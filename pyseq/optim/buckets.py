"""Parameters of an optimizer, sorted into lists that one call of an operation updates."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.segments import AdamPlan
from pyseq.optim.adam_state import EXTRAS, MOMENTS
from pyseq.optim.sharded import is_dtensor, local

State = dict[str, Any]


class Signature(NamedTuple):
    """What the arrangement of parameters in buckets depends on. Objects stand for themselves: compared by identity."""

    groups: list[tuple[list[Tensor], bool]]  # parameters; amsgrad
    states: list[Any]  # the keys and values of the optimizer's state
    kinds: list[torch.dtype | None]  # of the gradient of each parameter

    def matches(self, other: Signature) -> bool:
        return (
            len(self.groups) == len(other.groups)
            and all(a is b and same_items(p, q) for (p, a), (q, b) in zip(self.groups, other.groups))
            and same_items(self.states, other.states)
            and same_items(self.kinds, other.kinds)
        )

    def same_parameters(self, groups: list[dict[str, Any]]) -> bool:
        return len(groups) == len(self.groups) and all(
            group["amsgrad"] is amsgrad and same_items(group["params"], params)
            for group, (params, amsgrad) in zip(groups, self.groups)
        )


def same_items(a: list[Any], b: list[Any]) -> bool:
    """Whether the very same objects are in both."""
    core = dispatch.core()
    if core is not None:
        same: bool = core.same_items(a, b)  # without a look at any, which would be far away in memory
        return same
    return len(a) == len(b) and all(map(operator.is_, a, b))


@dataclass
class Bucket:
    """Parameters that one call updates: of one group and history, on one device, of one combination of dtypes."""

    group: dict[str, Any]
    indices: list[int] = field(default_factory=list)  # places among all parameters
    owners: list[Tensor] = field(default_factory=list)  # the parameters
    params: list[Tensor] = field(default_factory=list)  # what this rank holds of them
    states: list[State] = field(default_factory=list)
    plan: AdamPlan = field(default_factory=AdamPlan)
    sharded: bool = False
    columns: dict[str, list[Tensor]] = field(default_factory=dict)  # the states as lists, as last looked up
    _memory: list[tuple[torch.UntypedStorage, int, int]] | None = None  # what they lie in: address, size

    def add(self, index: int, param: Tensor, state: State) -> None:
        self.indices.append(index)
        self.owners.append(param)
        self.params.append(local(param))
        self.states.append(state)
        self.sharded = self.sharded or is_dtensor(param)

    def look_up(self) -> None:
        """Fill :attr:`columns` anew: users may have put another tensor there."""
        keys = [key for key in self.states[0] if key in (*MOMENTS, *EXTRAS)]
        held = {key: [state[key] for state in self.states] for key in keys}
        self.columns = {key: list(map(local, column)) for key, column in held.items()} if self.sharded else held
        self._memory = None

    def follow(self) -> Sequence[Tensor] | None:
        """The gradients, if nothing but them has changed since the last update; the states are not looked at.

        They cannot have moved as long as nobody has them, unless someone takes away the memory that they share with
        what ``state_dict`` gives.
        """
        if self.sharded:
            return None
        if self._memory is None:
            storages = {
                s.data_ptr(): s for column in self.columns.values() for s in map(Tensor.untyped_storage, column)
            }
            self._memory = [(s, address, s.nbytes()) for address, s in storages.items()]
        if any(s.data_ptr() != address or s.nbytes() != size for s, address, size in self._memory):
            return None
        return GradientsOf(self.params) if self.plan.follow(self.params) else None


class GradientsOf(Sequence[Tensor]):
    """The gradients of parameters, looked up when asked for: a kernel that has their addresses does not ask."""

    def __init__(self, params: list[Tensor]) -> None:
        self._params = params

    def __len__(self) -> int:
        return len(self._params)

    def __getitem__(self, i: Any) -> Any:
        return self._params[i].grad


class Arrangement(NamedTuple):
    """How parameters are sorted into buckets, and what that was made from."""

    signature: Signature
    buckets: list[Bucket]
    idle: list[Tensor]  # parameters without a gradient


def part_ways(buckets: list[Bucket], idle: list[State]) -> None:
    """Give each bucket a step of its own where it has shared one with others, or with parameters without gradient."""
    taken = {id(state["step"]) for state in idle if "step" in state}
    for bucket in buckets:
        step = bucket.states[0]["step"]
        if id(step) in taken:
            step = step.clone()
            for state in bucket.states:
                state["step"] = step
        taken.add(id(step))
