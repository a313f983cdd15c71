"""The optimizer tail: norm, clipping and AdamW; ours, torch's fused and foreach ones, and a copy.

Sides share parameters and gradients and have states of their own. Clipping as torch does it scales the gradients in
place, so they are restored before every run. Needed are 32 bytes a parameter for fp32 (the norm reads the gradient;
the update reads gradient, parameter and two moments and writes all but the gradient), 28 for bf16 parameters and
gradients with 16 more bits of a master.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import peers
from ..harness import Case, Outcome, Side, Unavailable, Work
from ..machine import copy_yardstick, need_memory
from ..parameter_lists import Shapes, allocate, bound_to, count_of, even, of_model

OPTIONS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.01}
MAX_NORM = 1.0
STEPS_COMPARED = 3
STEPS_IN_A_ROW = 50
BOUND = 1e-4  # torch's fp32 sums put its norm of 50 M numbers about 1e-5 off, and the square enters exp_avg_sq
MODEL_BOUND = 1e-3  # and the norm of an embedding of 60 M numbers 2.5e-4 off
QUICK_ELEMENTS = 20_000
BYTES = {torch.float32: 32, torch.bfloat16: 28}
TORCH = "torch fused + clip_grad_norm_"


def fused_adamw(parameters: list[Tensor]) -> Any:
    from pyseq import optim

    if not hasattr(optim, "FusedAdamW"):
        raise Unavailable("this pyseq has no optim.FusedAdamW")
    return optim.FusedAdamW(parameters, **OPTIONS)


class Tail:
    """Parameters with gradients, and the steps of several optimizers over them."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype, device: torch.device, adjacent: bool = False) -> None:
        self.parameters = allocate(shapes, dtype, device, adjacent, scale=0.02)
        self.gradients = allocate(shapes, dtype, device, adjacent, scale=0.01)
        self._saved = [gradient.clone() for gradient in self.gradients]
        self._initial = [parameter.clone() for parameter in self.parameters]
        bound_to(self.parameters, self.gradients)
        self.count = sum(parameter.numel() for parameter in self.parameters)

    @torch.no_grad()
    def restore_gradients(self) -> None:
        torch._foreach_copy_(self.gradients, self._saved)

    @torch.no_grad()
    def outcome(self, step: Callable[[], Any], moments: Callable[[str], list[Tensor]]) -> Outcome:
        """What some steps from the initial parameters make of them and of the moments."""
        torch._foreach_copy_(self.parameters, self._initial)
        for _ in range(STEPS_COMPARED):
            self.restore_gradients()
            step()
        change = [p.float() - q.float() for p, q in zip(self.parameters, self._initial)]
        return {"change of the parameters": _flat(change)} | {
            name: _flat(moments(name)) for name in ("exp_avg", "exp_avg_sq")
        }

    def side(
        self, name: str, optimizer: Any, step: Callable[[], Any], keys: dict[str, str] | None = None, graph: bool = True
    ) -> Side:
        """``keys`` are the names that ``optimizer`` gives to exp_avg and exp_avg_sq in its state, if others."""

        def moments(key: str) -> list[Tensor]:
            if keys is not None:
                return [optimizer.state[parameter][keys[key]] for parameter in self.parameters]
            states = optimizer.state_dict()["state"]  # to look at optimizer.state would cost ours time in every step
            return [states[place][key] for place in range(len(self.parameters))]

        size = BYTES[self.parameters[0].dtype] * self.count
        return Side(name, step, self.restore_gradients, lambda: self.outcome(step, moments), size, graph=graph)

    def pyseq(self, name: str = "pyseq") -> Side:
        optimizer = fused_adamw(self.parameters)
        return self.side(name, optimizer, lambda: optimizer.step(max_norm=MAX_NORM))

    def pyseq_looked_at(self) -> Side:
        """As for a user who has taken tensors out of ``optimizer.state``: they might be moved."""
        optimizer = fused_adamw(self.parameters)

        def step() -> None:
            optimizer.step(max_norm=MAX_NORM)
            assert optimizer.state

        return self.side("pyseq, its state looked at", optimizer, step)

    def torch(self, name: str, implementation: str) -> Side:
        options: dict[str, Any] = OPTIONS | {implementation: True}
        if self.parameters[0].is_cuda:
            options["capturable"] = True
        return self._clipped(name, torch.optim.AdamW(self.parameters, **options))

    def apex(self) -> Side:
        return self._clipped("apex FusedAdam + clip_grad_norm_", peers.apex_adamw(self.parameters, **OPTIONS), False)

    def bitsandbytes(self) -> Side:
        """Launched on the legacy stream: not capturable."""
        optimizer = peers.bitsandbytes_adamw(self.parameters, **OPTIONS)
        keys = {"exp_avg": "state1", "exp_avg_sq": "state2"}
        return self._clipped("bitsandbytes AdamW + clip_grad_norm_", optimizer, False, keys)

    def _clipped(self, name: str, optimizer: Any, graph: bool = True, keys: dict[str, str] | None = None) -> Side:
        def step() -> None:
            torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
            optimizer.step()

        return self.side(name, optimizer, step, keys, graph)

    def torch_masters(self, name: str) -> Side:
        """fp32 masters beside 16-bit parameters, as fairseq and apex's O2 keep them: copy, clip, step, copy back."""
        masters = [parameter.detach().float().requires_grad_() for parameter in self.parameters]
        initial = [master.detach().clone() for master in masters]
        gradients = [torch.empty_like(master) for master in masters]
        bound_to(masters, gradients)
        options: dict[str, Any] = OPTIONS | {"fused": True, "capturable": masters[0].is_cuda}
        optimizer = torch.optim.AdamW(masters, **options)
        targets, sources = [p.detach() for p in self.parameters], [m.detach() for m in masters]

        def step() -> None:
            torch._foreach_copy_(gradients, self.gradients)
            torch.nn.utils.clip_grad_norm_(masters, MAX_NORM)
            optimizer.step()
            torch._foreach_copy_(targets, sources)

        side = self.side(name, optimizer, step)
        inner = side.outcome
        assert inner is not None

        def outcome() -> Outcome:
            torch._foreach_copy_(sources, initial)
            return inner()

        side.outcome = outcome
        return side


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])


