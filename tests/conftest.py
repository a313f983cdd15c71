"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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
