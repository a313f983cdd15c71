"""What the user points cases at: variables that options of the command set, so that every case can read them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .harness import Unavailable

REFERENCE, DATA, FAIRSEQ = "PYSEQ_REFERENCE", "PYSEQ_DATA", "PYSEQ_BENCH_FAIRSEQ"


def folder(variable: str, contains: str) -> Path:
    """Raises Unavailable where the variable names no folder."""
    value = os.environ.get(variable)
    if not value:
        option = {REFERENCE: "--reference", DATA: "--data"}[variable]
        raise Unavailable(f"needs {contains}: give {option} or set {variable}")
    path = Path(value).resolve()
    if not path.is_dir():
        raise Unavailable(f"{variable} names '{value}', which is no folder")
    return path


def reference() -> Path:
    """What fairseq made of Multi30k: text/, data-bin/, checkpoints/, generate/."""
    return folder(REFERENCE, "what fairseq made of Multi30k (text/, data-bin/, checkpoints/)")


def data() -> Path:
    """Corpora: tatoeba-en-de/, wikitext-2/."""
    return folder(DATA, "corpora (tatoeba-en-de/, wikitext-2/)")


def fairseq() -> str:
    """The interpreter in which fairseq imports."""
    value = os.environ.get(FAIRSEQ)
    if not value:
        raise Unavailable("no fairseq: give --fairseq PYTHON, an interpreter in which it imports")
    path = shutil.which(value)
    if path is None:
        raise Unavailable(f"--fairseq {value} is no interpreter")
    return os.path.abspath(path)
