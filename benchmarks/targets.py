"""What the figures have to reach: one table of values, and how a run is held against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    return [
        Judgement(target, measured(target, run)) for target in TARGETS if target.device == run["settings"]["device"]
    ]


def measured(target: Target, run: dict[str, Any]) -> float | None:
    """The figure of a run; None where it has no such case or side, or no figure of this kind."""
    try:
        return target.measure(next(case for case in run["cases"] if case["name"] == target.case))
    except (StopIteration, KeyError, TypeError):
        return None


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


def against_recorded(case: str, text: str, least: float, ours: str | None = None) -> Target:
    """Units a second of a side of ours, against a figure that was once taken elsewhere."""

    def measure(found: dict[str, Any]) -> float:
        return 1 / summary.spread(summary.times(_ours(found, ours))).median

    return Target("cpu", case, text, measure, at_least=least)


def seconds_at_most(case: str, text: str, most: float, ours: str) -> Target:
    return Target("cpu", case, text, lambda c: summary.spread(_ours(c, ours)["seconds"]).median, at_most=most)


def part_at_most(case: str, text: str, part: str, most: float, ours: str) -> Target:
    """Seconds of a part of a run."""

    def measure(found: dict[str, Any]) -> float:
        value = summary.median_of(_ours(found, ours), f"{summary.PART}{part}")
        if value is None:
            raise KeyError(part)
        return value

    return Target("cpu", case, text, measure, at_most=most)


def bytes_of_growth(case: str, text: str, most: float, less: str, more: str) -> Target:
    """Bytes of a process for each further unit of the scale, from one side to another."""

    def measure(found: dict[str, Any]) -> float:
        small, large = summary.side(found, less), summary.side(found, more)
        bytes_small, bytes_large = (summary.median_of(one, "resident_bytes") for one in (small, large))
        if bytes_small is None or bytes_large is None:
            raise KeyError("no memory measured")
        return (bytes_large - bytes_small) / float(large["scale"] - small["scale"])

    return Target("cpu", case, text, measure, at_most=most)


def peak_of_process(device: str, case: str, of: str, most: float) -> Target:
    """Our process's peak memory over that of another side's."""

    def measure(found: dict[str, Any]) -> float:
        ours, theirs = (
            summary.median_of(one, "resident_bytes") for one in (found["sides"][0], summary.side(found, of))
        )
        if ours is None or theirs is None:
            raise KeyError("no memory measured")
        return ours / theirs

    return Target(device, case, f"peak memory at most {most:g} x that of {of}", measure, at_most=most)


def share_of_matrix_rate(device: str, case: str, least: float, ours: str | None = None) -> Target:
    def measure(found: dict[str, Any]) -> float:
        value = summary.share(found, _ours(found, ours))
        if value is None:
            raise KeyError("no ceiling")
        return value.median

    name = f"{ours}: " if ours else ""
    return Target(device, case, f"{name}model FLOPs at least {least:.0%} of the matrix rate", measure, at_least=least)


def as_fast_as_fairseq(case: str, loop: str, times: float, fairseq: str, ours: str | None = None) -> list[Target]:
    """Against a fairseq where one was given, and against the lean loop, which stands for it elsewhere.

    On the machine where both were measured, fairseq made FAIRSEQ_OVER_LOOP times the tokens a second of the loop, at
    either setting of malloc.
    """
    through = faster("cpu", case, loop, times * FAIRSEQ_OVER_LOOP, ours)
    text = f"{through.text} ({times:g} x fairseq, which was {FAIRSEQ_OVER_LOOP:g} x the loop)"
    return [faster("cpu", case, fairseq, times, ours), dataclasses.replace(through, text=text)]


FAIRSEQ_OVER_LOOP = 1.02
LOOP, LOOP_TUNED, FAIRSEQ, FAIRSEQ_TUNED = (
    "lean torch loop", "lean torch loop, malloc tuned", "fairseq", "fairseq, malloc tuned"
)  # fmt: skip
ALL_OFF = "pyseq, every fused path off"
TEN_MILLION = "10,000,000 pairs"
WHOLE_RUNS = [
    *as_fast_as_fairseq("train/tiny-multi30k", LOOP, 1.8, FAIRSEQ),
    *as_fast_as_fairseq("train/tiny-multi30k", LOOP_TUNED, 1.35, FAIRSEQ_TUNED),
    *as_fast_as_fairseq("train/tiny-multi30k-bf16", LOOP, 2.8, FAIRSEQ),
    faster("cpu", "train/iwslt-tatoeba", ALL_OFF, 1.4),
    faster("cpu", "train/iwslt-tatoeba-bf16", ALL_OFF, 2.2),
    faster("cpu", "train/lm-wikitext2", LOOP, 1.5),
    peak_of_process("cpu", "train/lm-wikitext2", LOOP, 0.5),
    faster("cpu", "train/lm-wikitext2-bf16", f"{LOOP}, autocast", 1.5),
    peak_of_process("cpu", "train/lm-wikitext2-bf16", f"{LOOP}, autocast", 0.5),
    faster("cpu", "generate/tiny", FAIRSEQ, 4.0),
    faster("cpu", "generate/tiny", "CTranslate2, fp32", 1.0),
    against_recorded("generate/tiny", "at least 400 sentences/s (fairseq, elsewhere: about 100)", 400.0),
    faster("cpu", "generate/iwslt", ALL_OFF, 2.0),
    faster("cpu", "preprocess/multi30k", "fairseq, 1 worker", 5.0),
    seconds_at_most(
        "preprocess/multi30k", "one worker: at most 1.8 s (fairseq, elsewhere: 9.0 s)", 1.8, "pyseq, 1 worker"
    ),
    faster("cpu", "startup/first-update", FAIRSEQ, 2.0),
    within("cpu", "growth/sentences", "pyseq, 10,000 pairs", 1.05, f"pyseq, {TEN_MILLION}"),
    part_at_most("growth/sentences", f"{TEN_MILLION} opened in at most 10 s", "opening", 10.0, f"pyseq, {TEN_MILLION}"),
    bytes_of_growth(
        "growth/sentences",
        # Of both languages sizes (4) and places (8), the order (8), and the batches; the corpus itself stays on disk.
        "at most 36 bytes of memory for a further pair",
        36.0,
        "pyseq, 10,000 pairs",
        f"pyseq, {TEN_MILLION}",
    ),
    faster("cuda", "train/big-invented-bf16", f"{ALL_OFF}, bf16", 2.5),
    share_of_matrix_rate("cuda", "train/big-invented-bf16", 0.5),
    share_of_matrix_rate("cuda", "train/gpt2-medium-bf16", 0.55),
]


class Headline(NamedTuple):
    """A comparison for the first page: the time of side ``than`` over ours."""

    work: str
    beside: str
    case: str
    than: str

    def times_as_fast(self, run: dict[str, Any]) -> float | None:
        return measured(faster("cpu", self.case, self.than, 1.0), run)


TORCH_TAIL = "torch fused + clip_grad_norm_"
HEADLINES = [
    Headline("training, a translation model of 2.6 M parameters", "fairseq", "train/tiny-multi30k", FAIRSEQ),
    Headline("the same with `--bf16`", "fairseq in fp32", "train/tiny-multi30k-bf16", FAIRSEQ),
    Headline("training, a language model of 36 M", "a lean loop in plain torch", "train/lm-wikitext2", LOOP),
    Headline("the same with `--bf16`", "the loop under autocast", "train/lm-wikitext2-bf16", f"{LOOP}, autocast"),
    Headline("translating, beam 5", "fairseq", "generate/tiny", FAIRSEQ),
    Headline("translating, beam 5", "CTranslate2, fp32", "generate/tiny", "CTranslate2, fp32"),
    Headline("counting words and binarising", "fairseq", "preprocess/multi30k", "fairseq, 1 worker"),
    Headline("from the shell to the first update", "fairseq", "startup/first-update", FAIRSEQ),
    Headline("clipping and AdamW, 200 tensors", "torch's fused AdamW, clip_grad_norm_", "adam/fp32-200", TORCH_TAIL),
    Headline(
        "output layer and cross-entropy, 4,096 x 128 x 10,000",
        "F.linear_cross_entropy",
        "linear_cross_entropy/4096x128x10000",
        "F.linear_cross_entropy",
    ),
]
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
    *WHOLE_RUNS,
]