def shrunk(shapes: Shapes) -> Shapes:
    """As many of the shapes as fit a smoke run, and none that is large."""
    return [tuple(min(n, 64) for n in shape) for shape in shapes[:20]]


def fp32(
    shapes: Callable[[], Shapes],
    adjacent: bool = False,
    foreach: bool = True,
    bound: float = BOUND,
    looked_at: bool = False,
) -> Callable[[torch.device, bool], Work]:
    def build(device: torch.device, quick: bool) -> Work:
        chosen = shrunk(shapes()) if quick else shapes()
        need_memory(count_of(chosen) * (44 + 8 * (2 + foreach + looked_at)), device)
        tail = Tail(chosen, torch.float32, device, adjacent)
        work = Work(_config(tail, "float32", adjacent), [tail.pyseq()], bound=bound)
        work.sides.append(tail.torch(TORCH, "fused"))
        if foreach:
            work.sides.append(tail.torch("torch foreach + clip_grad_norm_", "foreach"))
        if looked_at:
            work.sides.append(tail.pyseq_looked_at())
        if device.type == "cuda":
            work.add("apex FusedAdam + clip_grad_norm_", lambda: tail.apex())
            work.add("bitsandbytes AdamW + clip_grad_norm_", lambda: tail.bitsandbytes())
        work.sides.append(copy_yardstick(device, BYTES[torch.float32] * tail.count))
        return work

    return build


