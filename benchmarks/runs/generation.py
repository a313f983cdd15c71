"""Translating, without start-up: pyseq-generate with and without its fused paths, a fairseq if given, CTranslate2.

Seconds are those that the command says it translated for. All sides get the same sentences; scores and lengths of the
hypotheses are compared before the timing, those of the tiny model with what fairseq once printed.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from .. import corpora, fairseq, machine, processes, recipes, settings
from ..harness import Case, Outcome, Sample, Side, Unavailable, Work
from ..recipes import ALL_OFF, DEFAULT

BOUND = 1e-2  # one sentence in ten thousand tokens may end elsewhere; scores that agree are within 1e-6
# A model in 8 bits scores otherwise (by 0.07 where products are exact), and one sentence in ten comes out otherwise.
INT8_BOUND = 0.15
TURNS = 3
OPTIONS = ("--beam", "5", "--remove-bpe", "--max-tokens", "4096", "--gen-subset", "test")
Inputs = Callable[[], tuple[Path, Path]]  # data folder, checkpoint


def hypotheses(lines: Iterable[str]) -> Outcome:
    """Score and length, in words, of every hypothesis, by sentence. Raises CommandFailed if there is none."""
    found = {}
    for line in lines:
        if line.startswith("H-"):
            head, score, text = line.rstrip("\n").split("\t")
            found[int(head[2:])] = float(score), len(text.split())
    if not found:
        raise processes.CommandFailed("no hypotheses were printed")
    scores, lengths = zip(*(found[number] for number in sorted(found)))
    return {"scores": torch.tensor(scores), "lengths": torch.tensor(lengths, dtype=torch.float32)}


def side(name: str, command: Sequence[str], arguments: Sequence[str], env: Mapping[str, str]) -> Side:
    def run() -> processes.Finished:
        return processes.execute([*command, *arguments], env)

    def measure() -> Sample:
        done = run()
        return done.sample() | fairseq.translation_figures(done.lines)

    return Side(name, measure=measure, outcome=lambda: hypotheses(line for _, line in run().lines))


def ctranslate2(name: str, compute_type: str, arguments: Sequence[str], bound: float) -> Side:
    """The model converted for CTranslate2, and the sentences translated by a worker of one thread for each thread here.

    Raises:
        Unavailable: it is not installed, has no length limit as is asked for, or its int8 products may be wrong here.
    """
    if "--max-len-a" in arguments:
        raise Unavailable("CTranslate2 has no --max-len-a")
    if importlib.util.find_spec("ctranslate2") is None:
        raise Unavailable("No module named 'ctranslate2'")
    if compute_type == "int8":
        machine.need_int8()
    command = [*processes.child_command("ctranslate2_child"), compute_type, *arguments]

    def measure() -> Sample:
        done = processes.execute(command)
        return done.sample() | done.figures()

    return Side(
        name,
        measure=measure,
        outcome=lambda: hypotheses(line for _, line in processes.execute(command).lines),
        bound=bound,
    )


CTRANSLATE2 = (("CTranslate2, fp32", "float32", BOUND), ("CTranslate2, int8", "int8", INT8_BOUND))


def fairseq_side(arguments: Sequence[str]) -> Side:
    if "--num-shards" in arguments:
        raise Unavailable("fairseq-generate does not heed --num-shards")
    return side("fairseq", fairseq.command("generate"), arguments, fairseq.environment())


def recorded() -> tuple[str, Outcome]:
    with gzip.open(settings.reference() / "generate" / "update372.beam5.txt.gz", "rt", encoding="utf-8") as file:
        return "fairseq's recorded output", hypotheses(file)


def tiny() -> tuple[Path, Path]:
    return corpora.multi30k(), settings.reference() / "checkpoints" / "update372.pt"


def iwslt() -> tuple[Path, Path]:
    return corpora.tatoeba(), corpora.untrained(recipes.IWSLT, corpora.tatoeba())


def big() -> tuple[Path, Path]:
    return corpora.invented_pairs(), corpora.untrained(recipes.BIG, corpora.invented_pairs())


def small() -> tuple[Path, Path]:
    return corpora.tiny_pairs(), corpora.untrained([*recipes.TINY, *recipes.SMALL_PAIRS], corpora.tiny_pairs())


def case(
    inputs: Inputs, expected: Callable[[], tuple[str, Outcome]] | None = None, options: Sequence[str] = OPTIONS
) -> Callable[[torch.device, bool], Work]:
    def build(device: torch.device, quick: bool) -> Work:
        data, checkpoint = small() if quick else inputs()
        cpu = ["--cpu"] if device.type == "cpu" else []
        limits = ["--max-len-b", "10"] if quick else []
        arguments = [str(data), "--path", str(checkpoint), *options, *cpu, *limits]
        config = {"options": " ".join([*options, *limits])}
        work = Work(config, [], BOUND, unit="sentences", cold=False, turns=1 if quick else TURNS, warm_up=False)
        if expected is not None and not quick:
            work.expected = expected()
        for variant in (DEFAULT, ALL_OFF):
            env = processes.environment(variant.environment)
            command = processes.pyseq_command("generate")
            work.sides.append(side(variant.name, command, [*arguments, *variant.flags], env))
        if quick:
            work.skipped |= dict.fromkeys(("fairseq", *(name for name, *_ in CTRANSLATE2)), "not in a smoke run")
            return work
        work.add("fairseq", partial(fairseq_side, arguments))
        if device.type == "cpu":
            for name, compute_type, bound in CTRANSLATE2:
                work.add(name, partial(ctranslate2, name, compute_type, arguments, bound))
        return work

    return build


def need_reference(inputs: Inputs) -> Inputs:
    def found() -> tuple[Path, Path]:
        data, checkpoint = inputs()
        if not checkpoint.is_file():
            raise Unavailable(f"there is no {checkpoint.name} in the reference folder")
        return data, checkpoint

    return found


# An untrained model ends nowhere: its sentences are cut after as many tokens as the source has, and ten more.
CUT = ("--max-len-a", "1", "--max-len-b", "10")
PART = ("--num-shards", "10", "--shard-id", "0")  # all of the test set takes minutes a side
CASES = [
    Case("generate/tiny", case(need_reference(tiny), recorded), ("cpu",)),
    Case("generate/iwslt", case(iwslt, options=(*OPTIONS, *CUT, *PART)), ("cpu",)),
    Case("generate/big-bf16", case(big, options=(*OPTIONS, *CUT, "--bf16")), ("cuda",)),
]
