"""Figures from the samples that a run's JSON keeps: medians, spreads, paired ratios, rates, shares of a ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """The 20th, 50th and 80th percentile of some samples."""

    low: float
    median: float
    high: float

    @property
    def noise(self) -> float:
        """Half the distance of low and high, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def percentile(samples: Sequence[float], share: float) -> float:
    """Interpolated between the two nearest of the sorted samples. Raises ValueError if there is none."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = min(int(place), len(ordered) - 2) if len(ordered) > 1 else 0
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def spread(samples: Sequence[float]) -> Spread:
    return Spread(*(percentile(samples, share) for share in (0.2, 0.5, 0.8)))


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The spread of the ratios within a turn. Raises ValueError if the two were not taken in the same turns."""
    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} and {len(denominators)} samples are no pairs")
    return spread([a / b for a, b in zip(numerators, denominators)])


@dataclass(frozen=True)
class Row:
    """What a table tells of a side. Times are in seconds, rates in units a second."""

    name: str
    seconds: Spread
    behind: Spread | None  # time over that of our side, paired; None for our side
    rate: float | None
    unit: str  # of the rate: "B", "FLOP" or ""
    share: Spread | None  # of the ceiling of its kind, paired
    memory: int | None  # peak extra bytes
    host: Spread | None
    graph: Spread | None


def side(case: dict[str, Any], name: str) -> dict[str, Any]:
    """A side of a case. Raises KeyError if it was not run."""
    for candidate in case["sides"]:
        if candidate["name"] == name:
            found: dict[str, Any] = candidate
            return found
    raise KeyError(name)


def behind(case: dict[str, Any], name: str, other: str) -> Spread:
    """Time of side ``name`` over that of ``other``, paired. Events are compared with events, not with a replay."""
    return paired(side(case, name)["seconds"], side(case, other)["seconds"])


def share(case: dict[str, Any], one: dict[str, Any]) -> Spread | None:
    """The side's rate over that of the ceiling that bounds it, paired; None where the case has no such yardstick.

    Work that counts operations is held against the matrix rate, other work against the copy.
    """
    kind, unit = ("matrix", "flops") if one["flops"] else ("bandwidth", "bytes")
    ceilings = [candidate for candidate in case["sides"] if candidate["ceiling"] == kind]
    if not one[unit] or not ceilings or ceilings[0] is one:
        return None
    top = ceilings[0]
    return paired([one[unit] / s for s in one["seconds"]], [top[unit] / s for s in top["seconds"]])


def peak_memory(one: dict[str, Any]) -> int | None:
    """The larger of the two figures of peak extra memory: neither overstates it by much, each may be blind."""
    taken = one["memory"]
    return None if taken is None else max(taken["allocated"], taken.get("resident", 0))


def rows(case: dict[str, Any]) -> list[Row]:
    ours = case["sides"][0]
    found = []
    for one in case["sides"]:
        seconds = spread(one["seconds"])
        amount, unit = (one["flops"], "FLOP") if one["flops"] else (one["bytes"], "B" if one["bytes"] else "")
        found.append(
            Row(
                name=one["name"],
                seconds=seconds,
                behind=None if one is ours else paired(one["seconds"], ours["seconds"]),
                rate=amount / seconds.median if amount else None,
                unit=unit,
                share=share(case, one),
                memory=peak_memory(one),
                host=spread(one["host_seconds"]) if one.get("host_seconds") else None,
                graph=spread(one["graph_seconds"]) if one.get("graph_seconds") else None,
            )
        )
    return found
