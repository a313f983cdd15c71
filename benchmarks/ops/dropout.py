"""Dropout and what a transformer does around it, forward and backward: ours, torch's, torch.compile's, and a copy.

The sizes are those of 4,000 tokens in transformer_iwslt, _base and _big (C 512, 512, 1024; F 1024, 2048, 4096) and in
the tiny recipe (C 128, F 256). Which elements are dropped differs from side to side. So results and gradients are
compared with nothing dropped, and by the share of zeros that dropout alone makes. Sides named "without dropout" run
torch: what they take is left to gain by fusing more than dropout. Needed are one read and one write of the output's
size, twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq import ops

from ..harness import Case, Outcome, Side, Work
from ..machine import copy_yardstick

TOKENS, VOCABULARY, LENGTH, P = 4000, 10_000, 200, 0.1
SIZES = {
    "tiny": (128, 256, torch.float32),
    "iwslt": (512, 1024, torch.float32),
    "base-bf16": (512, 2048, torch.bfloat16),
    "big": (1024, 4096, torch.float32),
}
Function = Callable[..., Tensor]  # (p, *arguments)


class Inputs:
    """Leaves of one size."""

    def __init__(self, width: int, inner: int, dtype: torch.dtype, device: torch.device, quick: bool) -> None:
        self.width, self.dtype, self.device = width, dtype, device
        self.tokens, self.vocabulary = (16, 50) if quick else (TOKENS, VOCABULARY)
        self.x, self.residual = self.leaf(self.tokens, width), self.leaf(self.tokens, width)
        self.weight, self.bias = self.leaf(width), self.leaf(width)
        self.hidden, self.hidden_bias = self.leaf(self.tokens, inner), self.leaf(inner)

    def leaf(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype).requires_grad_()

    def norm(self, z: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(z, (self.width,), w, b)


# Each of these gives: the leaves, our function, torch's, and torch's without the dropout where that is of interest.
Contest = tuple[tuple[Tensor, ...], Function, Function, "Function | None"]


def dropout(i: Inputs) -> Contest:
    return (i.x,), lambda p, x: ops.dropout(x, p), lambda p, x: F.dropout(x, p), None


def residual(i: Inputs) -> Contest:
    return (
        (i.x, i.residual),
        lambda p, x, r: ops.dropout(x, p, residual=r),
        lambda p, x, r: r + F.dropout(x, p),
        lambda p, x, r: r + x,
    )


def norm_of_both(i: Inputs) -> Contest:
    return (
        (i.x, i.residual, i.weight, i.bias),
        lambda p, x, r, w, b: ops.layer_norm(x, w, b, residual=r, p=p),
        lambda p, x, r, w, b: i.norm(r + F.dropout(x, p), w, b),
        lambda p, x, r, w, b: i.norm(r + x, w, b),
    )


def norm(i: Inputs) -> Contest:
    ours: Function = lambda p, x, w, b: ops.layer_norm(x, w, b)  # noqa: E731
    return (i.x, i.weight, i.bias), ours, lambda p, x, w, b: i.norm(x, w, b), None


def bias_relu(i: Inputs) -> Contest:
    return (
        (i.hidden, i.hidden_bias),
        lambda p, h, b: ops.dropout(F.relu(h + b), p),
        lambda p, h, b: F.dropout(F.relu(h + b), p),
        lambda p, h, b: F.relu(h + b),
    )


def bias_gelu(i: Inputs) -> Contest:
    return (
        (i.hidden, i.hidden_bias),
        lambda p, h, b: ops.dropout(F.gelu(h + b), p),
        lambda p, h, b: F.dropout(F.gelu(h + b), p),
        lambda p, h, b: F.gelu(h + b),
    )


def embedding(i: Inputs) -> Contest:
    tokens = torch.randint(i.vocabulary, (i.tokens,), device=i.device)
    places = torch.arange(i.tokens, device=i.device) % LENGTH
    positions = i.leaf(LENGTH, i.width).detach()

    def embedded(table: Tensor) -> Tensor:
        return math.sqrt(i.width) * F.embedding(tokens, table, 1) + F.embedding(places, positions)

    return (
        (i.leaf(i.vocabulary, i.width),),
        lambda p, t: ops.dropout(embedded(t), p),
        lambda p, t: F.dropout(embedded(t), p),
        lambda p, t: embedded(t),
    )


def side(
    name: str, fn: Function, leaves: tuple[Tensor, ...], drops: bool, compared: bool = True, bound: float | None = None
) -> Side:
    grad = torch.randn_like(fn(0.0, *leaves))

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(fn(P, *leaves), leaves, grad)

    def outcome() -> Outcome:
        found = undropped(fn, leaves)
        if drops:
            found["share of zeros"] = fn(P, torch.ones(1000, 1000).requires_grad_()).eq(0).double().mean().detach()
        return found

    size = 4 * grad.numel() * grad.element_size()
    return Side(name, run, outcome=outcome if compared else None, bytes=size, bound=bound)


def undropped(fn: Function, leaves: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What ``fn`` computes with nothing dropped, and the gradients of the sum of its output."""
    output = fn(0.0, *leaves)
    gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
    return {"output": output.detach()} | {f"gradient {number}": one for number, one in enumerate(gradients)}


