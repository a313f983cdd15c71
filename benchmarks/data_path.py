"""Speed of the host data path on one core: batching, collation, token blocks; compiled and in numpy.

    python -m benchmarks.data_path [--sentences 500000] [--json FILE]

The corpus is synthetic: sentence lengths are log-normal around 20 tokens (those of news translation data), tokens are
uint16 in a memory map, and samples are visited sorted by length, so that a batch gathers rows from all over the file.
Counted are real tokens, not padding. Each figure is the median of several runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from pyseq.data import batching, collation, token_blocks

MAX_TOKENS, MULTIPLE, PAD, EOS = 4096, 8, 1, 2
REFERENCE_SHARE = 20  # the numpy references are timed on this fraction of the corpus


@dataclass(frozen=True)
class Figure:
    """One measured rate; ``goal`` is the least that the compiled path must reach."""

    case: str
    implementation: str
    per_second: float
    unit: str
    goal: float | None = None


@dataclass(frozen=True)
class Corpus:
    """Sentences in a memory map, and the batches they are visited in."""

    tokens: Any
    starts: Any
    sizes: Any
    batches: list[Any]

    @property
    def num_tokens(self) -> int:
        return int(sum(self.sizes[batch].sum() for batch in self.batches))

    def part(self, share: int) -> Corpus:
        return Corpus(self.tokens, self.starts, self.sizes, self.batches[::share])


def make_corpus(folder: Path, sentences: int) -> Corpus:
    random = np.random.default_rng(1)
    sizes = np.clip(random.lognormal(3.0, 0.6, sentences), 2, 200).astype(np.int64)
    random.integers(4, 30_000, sizes.sum(), dtype=np.uint16).tofile(folder / "tokens.bin")
    tokens = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
    order = np.argsort(sizes, kind="stable")
    batches = batching.batch_by_size(order, sizes[order], MAX_TOKENS, None, MULTIPLE)
    return Corpus(tokens, np.cumsum(sizes) - sizes, sizes, batches)


def rate(work: Callable[[], object], amount: int, repeats: int) -> float:
    """``amount`` per second, the median over ``repeats`` runs after a first one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return amount / statistics.median(seconds)


def measure_batching(corpus: Corpus, repeats: int) -> float:
    order = np.concatenate(corpus.batches)
    sizes = corpus.sizes[order]
    return rate(lambda: batching.batch_by_size(order, sizes, MAX_TOKENS, None, MULTIPLE), len(order), repeats)


def measure_rows(corpus: Corpus, repeats: int) -> float:
    """Source (padded on the left) and decoder input (last token first), straight from the memory map."""

    def work() -> None:
        for batch in corpus.batches:
            starts, sizes = corpus.starts[batch], corpus.sizes[batch]
            collation.collate_rows(corpus.tokens, starts, sizes, PAD, EOS, left_pad=True)
            collation.collate_rows(corpus.tokens, starts, sizes, PAD, EOS, move_eos_to_beginning=True)

    return rate(work, 2 * corpus.num_tokens, repeats)


def measure_tensors(corpus: Corpus, repeats: int) -> float:
    """A LongTensor a sample, as a plug-in's dataset has them; making these is not counted."""
    tokens = torch.from_numpy(corpus.tokens.astype(np.int64))
    batches = [[tokens[corpus.starts[i] : corpus.starts[i] + corpus.sizes[i]] for i in b] for b in corpus.batches[::10]]
    amount = sum(len(sample) for batch in batches for sample in batch)
    return rate(lambda: [collation.collate_tokens(batch, PAD, EOS) for batch in batches], amount, repeats)


def measure_blocks(mode: str) -> Callable[[Corpus, int], float]:
    def measure(corpus: Corpus, repeats: int) -> float:
        sizes = np.ascontiguousarray(corpus.sizes[: sum(map(len, corpus.batches))])
        return rate(lambda: token_blocks.token_blocks(sizes, mode, 512), len(sizes), repeats)

    return measure


# case, function, unit, goal of the compiled path
CASES: list[tuple[str, Callable[[Corpus, int], float], str, float | None]] = [
    ("batch_by_size", measure_batching, "sentences/s", 5e6),
    ("collate_rows (memory map)", measure_rows, "tokens/s", 20e6),
    ("collate_tokens (tensors)", measure_tensors, "tokens/s", 20e6),
    ("token_blocks none", measure_blocks("none"), "sentences/s", None),
    ("token_blocks complete", measure_blocks("complete"), "sentences/s", None),
]


def run(sentences: int, repeats: int = 5) -> list[Figure]:
    """All figures. The compiled core must be there."""
    torch.set_num_threads(1)
    if batching.native is None:
        raise SystemExit("the compiled core is not built: pip install -e . --no-build-isolation")
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder), sentences)
        part = corpus.part(REFERENCE_SHARE)
        for case, measure, unit, goal in CASES:
            figures.append(Figure(case, "compiled", measure(corpus, repeats), unit, goal))
            with (
                mock.patch.object(batching, "native", None),
                mock.patch.object(collation, "native", None),
                mock.patch.object(token_blocks, "native", None),
            ):
                figures.append(Figure(case, "numpy", measure(part, 3), unit))
    return figures


def table(figures: list[Figure]) -> str:
    lines = [f"{'case':28}{'implementation':16}{'million':>10}  {'unit':14}{'goal':>6}"]
    for figure in figures:
        goal = "" if figure.goal is None else f"{figure.goal / 1e6:.0f}"
        rate_text = f"{figure.per_second / 1e6:10.2f}"
        lines.append(f"{figure.case:28}{figure.implementation:16}{rate_text}  {figure.unit:14}{goal:>6}".rstrip())
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed of batching, collation and token blocks on one core")
    parser.add_argument("--sentences", type=int, default=500_000, help="size of the synthetic corpus")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    figures = run(args.sentences)
    print(table(figures))
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
        versions = {"numpy": np.__version__, "torch": torch.__version__}
        content = {"machine": machine | versions, "figures": [asdict(figure) for figure in figures]}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    missed = [f"{f.case}: {f.per_second:.3g} {f.unit}" for f in figures if f.goal and f.per_second < f.goal]
    if missed:
        print("below the goal: " + ", ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
