"""What the figures have to reach: one table of values, and how a run is held against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import summary

Measure = Callable[[dict[str, Any]], float]


@dataclass(frozen=True)
class Target:
    device: str
    case: str
    text: str
    measure: Measure
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True)
class Judgement:
    target: Target
    value: float | None  # None: the case or a side of it was not run

    @property
    def measured(self) -> str:
        return "" if self.value is None else f"{self.value:.3g}"

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not run"
        return "holds" if self.target.holds(self.value) else "does not hold"


def judge(run: dict[str, Any]) -> list[Judgement]:
    """Every target of the run's device, in the order of the table."""
    cases = {case["name"]: case for case in run["cases"]}
    found = []
    for target in TARGETS:
        if target.device != run["settings"]["device"]:
            continue
        try:
            value = target.measure(cases[target.case])
        except (KeyError, TypeError):  # no such case or side, or no figure of this kind
            value = None
        found.append(Judgement(target, value))
    return found


def _ours(case: dict[str, Any], name: str | None) -> dict[str, Any]:
    return case["sides"][0] if name is None else summary.side(case, name)


def faster(device: str, case: str, than: str, by: float, ours: str | None = None) -> Target:
    """The other side's time over ours is at least ``by``."""
    name = f"{ours}: " if ours else ""
    return Target(
        device,
        case,
        f"{name}at least {by:g} x faster than {than}",
        lambda c: summary.behind(c, than, _ours(c, ours)["name"]).median,
        at_least=by,
    )


def within(device: str, case: str, of: str, times: float, ours: str | None = None) -> Target:
    """Our time over the other side's is at most ``times``."""
    name = f"{ours}: " if ours else ""
    return Target(
        device,
        case,
        f"{name}at most {times:g} x the time of {of}",
        lambda c: summary.behind(c, _ours(c, ours)["name"], of).median,
        at_most=times,
    )


def share_of_ceiling(device: str, case: str, least: float) -> Target:
    def measure(found: dict[str, Any]) -> float:
        value = summary.share(found, found["sides"][0])
        if value is None:
            raise KeyError("no ceiling")
        return value.median

    return Target(device, case, f"at least {least:.0%} of the copy's bandwidth", measure, at_least=least)


def memory_share(device: str, case: str, most: float) -> Target:
    """Peak extra memory over the bytes of the logits."""

    def measure(found: dict[str, Any]) -> float:
        peak = summary.peak_memory(found["sides"][0])
        if peak is None:
            raise KeyError("no memory measured")
        return peak / found["config"]["logits bytes"]

    return Target(device, case, f"peak extra memory under {most:.0%} of the logits'", measure, at_most=most)


def host_time(device: str, case: str, seconds: float) -> Target:
    return Target(
        device,
        case,
        f"at most {seconds * 1e6:g} microseconds of host time",
        lambda c: summary.spread(c["sides"][0]["host_seconds"]).median * 1e6,
        at_most=seconds * 1e6,
    )


def device_time(device: str, case: str, seconds: float) -> Target:
    return Target(
        device,
        case,
        f"at most {seconds * 1e3:g} ms",
        lambda c: summary.spread(c["sides"][0]["seconds"]).median * 1e3,
        at_most=seconds * 1e3,
    )


TORCH_TAIL = "torch fused + clip_grad_norm_"
TARGETS = [
    faster("cpu", "adam/fp32-200", TORCH_TAIL, 1.35),
    share_of_ceiling("cpu", "adam/fp32-200", 1.0),
    within("cpu", "adam/bf16-remainder-200", "pyseq, fp32", 0.95),
    faster("cpu", "adam/2000x512", TORCH_TAIL, 8.0),
    *(
        target
        for size in ("512x32000", "4096x10000")
        for target in (
            faster("cpu", f"cross_entropy/{size}-system", "fairseq's formulation", 15.0, "pyseq, donate"),
            faster("cpu", f"cross_entropy/{size}-system", "F.cross_entropy", 15.0, "pyseq, donate"),
            within("cpu", f"cross_entropy/{size}", "copy of the logits", 1.3),
        )
    ),
    *(
        target
        for size in ("4096x128x10000", "2048x512x32000")
        for target in (
            within("cpu", f"linear_cross_entropy/{size}", "three bare products", 1.15),
            memory_share("cpu", f"linear_cross_entropy/{size}", 0.05),
            faster("cpu", f"linear_cross_entropy/{size}", "F.linear_cross_entropy", 1.0),
            faster("cpu", f"linear_cross_entropy/{size}-plain", "F.linear_cross_entropy, chunked", 1.0),
            faster("cpu", f"linear_cross_entropy/{size}", "chunked torch code", 1.0),
        )
    ),
    share_of_ceiling("cuda", "adam/bf16-remainder-210M", 0.9),
    share_of_ceiling("cuda", "adam/bf16-remainder-1B", 0.9),
    faster("cuda", "adam/fp32-210M", TORCH_TAIL, 1.4),
    host_time("cuda", "adam/fp32-210M", 30e-6),
    device_time("cuda", "grad_norm/bf16-1.5G", 0.8e-3),
    device_time("cuda", "cross_entropy/8192x32768-bf16", 0.28e-3),
    *(share_of_ceiling("cuda", f"cross_entropy/8192x{classes}-bf16", 0.85) for classes in (8192, 32768, 50257, 128256)),
    *(
        faster("cuda", "cross_entropy/8192x32768-bf16", peer, 1.0)
        for peer in ("torch.compile", "Liger", "flash-attn", "quack")
    ),
    within("cuda", "linear_cross_entropy/8192x4096x131072-bf16", "three bare products", 1.10),
    memory_share("cuda", "linear_cross_entropy/8192x4096x131072-bf16", 0.05),
]
