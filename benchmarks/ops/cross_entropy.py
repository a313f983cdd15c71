"""Label-smoothed cross-entropy of logits, forward and backward; ours, fairseq's formulation, torch's, and a copy.

Needed are one read of the logits and one write of their gradient: as much as a copy of the logits into a second
buffer. Sides are compared in fairseq's form of smoothing; torch's form of (V / (V - 1)) eps is the same number.
Most of the peers' time on a CPU can be page faults, since they make several matrices of this size: cases named
"-system" leave malloc as users of torch find it, the others keep freed memory as pyseq-train does.
The logits are what a layer would hand over: no leaf, and whoever makes them takes the gradient as it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyseq import ops

from .. import peers
from ..harness import Case, Outcome, Side, Unavailable, Work
from ..machine import need_memory
from ..peers import Loss

SMOOTHING, PADDING = 0.1, 1


class _Produced(torch.autograd.Function):
    """Stands for the layer that computed the logits, in no time: it hands over a memory and is handed the gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, owner: Logits) -> Tensor:
        ctx.owner = owner
        return owner.memory.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None]:
        ctx.owner.gradient = grads[0]
        return None, None


class Logits:
    """Logits [N, V] of the usual spread with targets, some of them padding; restored where a side writes over them."""

    gradient: Tensor | None  # of the last run

    def __init__(self, rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> None:
        self.saved = torch.randn(rows, classes, device=device).mul_(2).to(dtype)
        self.memory = self.saved.clone()
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self.logits = self.memory
        self.target = torch.randint(PADDING + 1, classes, (rows,), device=device)
        self.target[::16] = PADDING
        self.size = self.saved.numel() * self.saved.element_size()

    def produce(self) -> None:
        """New logits, before each run of every side: any side of the turn may have written over the last ones."""
        self.memory.copy_(self.saved)
        self.gradient = None
        self.logits = _Produced.apply(self._anchor, self)

    def training(self, name: str, loss: Loss, overwrites: bool = False, graph: bool = True) -> Side:
        def run() -> Tensor:
            value = loss(self.logits, self.target)
            value.backward()
            return value

        def outcome() -> Outcome:
            value = run()
            assert self.gradient is not None
            # over the logits, where the next run restores them
            return {"loss": value.detach().float(), "gradient": self.gradient.clone() if overwrites else self.gradient}

        # A graph replays on the memory that it was captured with, which produce() keeps.
        return Side(name, run, self.produce, outcome, bytes=2 * self.size, graph=graph)

    def forward(self, name: str, loss: Loss) -> Side:
        def run() -> Tensor:
            with torch.no_grad():
                return loss(self.saved, self.target)

        return Side(name, run, outcome=lambda: {"loss": run().float()}, bytes=self.size)

    def copy(self) -> Side:
        second = torch.empty_like(self.saved)
        return Side("copy of the logits", lambda: second.copy_(self.saved), bytes=2 * self.size, ceiling="bandwidth")


def pyseq_loss(smoothing: float, **options: Any) -> Loss:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return ops.cross_entropy(
            logits,
            target,
            label_smoothing=smoothing,
            smoothing_form="fairseq",
            ignore_index=PADDING,
            reduction="sum",
            **options,
        )

    return loss


def case(
    rows: int, classes: int, dtype: torch.dtype, smoothing: float = SMOOTHING, forward_only: bool = False
) -> Callable[[torch.device, bool], Work]:
    def build(device: torch.device, quick: bool) -> Work:
        n, v = (8, 97 + classes % 2) if quick else (rows, classes)
        need_memory(n * v * (5 * dtype.itemsize + 12), device)
        inputs = Logits(n, v, dtype, device)
        # torch's form of smoothing with this amount is fairseq's form with SMOOTHING
        torch_smoothing = smoothing * v / (v - 1)
        config = {"rows": n, "classes": v, "dtype": str(dtype).removeprefix("torch."), "label smoothing": smoothing}
        work = Work(config | {"logits bytes": inputs.size}, [], bound=1e-4 if dtype == torch.float32 else 1e-2)
        contenders: dict[str, Callable[[], Loss]] = {
            "pyseq": lambda: pyseq_loss(smoothing),
            "fairseq's formulation": lambda: peers.fairseq_formulation(smoothing, PADDING),
            "F.cross_entropy": lambda: peers.torch_cross_entropy(torch_smoothing, PADDING),
        }
        if not quick:
            contenders["torch.compile"] = lambda: peers.compiled_cross_entropy(torch_smoothing, PADDING)
        side = inputs.forward if forward_only else inputs.training
        for name, make in contenders.items():
            work.add(name, lambda name=name, make=make: side(name, make()))  # type: ignore[misc]
        if not forward_only:
            work.add("pyseq, donate", lambda: _donating(inputs, smoothing))
        if device.type == "cuda" and not forward_only:
            _add_gpu_peers(work, inputs, smoothing, torch_smoothing)
        work.sides.append(inputs.copy())
        return work

    return build


def _donating(inputs: Logits, smoothing: float) -> Side:
    """The gradient over the logits: where the caller needs the logits no more."""
    loss = pyseq_loss(smoothing, inplace="donate")
    side = inputs.training("pyseq, donate", loss, overwrites=True)
    try:
        side.prepare()
        side.run()
    except TypeError as error:
        raise Unavailable(str(error)) from error
    return side


def _add_gpu_peers(work: Work, inputs: Logits, smoothing: float, torch_smoothing: float) -> None:
    for name, make in {
        "Liger": lambda: peers.liger_cross_entropy(torch_smoothing, PADDING),
        "flash-attn": lambda: peers.flash_attn_cross_entropy(torch_smoothing, PADDING),
        "quack": lambda: peers.quack_cross_entropy(torch_smoothing, PADDING),
    }.items():
        work.add(name, lambda name=name, make=make: inputs.training(name, make(), overwrites=True))  # type: ignore[misc]


FP32, BF16 = torch.float32, torch.bfloat16
CASES = [
    Case("cross_entropy/512x32000-system", case(512, 32_000, FP32), ("cpu",), "system"),
    Case("cross_entropy/4096x10000-system", case(4096, 10_000, FP32), ("cpu",), "system"),
    Case("cross_entropy/512x32000", case(512, 32_000, FP32), ("cpu",)),
    Case("cross_entropy/4096x10000", case(4096, 10_000, FP32), ("cpu",)),
    Case("cross_entropy/512x32000-forward", case(512, 32_000, FP32, forward_only=True), ("cpu",)),
    Case("cross_entropy/4096x10000-forward", case(4096, 10_000, FP32, forward_only=True), ("cpu",)),
    Case("cross_entropy/4096x10000-bf16", case(4096, 10_000, BF16), ("cpu",)),
    Case("cross_entropy/3000x9737", case(3000, 9_737, FP32), ("cpu",)),
    Case("cross_entropy/8192x8192-bf16", case(8192, 8192, BF16), ("cuda",)),
    Case("cross_entropy/8192x32768-bf16", case(8192, 32_768, BF16), ("cuda",)),
    Case("cross_entropy/8192x32768-bf16-plain", case(8192, 32_768, BF16, smoothing=0.0), ("cuda",)),
    Case("cross_entropy/8192x50257-bf16", case(8192, 50_257, BF16), ("cuda",)),
    Case("cross_entropy/8192x128256-bf16", case(8192, 128_256, BF16), ("cuda",)),
    Case("cross_entropy/8192x32768-bf16-forward", case(8192, 32_768, BF16, forward_only=True), ("cuda",)),
]