def in_a_row(shapes: Callable[[], Shapes], adjacent: bool) -> Callable[[torch.device, bool], Work]:
    """Next to nothing to compute, and all of it in the caches: what a step costs the host."""

    def build(device: torch.device, quick: bool) -> Work:
        tail = Tail(shrunk(shapes()) if quick else shapes(), torch.float32, device, adjacent)
        sides = [tail.pyseq(), tail.torch(TORCH, "fused"), tail.torch("torch foreach + clip_grad_norm_", "foreach")]
        for side in sides:
            side.run, side.bytes, side.amount = functools.partial(_repeat, side.run), None, float(STEPS_IN_A_ROW)
        config = _config(tail, "float32", adjacent) | {"steps in a row": STEPS_IN_A_ROW}
        return Work(config, sides, BOUND, cold=False, unit="steps")

    return build


def _repeat(step: Callable[[], Any]) -> None:
    for _ in range(STEPS_IN_A_ROW):
        step()


def bf16(shapes: Callable[[], Shapes], beside_fp32: bool = True) -> Callable[[torch.device, bool], Work]:
    def build(device: torch.device, quick: bool) -> Work:
        chosen = shrunk(shapes()) if quick else shapes()
        need_memory(count_of(chosen) * (66 + 24 * beside_fp32), device)
        tail = Tail(chosen, torch.bfloat16, device)
        # A master that is a rounding error off may be rounded to the next bf16 parameter.
        bound = {"change of the parameters": 1e-2, "exp_avg": BOUND, "exp_avg_sq": BOUND}
        work = Work(_config(tail, "bfloat16, masters fp32", False), [tail.pyseq()], bound)
        work.sides.append(tail.torch_masters("torch fused on fp32 masters"))
        if beside_fp32:
            fp32_side = Tail(chosen, torch.float32, device).pyseq("pyseq, fp32")
            fp32_side.outcome = None  # the same work on other numbers, for its time alone
            work.sides.append(fp32_side)
        work.sides.append(copy_yardstick(device, BYTES[torch.bfloat16] * tail.count))
        return work

    return build


def _config(tail: Tail, dtype: str, adjacent: bool) -> dict[str, Any]:
    return {
        "parameters": tail.count,
        "tensors": len(tail.parameters),
        "dtype": dtype,
        "memory": "one piece" if adjacent else "a piece a tensor",
        "max norm": MAX_NORM,
    }


CASES = [
    Case("adam/fp32-210M", fp32(lambda: even(300, 210_000_000)), ("cuda",)),
    Case("adam/bf16-remainder-210M", bf16(lambda: even(300, 210_000_000)), ("cuda",)),
    Case("adam/bf16-remainder-1B", bf16(lambda: even(400, 1_000_000_000), beside_fp32=False), ("cuda",)),
    Case("adam/fp32-200", fp32(lambda: even(200, 50_000_000)), ("cpu",)),
    Case("adam/bf16-remainder-200", bf16(lambda: even(200, 50_000_000)), ("cpu",)),
    Case("adam/2000x512", fp32(lambda: even(2000, 2000 * 512), looked_at=True)),
    Case("adam/2000x512-adjacent", fp32(lambda: even(2000, 2000 * 512), adjacent=True)),
    Case("adam/1000x1-adjacent", in_a_row(lambda: even(1000, 1000), adjacent=True), ("cpu",)),
    Case("adam/2000x1-adjacent", in_a_row(lambda: even(2000, 2000), adjacent=True), ("cpu",)),
    Case("adam/2000x1", in_a_row(lambda: even(2000, 2000), adjacent=False), ("cpu",)),
    Case("adam/4000x1", in_a_row(lambda: even(4000, 4000), adjacent=False), ("cpu",)),
    Case("adam/transformer-iwslt", fp32(lambda: of_model("iwslt"), bound=MODEL_BOUND)),
    Case("adam/transformer-base", fp32(lambda: of_model("base"), foreach=False, bound=MODEL_BOUND)),
    Case("adam/transformer-big", fp32(lambda: of_model("big"), foreach=False, bound=MODEL_BOUND)),
    Case(
        "adam/transformer-big-adjacent",
        fp32(lambda: of_model("big"), adjacent=True, foreach=False, bound=MODEL_BOUND),
        ("cuda",),
    ),
    Case("adam/gpt2-medium", fp32(lambda: of_model("gpt2-medium"), foreach=False, bound=MODEL_BOUND)),
]
