"""Inputs for adam_, and the update in float64 as an oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import pyseq.ops as ops
from support.backends import is_interpreted, running_on

BACKENDS = ["cpp-avx512", "cpp-avx2", "cpp-portable", "triton", "cuda"]

# One less than, equal to and one more than the lanes of each vector (4, 8, 16), a tile of random numbers (64), and the
# chunk of elements that a thread takes at a time (16,384); and nothing.
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1000, 16383, 16385]
SIZES_INTERPRETED = [0, 1, 5, 65, 1000]  # the interpreter takes milliseconds for each tensor


def sizes_for(backend: str) -> list[int]:
    return SIZES_INTERPRETED if is_interpreted(backend) else SIZES


@dataclass
class Settings:
    """The options of a step."""

    lr: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.1
    decoupled: bool = True
    eps_mode: str = "torch"
    maximize: bool = False
    seed: int = 0
    factor: float | None = None
    grad_scale: float | None = None


@dataclass
class Tensors:
    """The lists of adam_; ``extras`` are masters (fp32) or remainders (int16)."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor] | None = None
    extras: list[Tensor] | None = None
    step: Tensor = field(default_factory=lambda: torch.zeros(()))

    def lists(self) -> list[list[Tensor]]:
        every = (
            self.params,
            self.grads,
            self.exp_avgs,
            self.exp_avg_sqs,
            self.max_exp_avg_sqs,
            self.extras,
            [self.step],
        )
        return [tensors for tensors in every if tensors is not None]

    def to(self, device: torch.device | None = None) -> Tensors:
        """A copy, with the strides that there are."""
        return self.mapped(lambda tensor: tensor.clone(memory_format=torch.preserve_format).to(device))

    def mapped(self, function: Any) -> Tensors:
        def each(tensors: list[Tensor] | None) -> list[Tensor] | None:
            return None if tensors is None else [function(tensor) for tensor in tensors]

        names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "extras")
        return replace(self, **{name: each(getattr(self, name)) for name in names}, step=function(self.step))


def some(
    sizes: Sequence[int],
    param: torch.dtype = torch.float32,
    grad: torch.dtype | None = None,
    state: torch.dtype = torch.float32,
    extra: torch.dtype | None = None,
    amsgrad: bool = False,
    steps: int = 3,
    scale: float = 1.0,
) -> Tensors:
    """Random tensors as after ``steps`` steps; ``scale`` is that of the parameters."""
    generator = torch.Generator().manual_seed(sum(sizes) + steps)

    def normal(factor: float) -> list[Tensor]:
        return [torch.randn(size, generator=generator) * factor for size in sizes]

    masters = normal(scale)
    split = [ops.split_master(master) for master in masters]
    params = [s[0] for s in split] if extra == torch.int16 else [m.to(param) for m in masters]
    extras = {None: None, torch.int16: [s[1] for s in split], torch.float32: masters}[extra]
    # Not near 0: an update that is a quotient of two small differences shows their rounding, in any implementation.
    squares = [(x.abs() + 0.05).square().to(state) for x in normal(0.1)]
    return Tensors(
        params,
        [g.to(grad or param) for g in normal(0.1)],
        [m.to(state) for m in normal(0.01)],
        squares,
        [(s.float() * 1.1).to(state) for s in squares] if amsgrad else None,
        extras,
        torch.tensor(float(steps)),
    )


def step_on(backend: str, tensors: Tensors, settings: Settings, **more: Any) -> Tensors:
    """A copy of ``tensors`` after a step on a back end."""
    with running_on(backend) as device:
        moved = tensors.to(device)
        call(moved, settings, **more)
        return moved.to(torch.device("cpu"))


def call(tensors: Tensors, settings: Settings, **more: Any) -> None:
    options = dict(vars(settings))
    for name in ("factor", "grad_scale"):
        if options[name] is not None:
            options[name] = torch.tensor(options[name], device=tensors.step.device)
    if tensors.extras is not None:
        options["masters" if tensors.extras[0].dtype == torch.float32 else "remainders"] = tensors.extras
    ops.adam_(
        tensors.params,
        tensors.grads,
        tensors.exp_avgs,
        tensors.exp_avg_sqs,
        step=tensors.step,
        max_exp_avg_sqs=tensors.max_exp_avg_sqs,
        **{**options, **more},
    )


def masters_of(tensors: Tensors) -> list[Tensor]:
    """What is updated: fp32 masters where there are any, whole or split, or else the parameters."""
    if tensors.extras is None:
        return tensors.params
    if tensors.extras[0].dtype == torch.float32:
        return tensors.extras
    return [ops.join_master(param, low) for param, low in zip(tensors.params, tensors.extras)]


def oracle(tensors: Tensors, settings: Settings) -> Tensors:
    """A step in float64, from the formulas as they stand in the papers; params are the masters."""
    s, t = settings, float(tensors.step) + 1
    out = tensors.mapped(lambda tensor: tensor.double())
    out.params = [master.double() for master in masters_of(tensors)]
    for i, (p, g, m, v) in enumerate(zip(out.params, out.grads, out.exp_avgs, out.exp_avg_sqs)):
        g = g * (s.factor or 1) / (s.grad_scale or 1) * (-1 if s.maximize else 1)
        g = g if s.decoupled else g + s.weight_decay * p
        m = s.beta1 * m + (1 - s.beta1) * g
        v = s.beta2 * v + (1 - s.beta2) * g * g
        out.exp_avgs[i], out.exp_avg_sqs[i], largest = m, v, v
        if out.max_exp_avg_sqs is not None:
            largest = out.max_exp_avg_sqs[i] = torch.maximum(out.max_exp_avg_sqs[i], v)
        p = p - s.lr * s.weight_decay * p if s.decoupled else p
        corrected_m, corrected_v = m / (1 - s.beta1**t), largest / (1 - s.beta2**t)
        if s.eps_mode == "torch":
            out.params[i] = p - s.lr * corrected_m / (corrected_v.sqrt() + s.eps)
        else:
            rate = s.lr * math.sqrt(1 - s.beta2**t) / (1 - s.beta1**t)
            out.params[i] = p - rate * m / (largest.sqrt() + s.eps)
    return out


def error(result: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference."""
    return max((float((a.double() - b).abs().max()) for a, b in zip(result, exact) if a.numel()), default=0.0)


def half_ulp(exact: Sequence[Tensor], dtype: torch.dtype) -> float:
    """The rounding that no result of this dtype escapes."""
    return max((float(x.abs().max()) for x in exact if x.numel()), default=0.0) * torch.finfo(dtype).eps / 2
