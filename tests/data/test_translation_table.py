from __future__ import annotations

from pathlib import Path

import pytest

from pyseq.data.dictionary import Dictionary
from pyseq.data.translation_table import most_frequent_translations
from pyseq.errors import DataError


def dictionary_of(words: str) -> Dictionary:
    dictionary = Dictionary()
    for word in words.split():
        dictionary.add_symbol(word)
    return dictionary


def table(folder: Path, alignments: str) -> dict[str, str]:
    files = {"align": alignments, "src": "the house\nthe dog\nthe cat\n", "tgt": "das Haus\nder Hund\ndas Tier da\n"}
    for name, content in files.items():
        (folder / name).write_text(content)
    paths = [str(folder / name) for name in files]
    return most_frequent_translations(*paths, dictionary_of("the house cat"), dictionary_of("das der Haus Hund Tier"))


def test_the_most_frequent_partner_wins(tmp_path: Path) -> None:
    alignments = "0-0 1-1\n0-0 1-1\n0-0 1-1 1-2\n"
    assert table(tmp_path, alignments) == {"the": "das", "house": "Haus", "cat": "Tier"}


@pytest.mark.parametrize("line, message", [("2-0", "'2-0' points behind the end"), ("0:0", "expected pairs")])
def test_broken_lines(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=f"align:2: {message}"):
        table(tmp_path, f"0-0\n{line}\n\n")
