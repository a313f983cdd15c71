"""What a benchmark case is, and how it is run.

A case builds its inputs once and offers sides: ways to do the same work, ours first. All of them are run once and what
they computed is compared; a side that computes something else is an error, not a row. Then they are timed in turn,
A B C, C B A, A B C, ..., so that whatever else the machine does slows them alike; figures are medians of ratios
within a turn. Yardsticks (a copy, a matrix product) run in the same turns: shares of the machine's ceilings compare
times that lie next to each other.

A side's ``prepare`` runs before each run and is not timed: it restores inputs that the run changes. The caches are
emptied after it, unless the case says that real life finds them warm.

A side may instead be a process (``measure``, see processes.py): a training run, a translation, a command. It takes its
turns as the others do and reports figures of its own beside the seconds.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor

from . import memory
from .timing import Timer, make_timer

Outcome = Mapping[str, Tensor]
# What one turn of a side gives. "seconds" is always there. Others that tables know: "amount" (units of work done),
# "flops", "cpu_seconds" (user and system), "resident_bytes" (peak), "host_seconds", "graph_seconds", and "part:NAME",
# seconds of a part of an update.
Sample = dict[str, float]
Ceiling = Literal["bandwidth", "matrix"]
# glibc's malloc: "system" as it comes, where every large block is mapped and page-faults anew; "keep" as pyseq-train
# sets it up (pyseq.training.allocator).
Allocator = Literal["keep", "system"]
MINIMUM_TURNS = 5


class Unavailable(Exception):
    """Why a case or a side cannot run here: a package, an operation, a device or memory is missing."""


class Mismatch(Exception):
    """Two sides of a case do not compute the same thing."""


def nothing() -> None:
    pass


@dataclass
class Side:
    """One way to do the work of a case."""

    name: str
    run: Callable[[], Any] = nothing  # what is timed
    prepare: Callable[[], Any] = nothing  # before every run, untimed
    # Does the work and returns what it computed, in tensors that later runs leave alone. A yardstick has none.
    outcome: Callable[[], Outcome] | None = None
    bytes: int | None = None  # that the work cannot do without moving, reads plus writes
    flops: int | None = None
    ceiling: Ceiling | None = None  # this side is the measure of what the machine can do
    graph: bool = True  # on CUDA, also time it replayed from a graph
    measure: Callable[[], Sample] | None = None  # does a run and says what it took; in place of prepare and run
    amount: float | None = None  # units of work (the case's ``unit``) that a run does, where samples do not say
    bound: float | None = None  # its own, in place of the case's
    scale: float | None = None  # the place of this side on a scaling curve; the case's config says of what ("scale")


@dataclass
class Work:
    """A case with its inputs built."""

    config: dict[str, Any]  # sizes and options, as a reader of the JSON wants them
    sides: list[Side]  # ours first
    bound: float | Mapping[str, float]  # largest |a - b| / |b| (2-norms), of every outcome or by its name
    reference: str | None = None  # the side that the others are compared with (default: the second with an outcome)
    skipped: dict[str, str] = field(default_factory=dict)  # sides that cannot run here, and why
    memory: bool = False  # measure the peak extra memory of each side
    cold: bool = True  # empty the caches before each run
    unit: str = ""  # of ``amount``: tokens, sentences
    expected: tuple[str, Outcome] | None = None  # what every side has to compute, and whose it is; no side has to
    turns: int | None = None  # fewer than the command asks for: where a turn takes minutes
    warm_up: bool = True  # begin with a turn that is not counted

    def add(self, name: str, make: Callable[[], Side]) -> None:
        """Add a side that may not be there on this machine."""
        try:
            self.sides.append(make())
        except (Unavailable, ImportError) as error:
            self.skipped[name] = str(error)


@dataclass(frozen=True)
class Case:
    name: str  # "operation/variant"
    build: Callable[[torch.device, bool], Work]  # device, quick: sizes for a smoke run
    devices: tuple[str, ...] = ("cpu", "cuda")
    allocator: Allocator = "keep"

    def matches(self, patterns: list[str]) -> bool:
        """Whether a pattern is in the name, or matches all of it where it has a wildcard. No pattern matches all."""
        return not patterns or any(p in self.name or fnmatch(self.name, p) for p in patterns)


def select(cases: list[Case], patterns: list[str], device_type: str) -> list[Case]:
    return [case for case in cases if device_type in case.devices and case.matches(patterns)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| in 2-norms; nan where they differ in shape or a nan is in either."""
    if found.shape != expected.shape:
        return float("nan")
    difference = squares = 0.0
    for a, b in zip(_pieces(found), _pieces(expected)):
        b = b.double()
        difference += float((a.double() - b).square().sum())
        squares += float(b.square().sum())
    if difference == 0.0:
        return 0.0
    return (difference / squares) ** 0.5 if squares > 0.0 else float("inf")


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Of a size that doubles of them are a small matter."""
    return tuple(tensor.detach().reshape(-1).split(2**24))


def check(work: Work) -> list[dict[str, Any]]:
    """Run each side once and compare what it computed with the reference side's.

    Returns:
        A row for each comparison: side, reference, quantity, error, bound.

    Raises:
        Mismatch: an error is over its bound, or a side has not computed a quantity that the reference has.
    """
    compared = [side for side in work.sides if side.outcome is not None]
    if work.expected is not None:
        reference, expected = work.expected
    elif len(compared) < 2:
        return []
    else:
        named = [side for side in compared if side.name == work.reference]
        chosen = named[0] if named else compared[1]
        compared.remove(chosen)
        reference, expected = chosen.name, _outcome(chosen)
    return [row for side in compared for row in _compare(work, side, reference, expected)]


def _compare(work: Work, side: Side, reference: str, expected: Outcome) -> list[dict[str, Any]]:
    found = _outcome(side)
    rows = []
    for quantity, value in expected.items():
        if quantity not in found:
            raise Mismatch(f"'{side.name}' has no {quantity}, which '{reference}' has")
        bound = work.bound[quantity] if isinstance(work.bound, Mapping) else work.bound
        bound = bound if side.bound is None else side.bound
        error = relative_error(found[quantity], value)
        if not error <= bound:  # nan is over every bound
            raise Mismatch(
                f"{quantity} of '{side.name}' differs from that of '{reference}': relative error "
                f"{error:.3g}, and {bound:.3g} is the bound"
            )
        rows.append({"side": side.name, "reference": reference, "quantity": quantity, "error": error, "bound": bound})
    return rows


def _outcome(side: Side) -> Outcome:
    assert side.outcome is not None
    side.prepare()
    return side.outcome()


def interleave(
    sides: list[Side],
    timer: Timer,
    turns: int,
    seconds: float,
    on_turn: Callable[[float, int], None],
    warm_up: bool = True,
) -> dict[str, list[Sample]]:
    """Time every side once a turn, in alternating order.

    Args:
        turns: at most so many.
        warm_up: before them, one that is not counted.
        seconds: no turn begins after so long, once there are MINIMUM_TURNS.
        on_turn: called with (turns done, turns planned).

    Returns:
        A list of samples a side, as long as there were turns; a sample is what ``timer.measure`` gives.
    """
    samples: dict[str, list[Sample]] = {side.name: [] for side in sides}
    begin = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(0 if warm_up else 1, turns + 1):
            for place, side in enumerate(sides if turn % 2 == 0 else reversed(sides)):
                if side.measure is not None:
                    on_turn(max(turn - 1 + place / len(sides), 0), turns)
                    sample = side.measure()
                else:
                    sample = timer.measure(side.name, side.prepare, side.run)
                if turn > 0:
                    samples[side.name].append(sample)
            gc.collect()
            on_turn(turn, turns)
            if turn >= min(MINIMUM_TURNS, turns) and time.perf_counter() - begin > seconds:
                break
    finally:
        if collecting:
            gc.enable()
    return samples


def run_case(
    case: Case,
    device: torch.device,
    *,
    quick: bool = False,
    turns: int = 15,
    seconds: float = 30.0,
    on_turn: Callable[[float, int], None] = lambda done, planned: None,
) -> dict[str, Any]:
    """Build, check and time a case.

    Returns:
        What the JSON of a run keeps of it: name, config, comparisons, and for each side its samples.

    Raises:
        Unavailable: it cannot run here.
        Mismatch: its sides do not compute the same.
    """
    begin = time.perf_counter()
    work = case.build(device, quick)
    if len({side.name for side in work.sides}) < len(work.sides):
        raise ValueError(f"{case.name}: two sides have the same name")
    checks = check(work)
    timer = make_timer(device, work.cold)
    skipped = dict(work.skipped)
    here = [side for side in work.sides if side.measure is None]  # in this process
    for side in here:
        if side.graph and (why := timer.capture(side.name, side.prepare, side.run)):
            skipped[f"{side.name}, from a graph"] = why
    turns = turns if work.turns is None else min(turns, work.turns)
    samples = interleave(work.sides, timer, turns, seconds, on_turn, work.warm_up)
    peaks = {side.name: memory.peak(side.prepare, side.run, device) for side in here if work.memory}
    sides = [
        {
            "name": side.name,
            "bytes": side.bytes,
            "flops": side.flops,
            "ceiling": side.ceiling,
            "memory": peaks.get(side.name),
            **({"amount": side.amount} if side.amount is not None else {}),
            **({"scale": side.scale} if side.scale is not None else {}),
            **{key: [sample[key] for sample in samples[side.name]] for key in samples[side.name][0]},
        }
        for side in work.sides
    ]
    return {
        "name": case.name,
        "device": device.type,
        "config": work.config,
        "unit": work.unit,
        "cold": work.cold,
        "allocator": case.allocator,
        "elapsed": time.perf_counter() - begin,
        "checks": checks,
        "skipped": skipped,
        "sides": sides,
    }
