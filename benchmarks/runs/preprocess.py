"""Counting words and binarising Multi30k, the whole command: pyseq-preprocess, and a fairseq if one is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from .. import corpora, fairseq, processes, settings
from ..harness import Case, Outcome, Sample, Side, Work


def contents(folder: Path) -> Outcome:
    """Every byte of every binarised file and dictionary."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".idx", ".txt"))
    return {path.name: torch.from_numpy(np.fromfile(path, dtype=np.uint8)) for path in files}


def text_of_reference(folder: Path) -> Path:
    """The reference's splits under the names train, valid and test."""
    source = settings.reference() / "text"
    for own, name in (("train", "train"), ("valid", "val"), ("test", "test_2016_flickr")):
        for language in ("en", "de"):
            (folder / f"{own}.{language}").symlink_to(source / f"{name}.{language}")
    return folder


def side(name: str, command: list[str], text: Path, workers: int, env: Mapping[str, str]) -> Side:
    def run(folder: Path) -> processes.Finished:
        return processes.execute([*command, *corpora.preprocess_pairs(text, folder, workers=workers)], env)

    def measure() -> Sample:
        with processes.scratch() as folder:
            return run(folder / "data-bin").sample()

    def outcome() -> Outcome:
        with processes.scratch() as folder:
            run(folder / "data-bin")
            return contents(folder / "data-bin")

    return Side(name, measure=measure, outcome=outcome)


def build(device: torch.device, quick: bool) -> Work:
    text = corpora.tiny_text() if quick else text_of_reference(corpora.new_scratch_folder())
    lines = len((text / "train.en").read_text(encoding="utf-8").splitlines())
    work = Work({"sentences": lines}, [], bound=0.0, cold=False, turns=1 if quick else 5, warm_up=False)
    if not quick:
        data = contents(corpora.multi30k())
        work.expected = "fairseq's files", {name: data[name] for name in data if not name.startswith("preprocess")}
    command, env = processes.pyseq_command("preprocess"), processes.environment()
    work.sides += [side(f"pyseq, {n} worker{'s' * (n > 1)}", command, text, n, env) for n in (1, 2)]
    if quick:
        work.skipped["fairseq"] = "not in a smoke run"
    else:
        peer: Callable[[], Side] = lambda: side(  # noqa: E731
            "fairseq, 1 worker", fairseq.command("preprocess"), text, 1, fairseq.environment()
        )
        work.add("fairseq", peer)
    return work


CASES = [Case("preprocess/multi30k", build, ("cpu",))]
