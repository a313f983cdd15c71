"""How a run grows with its corpus: start, speed and memory from ten thousand to ten million sentence pairs.

The corpora are synthetic and written straight as .bin and .idx: sentence lengths are log-normal around 16 tokens, a
target is as long as its source give or take a third, tokens are uint16. Ten million pairs take about 700 MB of disk. A
side is a process of its own with a very small model, so that waiting for data would show.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import corpora, processes, summary
from ..harness import Case, Sample, Side, Work

VOCABULARY, EOS = 8000, 2
PIECE = 1_000_000  # sentences written at a time
MEDIAN_LENGTH, SPREAD, LONGEST = 16, 0.5, 250
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
TURNS = 2
UPDATES, WARM_UP = 150, 10
MODEL = shlex.split(
    "--source-lang en --target-lang de --arch transformer_tiny --encoder-layers 1 --decoder-layers 1 "
    "--share-all-embeddings --criterion cross_entropy --optimizer adam --lr 1e-3 --max-tokens 4096 --cpu --seed 1 "
    "--no-save --disable-validation --log-format none"
)


def write_corpus(folder: Path, sentences: int) -> None:
    """``train.en-de.{en,de}`` and dictionaries. The same number of sentences gives the same corpus."""
    from pyseq.data.dictionary import Dictionary
    from pyseq.data.indexed_builder import MMapDatasetBuilder

    folder.mkdir(parents=True)
    dictionary = Dictionary()
    for word in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(f"w{word}")
    draw = np.random.RandomState(sentences)
    names = [f"{folder}/train.en-de.{lang}" for lang in ("en", "de")]
    with (
        MMapDatasetBuilder(f"{names[0]}.bin", np.uint16) as source,
        MMapDatasetBuilder(f"{names[1]}.bin", np.uint16) as target,
    ):
        for begin in range(0, sentences, PIECE):
            count = min(PIECE, sentences - begin)
            lengths = np.exp(draw.normal(np.log(MEDIAN_LENGTH), SPREAD, count))
            add_sentences(source, draw, lengths)
            add_sentences(target, draw, lengths * draw.uniform(0.67, 1.33, count))
        for name, builder in zip(names, (source, target)):
            builder.finalize(f"{name}.idx")
    for lang in ("en", "de"):
        dictionary.save(f"{folder}/dict.{lang}.txt")


def add_sentences(builder: Any, draw: np.random.RandomState, lengths: Any) -> None:
    sizes = np.clip(lengths, 2, LONGEST).astype(np.int32)
    tokens = draw.randint(4, VOCABULARY, sizes.sum(), dtype=np.uint16)
    tokens[np.cumsum(sizes) - 1] = EOS
    builder.add_items(tokens, sizes)


def measure(data: Path, updates: int, warm_up: int) -> Sample:
    with processes.scratch() as folder:
        limits: list[str | Path] = ["--save-dir", folder, "--max-update", str(updates)]
        done = processes.execute([*processes.child_command("growth_child"), str(warm_up), data, *MODEL, *limits])
    found = done.figures()
    parts = {f"{summary.PART}{name}": found[name] for name in ("opening", "resuming")}
    parts[f"{summary.PART}data wait"] = found["waited"] / (updates - warm_up)
    sizes = {"seconds": found["seconds"], "amount": found["amount"], "resident_bytes": float(found["memory"])}
    return done.sample() | sizes | parts


def side_name(sentences: int) -> str:
    return f"pyseq, {sentences:,} pairs"


def build(device: torch.device, quick: bool) -> Work:
    """Memory is that of the process after opening, as far as no file backs it."""
    sizes = (200, 2_000) if quick else SIZES
    counts = (4, 1) if quick else (UPDATES, WARM_UP)
    work = Work(
        {"scale": "sentence pairs", "options": shlex.join(MODEL), "updates": counts[0], "not counted": counts[1]},
        [],
        0.0,
        unit="tokens",
        cold=False,
        turns=1 if quick else TURNS,
        warm_up=False,
    )
    folder = corpora.new_scratch_folder()
    for sentences in sizes:
        data = folder / str(sentences)
        write_corpus(data, sentences)
        run = lambda data=data: measure(data, *counts)  # noqa: E731
        work.sides.append(Side(side_name(sentences), measure=run, scale=float(sentences)))
    return work


CASES = [Case("growth/sentences", build, ("cpu",))]
