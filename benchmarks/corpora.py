"""Binarised corpora for cases: prepared once by pyseq's own commands, and kept in the work folder."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gzip
import io
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from . import processes, settings
from .harness import Unavailable
from .machine import work_folder

MERGES, HELD_OUT = 10_000, 1_000  # of Tatoeba: BPE merges; English sentences in valid and as many in test


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` of the work folder; ``make`` fills it the first time, and wholly or not at all."""
    folder = work_folder() / "data" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as making:
            whole = Path(making) / "whole"
            whole.mkdir()
            make(whole)
            whole.rename(folder)
    return folder


@functools.cache
def scratch_folder() -> Path:
    """Of this process."""
    folder = Path(tempfile.mkdtemp(prefix="pyseq-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def new_scratch_folder() -> Path:
    """An empty folder that lasts as long as this process."""
    return Path(tempfile.mkdtemp(dir=scratch_folder()))


def preprocess(*arguments: str | Path) -> None:
    processes.execute([*processes.pyseq_command("preprocess"), *arguments])


# Small, for smoke runs.


@functools.cache
def tiny_text() -> Path:
    """train, valid and test, .en and .de: 200, 20 and 20 sentences of letters and the same in capitals, reversed."""
    folder = scratch_folder() / "text"
    folder.mkdir()
    draw = random.Random(1)
    for split, count in (("train", 200), ("valid", 20), ("test", 20)):
        words = [draw.choices("abcdefghijklmnop", k=draw.randint(2, 9)) for _ in range(count)]
        (folder / f"{split}.en").write_text("".join(f"{' '.join(line)}\n" for line in words))
        (folder / f"{split}.de").write_text("".join(f"{' '.join(reversed(line)).upper()}\n" for line in words))
    return folder


def preprocess_pairs(text: Path, folder: Path, joined: bool = True, workers: int = 1) -> list[str | Path]:
    """Arguments for pyseq-preprocess and fairseq-preprocess."""
    splits = [argument for split in ("train", "valid", "test") for argument in (f"--{split}pref", text / split)]
    more = ["--joined-dictionary"] if joined else []
    return [
        "--source-lang",
        "en",
        "--target-lang",
        "de",
        *splits,
        *more,
        "--workers",
        str(workers),
        "--destdir",
        folder,
    ]


@functools.cache
def tiny_pairs() -> Path:
    folder = scratch_folder() / "pairs"
    preprocess(*preprocess_pairs(tiny_text(), folder))
    return folder


@functools.cache
def tiny_stream() -> Path:
    folder, text = scratch_folder() / "stream", tiny_text()
    preprocess("--only-source", "--trainpref", text / "train.en", "--validpref", text / "valid.en", "--destdir", folder)
    return folder


# Real text.


def multi30k() -> Path:
    """data-bin of the reference folder."""
    return settings.reference() / "data-bin"


def tatoeba() -> Path:
    """Tatoeba English-German: lower case, Moses tokens, a joint BPE; split by the English side."""
    archive = settings.data() / "tatoeba-en-de" / "deu-eng.zip"
    if not archive.is_file():
        raise Unavailable("the folder of corpora has no tatoeba-en-de/deu-eng.zip")
    try:
        import sacremoses  # noqa: F401
        import subword_nmt  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"{error}: pip install 'pyseq[bpe]'") from error

    def make(folder: Path) -> None:
        write_tatoeba(archive, folder / "text")
        preprocess(*preprocess_pairs(folder / "text", folder / "data-bin"))

    return kept("tatoeba-en-de", make) / "data-bin"


def write_tatoeba(archive: Path, folder: Path) -> None:
    from sacremoses import MosesTokenizer
    from subword_nmt.apply_bpe import BPE
    from subword_nmt.learn_bpe import learn_bpe

    with zipfile.ZipFile(archive) as packed:
        lines = packed.read("deu.txt").decode("utf-8").splitlines()
    pairs = [tuple(line.split("\t")[:2]) for line in lines if line.count("\t")]
    english = sorted({pair[0] for pair in pairs})
    random.Random(1).shuffle(english)
    place = {side: split for split, sides in _held_out(english) for side in sides}
    tokenizers = {language: MosesTokenizer(language) for language in ("en", "de")}
    text: dict[str, list[list[str]]] = {split: [] for split in ("train", "valid", "test")}
    for pair in pairs:
        tokens = [
            tokenizers[language].tokenize(side, escape=False, return_str=True).lower()
            for language, side in zip(("en", "de"), pair)
        ]
        text[place.get(pair[0], "train")].append(tokens)
    folder.mkdir(parents=True)
    silent = contextlib.redirect_stderr(io.StringIO())  # learn_bpe shows its progress
    with silent, open(folder / "codes", "w", encoding="utf-8") as file:
        learn_bpe((side for pair in text["train"] for side in pair), file, MERGES)
    with open(folder / "codes", encoding="utf-8") as file:
        bpe = BPE(file)
    for split, rows in text.items():
        for place_of, language in enumerate(("en", "de")):
            content = "".join(f"{bpe.process_line(row[place_of])}\n" for row in rows)
            (folder / f"{split}.{language}").write_text(content, encoding="utf-8")


def _held_out(english: list[str]) -> Iterator[tuple[str, list[str]]]:
    yield "valid", english[:HELD_OUT]
    yield "test", english[HELD_OUT : 2 * HELD_OUT]


def wikitext2() -> Path:
    source = settings.data() / "wikitext-2"
    if not (source / "train.txt.gz").is_file():
        raise Unavailable("the folder of corpora has no wikitext-2/train.txt.gz")

    def make(folder: Path) -> None:
        for split in ("train", "valid", "test"):
            (folder / split).write_bytes(gzip.decompress((source / f"{split}.txt.gz").read_bytes()))
        splits = [argument for split in ("train", "valid", "test") for argument in (f"--{split}pref", folder / split)]
        preprocess("--only-source", *splits, "--destdir", folder / "data-bin")

    return kept("wikitext-2", make) / "data-bin"


def untrained(recipe: Sequence[str], data: Path) -> Path:
    """A checkpoint of a recipe's model as it is before training (one update with a learning rate of 0)."""
    folder = new_scratch_folder()
    more: list[str | Path] = [
        "--cpu",
        "--max-update",
        "1",
        "--no-epoch-checkpoints",
        "--max-tokens",
        "512",
        "--save-dir",
        folder,
    ]
    command = [*processes.pyseq_command("train"), data, *recipe, *more, "--seed", "1", "--disable-validation"]
    processes.execute([*command, "--no-save-optimizer-state"])
    return folder / "checkpoint_last.pt"


# Invented, for machines without data: only lengths are like those of real text.

SYMBOLS, SPECIAL, EOS = 32_000, 4, 2


def invented_pairs(sentences: int = 200_000) -> Path:
    """Sentences with the spread of lengths of WMT's news translation data (log-normal, mean about 27 tokens)."""

    def make(folder: Path) -> None:
        draw = np.random.default_rng(1)
        source = np.clip(draw.lognormal(3.1, 0.65, sentences), 2, 250).astype(np.int64)
        target = np.clip(source * draw.lognormal(0.0, 0.2, sentences), 2, 250).astype(np.int64)
        for language, lengths in (("en", source), ("de", target)):
            _write(folder, f"train.en-de.{language}", f"dict.{language}.txt", lengths, draw)
            _write(folder, f"test.en-de.{language}", f"dict.{language}.txt", lengths[:2000], draw)

    return kept("invented-pairs", make)


def invented_stream(tokens: int = 20_000_000) -> Path:
    def make(folder: Path) -> None:
        draw = np.random.default_rng(1)
        _write(folder, "train", "dict.txt", np.full(tokens // 500, 500), draw)

    return kept("invented-stream", make)


def _write(folder: Path, name: str, dictionary: str, lengths: np.ndarray, draw: np.random.Generator) -> None:
    """Tokens by Zipf's law, each sentence with its end."""
    from pyseq.data.indexed_builder import MMapDatasetBuilder

    words = SYMBOLS - SPECIAL
    (folder / dictionary).write_text("".join(f"w{number} 1\n" for number in range(words)))
    tokens = np.floor(words ** draw.random(int(lengths.sum()))).astype(np.int64) - 1 + SPECIAL
    tokens[np.cumsum(lengths) - 1] = EOS
    with MMapDatasetBuilder(folder / f"{name}.bin", dtype=np.uint16) as builder:
        builder.add_items(tokens, lengths.astype(np.int32))
        builder.finalize(folder / f"{name}.idx")
