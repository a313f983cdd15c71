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


PARTS = ("data wait", "forward", "criterion", "backward", "tail")  # of a training update
PART = "part:"  # begins the keys of samples that are seconds of a part of an update


@dataclass(frozen=True)
class Row:
    """What a table tells of a side. Times are in seconds, rates in units a second."""

    name: str
    seconds: Spread
    behind: Spread | None  # time over that of our side, paired; None for our side, and where units differ
    rate: float | None
    unit: str  # of the rate: "B", "FLOP" or ""
    done: Spread | None  # the case's units of work, a second
    share: Spread | None  # of the ceiling of its kind, paired
    memory: int | None  # peak extra bytes
    resident: float | None  # peak bytes of a process, all in all
    cpu: float | None  # seconds of processor time of a process
    parts: dict[str, float]  # seconds of each part of an update
    host: Spread | None
    graph: Spread | None


def side(case: dict[str, Any], name: str) -> dict[str, Any]:
    """A side of a case. Raises KeyError if it was not run."""
    for candidate in case["sides"]:
        if candidate["name"] == name:
            found: dict[str, Any] = candidate
            return found
    raise KeyError(name)


def each(one: dict[str, Any], key: str) -> list[float] | None:
    """A figure of every sample of a side, which may be the same for all; None where the side has none."""
    value = one.get(key)
    if value is None:
        return None
    return list(value) if isinstance(value, list) else [value] * len(one["seconds"])


def times(one: dict[str, Any]) -> list[float]:
    """Seconds of every sample: of a run, or of a unit of work where the side counts them."""
    seconds: list[float] = one["seconds"]
    amounts = each(one, "amount")
    return seconds if amounts is None else [s / a for s, a in zip(seconds, amounts)]


def behind(case: dict[str, Any], name: str, other: str) -> Spread:
    """Time of side ``name`` over that of ``other``, paired. Events are compared with events, not with a replay."""
    return paired(times(side(case, name)), times(side(case, other)))


def median_of(one: dict[str, Any], key: str) -> float | None:
    values = each(one, key)
    return None if values is None else percentile(values, 0.5)


def share(case: dict[str, Any], one: dict[str, Any]) -> Spread | None:
    """The side's rate over that of the ceiling that bounds it, paired; None where the case has no such yardstick.

    Work that counts operations is held against the matrix rate, other work against the copy.
    """
    kind, unit = ("matrix", "flops") if one["flops"] else ("bandwidth", "bytes")
    ceilings = [candidate for candidate in case["sides"] if candidate["ceiling"] == kind]
    if not one[unit] or not ceilings or ceilings[0] is one:
        return None
    return paired(_rates(one, unit), _rates(ceilings[0], unit))


def _rates(one: dict[str, Any], key: str) -> list[float]:
    return [amount / s for amount, s in zip(each(one, key) or [], one["seconds"])]


def peak_memory(one: dict[str, Any]) -> int | None:
    """The larger of the two figures of peak extra memory: neither overstates it by much, each may be blind."""
    taken = one["memory"]
    return None if taken is None else max(taken["allocated"], taken.get("resident", 0))


def rows(case: dict[str, Any]) -> list[Row]:
    ours = case["sides"][0]
    found = []
    for one in case["sides"]:
        seconds = spread(one["seconds"])
        key, unit = ("flops", "FLOP") if one["flops"] else ("bytes", "B" if one["bytes"] else "")
        comparable = one is not ours and (each(one, "amount") is None) == (each(ours, "amount") is None)
        found.append(
            Row(
                name=one["name"],
                seconds=seconds,
                behind=paired(times(one), times(ours)) if comparable else None,
                rate=(median_of(one, key) or 0.0) / seconds.median if unit else None,
                unit=unit,
                done=None if each(one, "amount") is None else spread(_rates(one, "amount")),
                share=share(case, one),
                memory=peak_memory(one),
                resident=median_of(one, "resident_bytes"),
                cpu=median_of(one, "cpu_seconds"),
                parts={name.removeprefix(PART): percentile(one[name], 0.5) for name in one if name.startswith(PART)},
                host=spread(one["host_seconds"]) if one.get("host_seconds") else None,
                graph=spread(one["graph_seconds"]) if one.get("graph_seconds") else None,
            )
        )
    return found
