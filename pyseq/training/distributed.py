"""Several processes, one model: launched by torchrun, gradients and statistics summed over ranks.

Gradients are summed explicitly once an update, after accumulation, in buckets. A parameter without a gradient on a rank
counts as zero there, so unused parameters and empty batches need no special treatment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from pyseq.config.groups import DistributedConfig
from pyseq.errors import ConfigError

BUCKET_BYTES = 64 * 2**20


def init(cfg: DistributedConfig, use_cuda: bool) -> None:
    """Join the process group if torchrun (or SLURM's variables) says that there is one; fill in ``cfg``."""
    world = int(os.environ.get("WORLD_SIZE", cfg.distributed_world_size))
    if world <= 1:
        return
    if "RANK" not in os.environ:
        raise ConfigError(f"world size {world}, but RANK is not set: launch with torchrun --nproc-per-node {world}")
    cfg.distributed_world_size, cfg.distributed_rank = world, int(os.environ["RANK"])
    cfg.device_id = int(os.environ.get("LOCAL_RANK", cfg.device_id))
    if use_cuda:
        torch.cuda.set_device(cfg.device_id)
    if not dist.is_initialized():
        dist.init_process_group(cfg.distributed_backend or ("nccl" if use_cuda else "gloo"))


def shutdown() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_master() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def broadcast_parameters(tensors: Iterable[Tensor]) -> None:
    """Give every rank the values of rank 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum every ``p.grad`` over ranks, in place."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        for bucket in _buckets(gradients):
            flat = _flatten_dense_tensors(bucket)
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
                gradient.copy_(summed)


def _buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def sum_logging_outputs(
    outputs: list[dict[str, Any]], sample_size: Any, can_be_summed: bool, device: torch.device
) -> tuple[list[dict[str, Any]], Any]:
    """The logging outputs and the sample size of all ranks.

    With ``can_be_summed`` one all-reduce of the summed values in float64; else the outputs themselves are gathered.
    """
    if world_size() == 1:
        return outputs, sample_size
    if not can_be_summed:
        gathered: list[Any] = [None] * world_size()
        dist.all_gather_object(gathered, (outputs, sample_size))
        return [log for logs, _ in gathered for log in logs], sum(size for _, size in gathered)
    # A rank whose batches were all empty has no keys of its own; the names are agreed on first.
    names: list[Any] = [None] * world_size()
    dist.all_gather_object(names, sorted({key for log in outputs for key in log}))
    keys = sorted({key for rank_names in names for key in rank_names})
    sums = [sum(log.get(key, 0) for log in outputs) for key in keys] + [sample_size]
    flat = torch.stack([torch.as_tensor(s, dtype=torch.float64, device=device).reshape(()) for s in sums])
    dist.all_reduce(flat)
    return [dict(zip(keys, flat[:-1], strict=True))], flat[-1]
