"""Output projection and cross-entropy in one, forward and backward, without the N x V logits; time and memory.

Needed are three matrix products of 2 N D V operations each: the logits, and the gradients of hidden and weight.
Extra memory is what a run takes beyond these two gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq import ops

from .. import peers
from ..harness import Case, Outcome, Side, Unavailable, Work
from ..machine import matrix_yardstick, need_bf16, need_memory
from ..peers import LinearLoss

SMOOTHING = 0.1
CHUNK_BYTES = 32 * 2**20  # of logits, in the chunked torch code


class Projection:
    """Hidden states [N, D], weight [V, D] and targets [N]."""

    def __init__(self, rows: int, width: int, classes: int, dtype: torch.dtype, device: torch.device) -> None:
        self.hidden = torch.randn(rows, width, device=device).to(dtype).requires_grad_()
        self.weight = (torch.randn(classes, width, device=device) * width**-0.5).to(dtype).requires_grad_()
        self.target = torch.randint(classes, (rows,), device=device)
        self.flops = 6 * rows * width * classes
        self.logits_bytes = rows * classes * dtype.itemsize

    def side(self, name: str, loss: LinearLoss) -> Side:
        def run() -> tuple[Tensor, ...]:
            value = loss(self.hidden, self.weight, self.target)
            return (value, *torch.autograd.grad(value, (self.hidden, self.weight)))

        return self._side(name, run)

    def chunked(self, name: str, smoothing: float) -> Side:
        """A loop over rows that recomputes nothing: each chunk's gradients are taken while its logits are there."""
        chunk = max(1, CHUNK_BYTES // (self.weight.size(0) * self.weight.element_size()))

        def run() -> tuple[Tensor, ...]:
            total = torch.zeros((), device=self.hidden.device)
            grad_hidden, grad_weight = torch.empty_like(self.hidden), torch.zeros_like(self.weight)
            for begin in range(0, self.hidden.size(0), chunk):
                rows = slice(begin, begin + chunk)
                part = self.hidden.detach()[rows].requires_grad_()
                logits = F.linear(part, self.weight).float()
                value = F.cross_entropy(logits, self.target[rows], label_smoothing=smoothing, reduction="sum")
                grad_part, grad = torch.autograd.grad(value, (part, self.weight))
                grad_hidden[rows] = grad_part
                grad_weight += grad
                total += value.detach()
            return total, grad_hidden, grad_weight

        return self._side(name, run)

    def products(self) -> Side:
        hidden, weight = self.hidden.detach(), self.weight.detach()
        logits = torch.empty(hidden.size(0), weight.size(0), dtype=hidden.dtype, device=hidden.device)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.empty_like(weight)

        def run() -> None:
            torch.mm(hidden, weight.t(), out=logits)
            torch.mm(logits, weight, out=grad_hidden)
            torch.mm(logits.t(), hidden, out=grad_weight)

        return Side("three bare products", run, flops=self.flops)

    def _side(self, name: str, run: Callable[[], tuple[Tensor, ...]]) -> Side:
        def outcome() -> Outcome:
            return dict(zip(("loss", "gradient of hidden", "gradient of weight"), run()))

        return Side(name, run, outcome=outcome, flops=self.flops)


def pyseq_loss(smoothing: float) -> LinearLoss:
    fused: Any = getattr(ops, "linear_cross_entropy", None)
    if fused is None:
        raise Unavailable("this pyseq has no ops.linear_cross_entropy")
    return lambda hidden, weight, target: fused(hidden, weight, target, label_smoothing=smoothing, reduction="sum")


def unfused(smoothing: float) -> LinearLoss:
    def loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        logits = F.linear(hidden, weight).float()
        return F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")

    return loss


def case(
    rows: int, width: int, classes: int, dtype: torch.dtype, smoothing: float = SMOOTHING
) -> Callable[[torch.device, bool], Work]:
    def build(device: torch.device, quick: bool) -> Work:
        n, d, v = (24, 16, 101) if quick else (rows, width, classes)
        if dtype == torch.bfloat16 and not quick:
            need_bf16(device)
        need_memory(n * v * (3 * dtype.itemsize + 12), device)
        inputs = Projection(n, d, v, dtype, device)
        config = {"rows": n, "width": d, "classes": v, "dtype": str(dtype).removeprefix("torch.")}
        config |= {"label smoothing": smoothing, "logits bytes": inputs.logits_bytes}
        # 16-bit sides round logits and partial sums in different places
        bound = 1e-4 if dtype == torch.float32 else 2e-2
        work = Work(config, [inputs.side("pyseq", pyseq_loss(smoothing))], bound, memory=True)
        work.sides.append(inputs.side("F.linear + F.cross_entropy", unfused(smoothing)))
        # 16-bit losses: torch's function sums in 16 bits, which is another number
        if dtype == torch.float32:
            name = "F.linear_cross_entropy"
            work.add(name, lambda: inputs.side(name, peers.torch_linear_cross_entropy(smoothing, chunked=False)))
            if not smoothing:
                name_chunked = f"{name}, chunked"
                work.add(
                    name_chunked,
                    lambda: inputs.side(name_chunked, peers.torch_linear_cross_entropy(smoothing, chunked=True)),
                )
        work.sides.append(inputs.chunked("chunked torch code", smoothing))
        if device.type == "cuda":
            work.add("Liger", lambda: inputs.side("Liger", peers.liger_linear_cross_entropy(smoothing)))
        work.sides += [inputs.products(), matrix_yardstick(device, dtype, quick)]
        return work

    return build


FP32, BF16 = torch.float32, torch.bfloat16
CASES = [
    Case("linear_cross_entropy/4096x128x10000", case(4096, 128, 10_000, FP32), ("cpu",)),
    Case("linear_cross_entropy/4096x128x10000-plain", case(4096, 128, 10_000, FP32, smoothing=0.0), ("cpu",)),
    Case("linear_cross_entropy/2048x512x32000", case(2048, 512, 32_000, FP32), ("cpu",)),
    Case("linear_cross_entropy/2048x512x32000-plain", case(2048, 512, 32_000, FP32, smoothing=0.0), ("cpu",)),
    Case("linear_cross_entropy/2048x512x32000-bf16", case(2048, 512, 32_000, BF16), ("cpu",)),
    Case("linear_cross_entropy/8192x1024x32768-bf16", case(8192, 1024, 32_768, BF16), ("cuda",)),
    Case("linear_cross_entropy/8192x4096x131072-bf16", case(8192, 4096, 131_072, BF16), ("cuda",)),
]
