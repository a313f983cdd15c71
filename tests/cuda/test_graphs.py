"""The norm and the update in a CUDA graph: replays give the bits of eager calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops import dispatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not dispatch.status("cuda").available, reason=dispatch.status("cuda").detail),
]


class Training:
    """``count`` parameters that lie apart, and a step over them."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator(device="cuda").manual_seed(count)

        def some(dtype: torch.dtype) -> list[Tensor]:
            sizes = [1 + 97 * i % 5000 for i in range(count)]
            return [torch.randn(size, generator=generator, device="cuda").to(dtype) for size in sizes]

        self.params, self.grads = some(torch.bfloat16), some(torch.bfloat16)
        self.remainders = [torch.zeros_like(param, dtype=torch.int16) for param in self.params]
        self.states = [[torch.zeros_like(param, dtype=torch.float32) for param in self.params] for _ in range(2)]
        self.step_count = torch.zeros((), device="cuda")
        self.norm = torch.zeros((), device="cuda")
        self.plan = ops.AdamPlan()

    def step(self) -> None:
        norm, factor, found_inf = ops.grad_norm(self.grads, max_norm=1.0)
        self.norm.copy_(norm)
        ops.adam_(
            self.params,
            self.grads,
            *self.states,
            step=self.step_count,
            lr=1e-2,
            beta1=0.9,
            beta2=0.98,
            eps=1e-8,
            weight_decay=0.1,
            remainders=self.remainders,
            decoupled=True,
            eps_mode="torch",
            factor=factor,
            found_inf=found_inf,
            plan=self.plan,
        )

    def numbers(self) -> list[Tensor]:
        return [*self.params, *self.remainders, *self.states[0], *self.states[1], self.step_count, self.norm]

    def set_grads(self, seed: int) -> None:
        generator = torch.Generator(device="cuda").manual_seed(seed)
        for grad in self.grads:
            grad.copy_(torch.randn(grad.shape, generator=generator, device="cuda"))


@pytest.mark.parametrize("count", [3, 300], ids=["as arguments", "as a table"])
def test_replays_have_the_bits_of_eager_steps(count: int) -> None:
    with ops.backend("cuda"):
        eager, replayed = Training(count), Training(count)
        for each in (eager, replayed):
            each.step()  # loads the kernels, which a capture must not
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed.step()
        for seed in range(5):
            for each in (eager, replayed):
                each.set_grads(seed)
            if seed == 3:
                for each in (eager, replayed):
                    each.grads[1][0] = float("nan")  # a step that is skipped, in the graph too
            eager.step()
            graph.replay()
            assert all(torch.equal(a, b) for a, b in zip(eager.numbers()[:-1], replayed.numbers()[:-1]))
            assert eager.norm.isnan() == replayed.norm.isnan() == (seed == 3)
    assert float(eager.step_count) == 5


def test_work_on_two_streams_does_not_mix() -> None:
    streams = [torch.cuda.Stream() for _ in range(4)]
    tensors = [torch.full((200_001,), float(k + 1), device="cuda") for k in range(4)]
    torch.cuda.synchronize()
    found = []
    with ops.backend("cuda"):
        for _ in range(50):
            for stream, tensor in zip(streams, tensors):
                with torch.cuda.stream(stream):
                    found.append(ops.grad_norm([tensor]).norm)
    torch.cuda.synchronize()
    for k, norm in enumerate(found):
        assert float(norm) == pytest.approx((k % 4 + 1) * 200_001**0.5, rel=1e-6)
