"""Whole training runs: pyseq-train, a lean loop in plain torch on the same batches, and a fairseq if one is given.

A side is a process that trains for some updates, of which the first are not counted; sides take turns. Before that they
train a few updates from the same weights without dropout, and their losses are compared. Start-up is not counted here
(startup/first-update is), validation and saving are off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import corpora, fairseq, machine, processes, recipes, summary
from ..harness import Case, Outcome, Sample, Side, Unavailable, Work
from ..recipes import ALL_OFF, BF16, COMPILED, DEFAULT, GRAPHED, PACKED, PACKED_BF16, TUNED_MALLOC, Variant, with_bf16

LOSS_BOUND, LOSS_BOUND_BF16 = 1e-3, 3e-2
LOOP, LOOP_TUNED = "lean torch loop", "lean torch loop, malloc tuned"
LOOP_BF16, LOOP_TUNED_BF16 = f"{LOOP}, autocast", f"{LOOP_TUNED}, autocast"
FAIRSEQ, FAIRSEQ_TUNED = "fairseq", "fairseq, malloc tuned"
TURNS = 3  # of two, one in which another program is in the way counts half
QUICK_UPDATES, QUICK_WARM_UP = 3, 1


@dataclass(frozen=True)
class Run:
    """A recipe on its data, for so many updates."""

    data: Callable[[], Path]
    small_data: Callable[[], Path]
    recipe: Sequence[str]
    small: Sequence[str]  # makes the recipe small
    updates: int
    warm_up: int
    check_sentences: int = 40  # in a batch of the comparison


@dataclass(frozen=True)
class Peer:
    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    bf16: bool = False


@dataclass(frozen=True)
class Prepared:
    """A run that can be made: its data is there."""

    arguments: list[str]  # data folder and options
    updates: int
    warm_up: int
    check: list[str]  # options for the comparison
    quick: bool

    def measure(self, command: Sequence[str], more: Mapping[str, str]) -> Sample:
        with processes.scratch() as folder:
            limits = ["--max-update", str(self.updates), "--save-dir", str(folder)]
            done = processes.execute([*command, *self.arguments, *limits], processes.environment(more))
        found = done.figures()
        parts = {f"{summary.PART}{name}": seconds for name, seconds in found["parts"].items()}
        parts[f"{summary.PART}update"] = found["seconds"] / found["updates"]
        figures = {name: float(found[name]) for name in ("seconds", "flops")}
        if found["device_bytes"]:  # what limits a run on a GPU
            figures["resident_bytes"] = float(found["device_bytes"])
        return done.sample() | figures | {"amount": float(found["tokens"])} | parts

    def losses(self, command: Sequence[str], more: Mapping[str, str]) -> Outcome:
        with processes.scratch() as folder:
            full = [*command, *self.arguments, *self.check, "--save-dir", str(folder)]
            found = processes.execute(full, processes.environment(more)).figures()
        return {"losses": torch.tensor(found["losses"], dtype=torch.float64)}

    def side(self, name: str, command: list[str], more: Mapping[str, str], bf16: bool) -> Side:
        return Side(
            name,
            measure=lambda: self.measure(command, more),
            outcome=lambda: self.losses(command, more),
            bound=LOSS_BOUND_BF16 if bf16 else None,
        )

    def need_products(self, bf16: bool, device: torch.device) -> None:
        if bf16 and not self.quick:
            machine.need_bf16(device)

    def pyseq(self, variant: Variant, device: torch.device) -> Side:
        self.need_products(variant.bf16, device)
        recipes.need_flags(tuple(self.arguments[1:]), variant.flags)
        child = [*processes.child_command("train_child"), str(self.warm_up)]
        prepared = dataclasses.replace(self, arguments=[*self.arguments, *variant.flags])
        return prepared.side(variant.name, child, variant.environment, variant.bf16)

    def loop(self, peer: Peer, device: torch.device) -> Side:
        self.need_products(peer.bf16, device)
        child = [*processes.child_command("lean_child"), str(self.warm_up), "bf16" if peer.bf16 else "fp32"]
        return self.side(peer.name, child, peer.environment, peer.bf16)


def prepare(run: Run, device: torch.device, quick: bool) -> Prepared:
    arguments = [str(run.small_data() if quick else run.data()), *run.recipe, *(run.small if quick else [])]
    arguments += [*recipes.QUIET, *(["--cpu"] if device.type == "cpu" else [])]
    # By sentences, because budgets of tokens do not count alike in all variants: the batches have to be the same.
    check = [*recipes.CHECK, "--batch-size", str(8 if quick else run.check_sentences), "--max-tokens", "100000"]
    counts = (QUICK_UPDATES, QUICK_WARM_UP) if quick else (run.updates, run.warm_up)
    return Prepared(arguments, *counts, check, quick)


def case(
    run: Run,
    variants: Sequence[Variant],
    loops: Sequence[Peer] = (),
    fairseqs: Sequence[Peer] = (),
    reference: str | None = None,
) -> Callable[[torch.device, bool], Work]:
    """The first variant is ours; ``reference`` is whose losses the others' are compared with (default: the loop's)."""

    def build(device: torch.device, quick: bool) -> Work:
        prepared = prepare(run, device, quick)
        config: dict[str, Any] = {"options": " ".join(prepared.arguments[1:])}
        config |= {"updates": prepared.updates, "not counted": prepared.warm_up}
        work = Work(config, [], LOSS_BOUND, unit="tokens", cold=False, turns=1 if quick else TURNS, warm_up=False)
        work.reference = reference or (loops[0].name if loops else variants[-1].name)
        for variant in variants:
            work.add(variant.name, lambda variant=variant: prepared.pyseq(variant, device))  # type: ignore[misc]
        for peer in loops:
            work.add(peer.name, lambda peer=peer: prepared.loop(peer, device))  # type: ignore[misc]
        for peer in fairseqs:
            work.add(peer.name, lambda peer=peer: _fairseq(run, prepared, peer, quick))  # type: ignore[misc]
        if not any(side.name == variants[0].name for side in work.sides):
            raise Unavailable(work.skipped[variants[0].name])
        dtype = torch.bfloat16 if variants[0].bf16 else torch.float32
        work.sides.append(machine.matrix_yardstick(device, dtype, quick, machine.PRODUCTS))
        return work

    return build


def _fairseq(run: Run, prepared: Prepared, peer: Peer, quick: bool) -> Side:
    if quick:
        raise Unavailable("not in a smoke run")
    cpu = [flag for flag in ("--cpu",) if flag in prepared.arguments]
    arguments = [prepared.arguments[0], *run.recipe, *cpu]
    return fairseq.training_side(
        peer.name, arguments, prepared.check, prepared.updates, prepared.warm_up, peer.environment
    )


TINY = Run(corpora.multi30k, corpora.tiny_pairs, recipes.TINY, recipes.SMALL_PAIRS, updates=20, warm_up=5)
IWSLT = Run(corpora.tatoeba, corpora.tiny_pairs, recipes.IWSLT, recipes.SMALL_PAIRS, updates=6, warm_up=1)
LM = Run(corpora.wikitext2, corpora.tiny_stream, recipes.LM, recipes.SMALL_LM, updates=8, warm_up=2, check_sentences=4)
BIG = Run(corpora.invented_pairs, corpora.tiny_pairs, recipes.BIG, recipes.SMALL_PAIRS, updates=40, warm_up=10)
GPT2 = Run(
    corpora.invented_stream,
    corpora.tiny_stream,
    recipes.GPT2_MEDIUM,
    recipes.SMALL_LM,
    updates=25,
    warm_up=5,
    check_sentences=4,
)

LOOPS = (Peer(LOOP), Peer(LOOP_TUNED, TUNED_MALLOC))
LOOPS_BF16 = (Peer(LOOP_BF16, bf16=True), Peer(LOOP_TUNED_BF16, TUNED_MALLOC, bf16=True))
FAIRSEQS = (Peer(FAIRSEQ), Peer(FAIRSEQ_TUNED, TUNED_MALLOC))
OFF_BF16 = with_bf16(ALL_OFF)

CASES = [
    Case("train/tiny-multi30k", case(TINY, [DEFAULT, ALL_OFF], LOOPS, FAIRSEQS), ("cpu",)),
    Case("train/tiny-multi30k-bf16", case(TINY, [BF16, PACKED_BF16], LOOPS, FAIRSEQS), ("cpu",)),
    Case("train/iwslt-tatoeba", case(IWSLT, [DEFAULT, ALL_OFF], LOOPS[1:], FAIRSEQS[1:]), ("cpu",)),
    Case(
        "train/iwslt-tatoeba-bf16",
        case(IWSLT, [BF16, PACKED_BF16, OFF_BF16, ALL_OFF], LOOPS_BF16[1:], reference=ALL_OFF.name),
        ("cpu",),
    ),
    Case("train/lm-wikitext2", case(LM, [DEFAULT, ALL_OFF], LOOPS), ("cpu",)),
    Case("train/lm-wikitext2-bf16", case(LM, [BF16, OFF_BF16], LOOPS_BF16), ("cpu",)),
    Case("train/big-invented-bf16", case(BIG, [BF16, PACKED_BF16, OFF_BF16], [Peer(LOOP_BF16, bf16=True)]), ("cuda",)),
    Case("train/gpt2-medium-bf16", case(GPT2, [BF16, OFF_BF16]), ("cuda",)),
    # What a switch brings: the same run with it and without.
    Case(
        "switches/tiny-multi30k",
        case(TINY, [DEFAULT, PACKED, BF16, PACKED_BF16, COMPILED], reference="pyseq"),
        ("cpu",),
    ),
    Case("switches/iwslt-tatoeba", case(IWSLT, [DEFAULT, PACKED, BF16, PACKED_BF16], reference="pyseq"), ("cpu",)),
    Case(
        "switches/big-invented-bf16",
        case(BIG, [BF16, PACKED_BF16, with_bf16(COMPILED), with_bf16(GRAPHED)], reference=BF16.name),
        ("cuda",),
    ),
]
