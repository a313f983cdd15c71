from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseq.data import text_file
from pyseq.data.text_file import count_lines, iterate_lines, map_pieces, pieces_of, read_lines, tokenize_line
from pyseq.errors import DataError


def die(path: str, start: int, end: int) -> None:
    os._exit(9)


def test_words_are_separated_by_what_unicode_calls_whitespace() -> None:
    everything = "".join(f"x{chr(i)}" for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000)
    assert tokenize_line(everything) == re.sub(r"\s+", " ", everything).strip().split(" ")


@given(st.text("ab \r\n\u2028\x0bü"), st.integers(1, 4), st.integers(1, 9))
@settings(max_examples=200)
def test_pieces_put_together_are_the_lines_python_reads(
    tmp_path_factory: pytest.TempPathFactory, text: str, workers: int, least: int
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "text")
    with open(path, "wb") as file:
        file.write(text.encode())
    with open(path, encoding="utf-8") as file:
        expected = [line.rstrip("\n") for line in file]
    before = text_file.LEAST_PIECE_BYTES
    try:
        text_file.LEAST_PIECE_BYTES = least
        pieces = list(pieces_of(path, workers))
    finally:
        text_file.LEAST_PIECE_BYTES = before
    assert [line for piece in pieces for line in read_lines(path, *piece)] == expected
    assert list(iterate_lines(path)) == expected
    assert count_lines(path) == len(expected)
    for i, (start, _) in enumerate(pieces):
        assert count_lines(path, start) == sum(len(read_lines(path, *piece)) for piece in pieces[:i])


@pytest.mark.parametrize("workers", [1, 3])
def test_bytes_that_are_not_utf8_are_found_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(text_file, "LEAST_PIECE_BYTES", 10)
    path = str(tmp_path / "text")
    with open(path, "wb") as file:
        file.write(b"good line\r\n" * 41 + b"\xc3\xa4 \xe4\n" + b"good line\n" * 9)
    with pytest.raises(DataError, match=re.escape(f"{path}:42: byte 0xe4 is not valid UTF-8")):
        list(map_pieces(read_lines, path, workers))


def test_progress_adds_up_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "LEAST_PIECE_BYTES", 10)
    monkeypatch.setattr(text_file, "PIECE_BYTES", 100)
    (tmp_path / "text").write_text("some words\n" * 100)
    done: list[int] = []
    list(map_pieces(read_lines, str(tmp_path / "text"), 2, done.append))
    assert len(done) == 10 and sum(done) == 1100


def test_a_killed_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "LEAST_PIECE_BYTES", 10)
    (tmp_path / "text").write_text("some words\n" * 100)
    with pytest.raises(DataError, match="a worker process was killed"):
        list(map_pieces(die, str(tmp_path / "text"), 2))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing: no such file"):
        list(iterate_lines(str(tmp_path / "nothing")))
