"""Parameters of an optimizer, sorted into lists that one call of an operation updates."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyseq.ops.segments import AdamPlan
from pyseq.optim.sharded import is_dtensor, local

State = dict[str, Any]


class Signature(NamedTuple):
    """What the arrangement of parameters in buckets depends on. Objects stand for themselves: compared by identity."""

    params: list[Tensor]
    states: list[Any]  # the keys and values of the optimizer's state
    kinds: list[torch.dtype | None]  # of each gradient
    groups: list[tuple[int, bool]]  # how many parameters; amsgrad

    def matches(self, other: Signature) -> bool:
        return (
            self.groups == other.groups
            and len(self.states) == len(other.states)
            and all(map(operator.is_, self.params, other.params))
            and all(map(operator.is_, self.states, other.states))
            and all(map(operator.is_, self.kinds, other.kinds))
        )


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

    def add(self, index: int, param: Tensor, state: State) -> None:
        self.indices.append(index)
        self.owners.append(param)
        self.params.append(local(param))
        self.states.append(state)
        self.sharded = self.sharded or is_dtensor(param)

    def column(self, key: str) -> list[Tensor] | None:
        """What ``key`` is in the states, looked up anew: users may have put another tensor there."""
        if key not in self.states[0]:
            return None
        held = [state[key] for state in self.states]
        return [local(tensor) for tensor in held] if self.sharded else held


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
