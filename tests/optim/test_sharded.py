"""Two processes, each with half of every tensor, do what one does with the whole."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pyseq.optim import FusedAdamW, clip_grad_norm_, get_total_norm

# This file is also the program that the processes run; each function named check_... is one test.


@pytest.mark.slow
def test_two_processes():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]


def whole(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check_norm_of_every_placement():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    line = init_device_mesh("cpu", (2,))
    grid = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicas", "shards"))
    tall, odd, plain = whole((64, 3), 0), whole((5, 7), 1), whole((11,), 2)
    half = distribute_tensor(tall / 2, line, [Replicate()]).to_local()  # ranks sum to the whole
    cases = {
        "shards": [distribute_tensor(tall, line, [Shard(0)])],
        "uneven shards, one of them of one column": [distribute_tensor(odd, line, [Shard(0)])],
        "a rank without a row": [distribute_tensor(odd[:1], line, [Shard(0)])],
        "replicated": [distribute_tensor(tall, line, [Replicate()])],
        "partial": [DTensor.from_local(half, line, [Partial()])],
        "hybrid": [distribute_tensor(tall, grid, [Replicate(), Shard(1)])],
        "all sorts, on two meshes, with a plain tensor": [
            distribute_tensor(tall.bfloat16(), line, [Shard(1)]),
            distribute_tensor(odd, grid, [Shard(0), Shard(1)]),
            DTensor.from_local(half, line, [Partial()]),
            plain,
        ],
    }
    full = {
        "shards": [tall],
        "uneven shards, one of them of one column": [odd],
        "a rank without a row": [odd[:1]],
        "replicated": [tall],
        "partial": [tall],
        "hybrid": [tall],
        "all sorts, on two meshes, with a plain tensor": [tall.bfloat16(), odd, tall, plain],
    }
    for name, tensors in cases.items():
        for order in (2.0, 1.0, 3.0, math.inf):
            flat = torch.cat([t.double().flatten() for t in full[name]])
            norm = get_total_norm(tensors, order)
            assert type(norm) is torch.Tensor, name
            assert norm.item() == pytest.approx(flat.norm(order).item(), rel=1e-7), (name, order)


def check_a_norm_that_is_not_finite_on_one_rank_shows_on_all():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    for order in (2.0, math.inf):
        for bad in (math.nan, math.inf):
            tensor = whole((4, 2), 0)
            tensor[3, 1] = bad
            norm = get_total_norm([distribute_tensor(tensor, init_device_mesh("cpu", (2,)), [Shard(0)])], order)
            assert not math.isfinite(norm.item())


def check_updates_and_clipping_of_fsdp2():
    from torch.distributed.fsdp import fully_shard

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5))

    plain, sharded, clipped = model(), model(), model()
    for module in (sharded, clipped):
        for layer in (module[0], module[2], module):
            fully_shard(layer)
    inside = FusedAdamW(sharded.parameters(), lr=0.01)
    before = FusedAdamW(clipped.parameters(), lr=0.01)
    reference = torch.optim.AdamW(plain.parameters(), lr=0.01)
    for t in range(20):
        inputs = whole((6, 7), t)  # the same on both ranks, so that the average is that of one
        for module, optimizer in ((plain, reference), (sharded, inside), (clipped, before)):
            optimizer.zero_grad()
            (10 * module(inputs).pow(2).mean()).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        ours = clip_grad_norm_(clipped.parameters(), 0.5)
        inside.step(max_norm=0.5, zero_grads=t % 2 == 0)
        before.step()
        reference.step()
        for other in (ours, inside.grad_norm):
            assert other.item() == pytest.approx(norm.item(), rel=1e-5)
    for p, q, r in zip(plain.parameters(), sharded.parameters(), clipped.parameters()):
        torch.testing.assert_close(q.full_tensor(), p, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(r.full_tensor(), p, rtol=1e-4, atol=1e-5)
        assert inside.state[q]["exp_avg"].shape == p.shape
        assert inside.state[q]["exp_avg"].to_local().shape == q.to_local().shape


def check_distributed_checkpoint_state():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Linear(5, 3).bfloat16()
    fully_shard(model)
    twin = nn.Linear(5, 3).bfloat16()
    fully_shard(twin)
    optimizer, other = FusedAdamW(model.parameters(), lr=0.01), FusedAdamW(twin.parameters(), lr=0.01)

    def train(module, optimizer, t):
        module(whole((4, 5), t, torch.bfloat16)).float().pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for t in range(3):
        train(model, optimizer, t)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    set_optimizer_state_dict(twin, other, saved)
    for p, q in zip(model.parameters(), twin.parameters()):
        q.to_local().data.copy_(p.to_local())
    for t in range(3, 6):
        train(model, optimizer, t)
        train(twin, other, t)
    for p, q in zip(model.parameters(), twin.parameters()):
        assert torch.equal(p.full_tensor(), q.full_tensor())
        parts = [o.state[x]["remainder"].to_local() for o, x in ((optimizer, p), (other, q))]
        assert torch.equal(*parts)  # full_tensor() would need a collective for int16, which there is not
        assert other.state[q]["step"].item() == 6


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for check in [value for name, value in list(globals().items()) if name.startswith("check_")]:
        check()
    dist.destroy_process_group()
