"""Tensors that are spread over ranks: DTensor, as FSDP2 and tensor parallelism make them.

The optimizers work on what this rank holds. Only the norm needs the other ranks.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Spread(NamedTuple):
    """Which ranks hold different parts of a tensor: those along ``dims`` of a device mesh."""

    mesh: Any
    dims: tuple[int, ...]

    def all_reduce(self, value: Tensor, op: str) -> Tensor:
        """``value`` [] combined over those ranks by ``op``, "SUM" or "MAX"."""
        value = value.to(self.mesh.device_type)  # gradients may be offloaded to where the mesh has no collectives
        for dim in self.dims:
            dist.all_reduce(value, getattr(dist.ReduceOp, op), group=self.mesh.get_group(dim))
        return value


def is_dtensor(tensor: Tensor) -> bool:
    # Where nobody has imported the module there is no DTensor, and importing it takes a good part of a second.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of ``tensor``: the memory itself, not a copy."""
    if not is_dtensor(tensor):
        return tensor
    placed: Any = tensor
    held: Tensor = placed.to_local()
    return held


def reduced(tensor: Any) -> Any:
    """``tensor`` with its pending sums over ranks carried out: a Partial DTensor becomes a replicated one."""
    from torch.distributed.tensor import Replicate

    if not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    return tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])


def placed_like(grad: Tensor, param: Tensor) -> Tensor:
    """``grad`` spread over ranks as ``param`` is; itself, if it is already."""
    if not is_dtensor(param):
        return grad
    if not is_dtensor(grad):
        raise TypeError("a parameter is a DTensor and its gradient is not: distribute the gradient as the parameter is")
    ours: Any = param
    theirs: Any = grad
    if theirs.placements == ours.placements:
        return grad
    moved: Tensor = theirs.redistribute(placements=ours.placements)
    return moved


def spread_like(part: Tensor, param: Tensor) -> Tensor:
    """The tensor of which this rank holds ``part``, spread over ranks as ``param`` is."""
    if not is_dtensor(param):
        return part
    from torch.distributed.tensor import DTensor

    like: Any = param
    whole: Tensor = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return whole


def part_like(value: Tensor, param: Tensor) -> Tensor:
    """This rank's part of ``value``, which is either spread as ``param`` is already, or whole on every rank."""
    if not is_dtensor(param) or is_dtensor(value):
        return local(value)
    from torch.distributed.tensor import distribute_tensor

    like: Any = param
    return local(distribute_tensor(value.to(like.device), like.device_mesh, like.placements))


def by_spread(tensors: Iterable[Tensor]) -> dict[Spread | None, dict[torch.device, list[Tensor]]]:
    """What this rank holds of ``tensors``, by how they are spread (None: not at all) and by device."""
    groups: dict[Spread | None, dict[torch.device, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for tensor in tensors:
        spread = None
        if type(tensor) is not Tensor and is_dtensor(tensor):
            tensor = reduced(tensor)
            placed: Any = tensor
            dims = tuple(dim for dim, placement in enumerate(placed.placements) if placement.is_shard())
            spread = Spread(placed.device_mesh, dims) if dims else None
            tensor = local(tensor)
        groups[spread][tensor.device].append(tensor)
    return groups
