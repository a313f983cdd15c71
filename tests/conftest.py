"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Triton reads this when it is first imported. Without a GPU its kernels are interpreted.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine is no defect.
settings.register_profile("pyseq", deadline=None)
settings.load_profile("pyseq")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def own_logging():
    """Commands set logging up for a process of their own: take their handlers away again."""
    handlers = logging.getLogger().handlers
    before = list(handlers)
    yield
    handlers[:] = before


def folder_from_environment(variable: str, contains: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names the folder that holds {contains}")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable}={value} is not a folder")
    return folder


@pytest.fixture(scope="session")
def reference() -> Path:
    """What fairseq itself made of real text: text/, data-bin/, checkpoints/, runs/, generate/."""
    return folder_from_environment("PYSEQ_REFERENCE", "text/, data-bin/, checkpoints/, runs/ and generate/")


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Real corpora: multi30k-en-de/, wikitext-2/, ..."""
    return folder_from_environment("PYSEQ_DATA", "multi30k-en-de/, wikitext-2/ and other corpora")


def write_parallel_text(prefix: Path, count: int, seed: int) -> None:
    """Sentences of letters and, as their translation, the same letters reversed and in upper case."""
    import random

    draw = random.Random(seed)
    with open(f"{prefix}.en", "w") as english, open(f"{prefix}.de", "w") as german:
        for _ in range(count):
            words = draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))
            print(*words, file=english)
            print(*(w.upper() for w in reversed(words)), file=german)


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.en, train.de, valid.*, test.*: parallel text of 400, 40 and 30 sentences."""
    folder = tmp_path_factory.mktemp("text")
    for seed, (split, count) in enumerate((("train", 400), ("valid", 40), ("test", 30))):
        write_parallel_text(folder / split, count, seed)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, binarised, en to de with one dictionary a side."""
    from pyseq.cli import preprocess

    folder = tmp_path_factory.mktemp("data") / "bin"
    argv = ["--source-lang", "en", "--target-lang", "de", "--destdir", str(folder), "--workers", "1"]
    for split in ("train", "valid", "test"):
        argv += [f"--{split}pref", str(tiny_text / split)]
    preprocess.main(argv)
    return folder


@pytest.fixture
def train_argv(tiny_data: Path) -> list[str]:
    """Arguments of a training run that takes a second or so an epoch; add a --save-dir."""
    return [
        str(tiny_data), "--cpu", "--arch", "transformer_tiny", "--encoder-layers", "1", "--decoder-layers", "1",
        "--encoder-embed-dim", "16", "--decoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32",
        "--decoder-ffn-embed-dim", "32", "--optimizer", "adam", "--lr", "0.01", "--max-tokens", "300",
        "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--dropout", "0.1",
        "--num-workers", "0", "--log-format", "json", "--log-interval", "1",
    ]  # fmt: skip
