"""Translating, without start-up: pyseq-generate with and without its fused paths, a fairseq if given, CTranslate2.

Seconds are those that the command says it translated for. All sides get the same sentences; scores and lengths of the
hypotheses are compared before the timing, those of the tiny model with what fairseq once printed.

Operations are counted for as many steps as the best hypothesis has tokens. A search goes on until it knows that there
is no better one, so that is a lower bound, but where sentences are cut.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from .. import corpora, fairseq, machine, processes, recipes, settings
from ..flops import Counter
from ..harness import Case, Outcome, Sample, Side, Unavailable, Work
from ..recipes import ALL_OFF, DEFAULT

BOUND = 1e-2  # one sentence in ten thousand tokens may end elsewhere; scores that agree are within 1e-6
# A model in 8 bits scores otherwise (by 0.07 where products are exact). One sentence in twenty gets another length, and
# where one of them runs on to its limit, lengths differ by 0.25.
INT8_BOUND = 0.3
BF16_BOUND = 0.3  # likewise; scores are off by 0.01
TURNS = 3
BEAM = 5
OPTIONS = ("--beam", str(BEAM), "--remove-bpe", "--max-tokens", "4096", "--gen-subset", "test")
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


Count = Callable[[Iterable[str]], float]


def counter(data: Path, checkpoint: Path) -> Count:
    """Counts the operations that a beam search needs for what a command has printed."""
    from pyseq.cli.plugins import load_plugins
    from pyseq.data.data_utils import load_indexed_dataset
    from pyseq.training.checkpoint import load_model_ensemble_and_task

    load_plugins()
    models, _, task = load_model_ensemble_and_task([str(checkpoint)], {"data": str(data)})
    source, target = task.cfg.source_lang, task.cfg.target_lang
    lengths = load_indexed_dataset(str(data / f"test.{source}-{target}.{source}")).sizes
    count = Counter(models[0])

    def operations(lines: Iterable[str]) -> float:
        heads = [line.split("\t") for line in lines if line.startswith("P-")]
        numbers = [int(head[2:]) for head, _ in heads]
        return count.forward(lengths[numbers], [len(scores.split()) for _, scores in heads], BEAM)

    return operations


def side(
    name: str,
    command: Sequence[str],
    arguments: Sequence[str],
    env: Mapping[str, str],
    count: Count,
    bound: float | None = None,
) -> Side:
    def run() -> processes.Finished:
        return processes.execute([*command, *arguments], env)

    def measure() -> Sample:
        done = run()
        flops = {"flops": count(line for _, line in done.lines)}
        return done.sample() | fairseq.translation_figures(done.lines) | flops

    return Side(name, measure=measure, outcome=lambda: hypotheses(line for _, line in run().lines), bound=bound)


def bf16_side(device: torch.device, arguments: Sequence[str], env: Mapping[str, str], count: Count) -> Side:
    machine.need_bf16(device)
    return side("pyseq, --bf16", processes.pyseq_command("generate"), [*arguments, "--bf16"], env, count, BF16_BOUND)


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


def fairseq_side(arguments: Sequence[str], count: Count) -> Side:
    if "--num-shards" in arguments:
        raise Unavailable("fairseq-generate does not heed --num-shards")
    return side("fairseq", fairseq.command("generate"), arguments, fairseq.environment(), count)


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
        count = counter(data, checkpoint)
        command, env = processes.pyseq_command("generate"), processes.environment(DEFAULT.environment)
        for variant in (DEFAULT, ALL_OFF):
            of_variant = processes.environment(variant.environment)
            work.sides.append(side(variant.name, command, [*arguments, *variant.flags], of_variant, count))
        if "--bf16" not in options:
            work.add("pyseq, --bf16", partial(bf16_side, device, arguments, env, count))
        if device.type == "cuda":
            work.sides.append(side("pyseq, --cuda-graphs", command, [*arguments, "--cuda-graphs"], env, count))
        if quick:
            work.skipped |= dict.fromkeys(("fairseq", *(name for name, *_ in CTRANSLATE2)), "not in a smoke run")
        else:
            work.add("fairseq", partial(fairseq_side, arguments, count))
        if device.type == "cpu" and not quick:
            for name, compute_type, bound in CTRANSLATE2:
                work.add(name, partial(ctranslate2, name, compute_type, arguments, bound))
        dtype = torch.bfloat16 if "--bf16" in options else torch.float32
        work.sides.append(machine.matrix_yardstick(device, dtype, quick, machine.PRODUCTS))
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
