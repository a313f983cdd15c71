"""Runs made by hand, whose figures are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyseq.cli import preprocess


def make_side(name: str, seconds: list[float], **options: Any) -> dict[str, Any]:
    return {"name": name, "seconds": seconds, "bytes": None, "flops": None, "ceiling": None, "memory": None} | options


def make_run(*cases: tuple[str, list[dict[str, Any]]], device: str = "cpu") -> dict[str, Any]:
    return {
        "started": "2026-01-01 00:00 UTC",
        "machine": {"processor": "a processor", "cpu_capability": "AVX2"},
        "versions": {"torch": "2.13.0", "pyseq": "0123456789ab"},
        "settings": {"device": device, "threads": 2, "quick": False},
        "cases": [
            {
                "name": name,
                "device": device,
                "config": {"rows": 4096, "logits bytes": 1000},
                "checks": [],
                "skipped": {},
                "sides": sides,
            }
            for name, sides in cases
        ],
        "skipped": {},
        "errors": {},
    }


@pytest.fixture
def side() -> Callable[..., dict[str, Any]]:
    return make_side


@pytest.fixture
def run() -> Callable[..., dict[str, Any]]:
    return make_run


@pytest.fixture(scope="session")
def joined_data(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus, binarised with one dictionary for both languages."""
    folder = tmp_path_factory.mktemp("joined") / "bin"
    argv = ["--source-lang", "en", "--target-lang", "de", "--joined-dictionary", "--destdir", str(folder)]
    preprocess.main([*argv, "--trainpref", str(tiny_text / "train"), "--validpref", str(tiny_text / "valid")])
    return folder