def in_fp32(fn: Function, leaves: tuple[Tensor, ...]) -> tuple[str, Outcome]:
    return "torch in fp32", undropped(fn, tuple(leaf.detach().float().requires_grad_() for leaf in leaves))


def case(contest: Callable[[Inputs], Contest], size: str) -> Callable[[torch.device, bool], Work]:
    def build(device: torch.device, quick: bool) -> Work:
        width, inner, dtype = SIZES[size]
        inputs = Inputs(*((16, 32) if quick else (width, inner)), dtype, device, quick)
        leaves, ours, theirs, without = contest(inputs)
        drops = contest is dropout and device.type == "cpu"
        config: dict[str, Any] = {"tokens": inputs.tokens, "width": inputs.width}
        config |= {"dtype": str(dtype).removeprefix("torch."), "p": P}
        bound = 1e-4 if dtype == torch.float32 else 2e-2
        torch_bound = bound
        if dtype == torch.bfloat16 and contest is norm_of_both:
            torch_bound = 1.0  # it sums the gradients of weight and bias in bf16: a bias's ends at 256
        sides = [side("pyseq", ours, leaves, drops), side("torch", theirs, leaves, drops, bound=torch_bound)]
        work = Work(config, sides, bound)
        if dtype == torch.bfloat16:
            work.expected = in_fp32(theirs, leaves)
        if drops:
            work.bound = dict.fromkeys(("output", "gradient 0"), bound) | {"share of zeros": 2e-2}
        if not quick:
            torch.compiler.reset()
            compiled: Function = torch.compile(lambda *all_leaves: theirs(P, *all_leaves))
            with_p: Function = lambda p, *all_leaves: compiled(*all_leaves)  # noqa: E731
            work.add("torch.compile", lambda: side("torch.compile", with_p, leaves, False, compared=False))
        if without is not None:
            work.sides.append(side("without dropout", without, leaves, False, compared=False))
        work.sides.append(copy_yardstick(device, work.sides[0].bytes or 0))
        return work

    return build


MAIN = {"dropout": dropout, "residual": residual, "norm-residual": norm_of_both}
OTHERS = {"norm": norm, "bias-relu": bias_relu, "bias-gelu": bias_gelu, "embedding": embedding}
CASES = [
    *(
        Case(f"dropout/{name}-{size}", case(contest, size), ("cpu",))
        for name, contest in MAIN.items()
        for size in ("tiny", "iwslt", "base-bf16", "big")
    ),
    *(Case(f"dropout/{name}-iwslt", case(contest, "iwslt"), ("cpu",)) for name, contest in OTHERS.items()),
]
