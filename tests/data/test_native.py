"""The words of text, as the compiled core finds them. The other functions are tested beside their references."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyseq.data.dictionary import count_words
from pyseq.data.text_file import LineError, tokenize_line

core = pytest.importorskip("pyseq._core").data


def test_words_are_separated_by_what_unicode_calls_whitespace():
    everything = "".join(f"x{i}{chr(i)}" for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000)
    counts, _ = core.count_words(everything.encode())
    assert list(counts) == list(dict.fromkeys(tokenize_line(everything)))


@given(st.text("ab\0\r\n \u2028é"), st.integers(0, 3))
def test_counts_are_those_of_python(tmp_path_factory, text, repeat):
    path, data = str(tmp_path_factory.getbasetemp() / "text"), (text * repeat).encode()
    with open(path, "wb") as file:
        file.write(data)
    plain = count_words(path, 0, len(data), lambda line: tokenize_line(line), "</s>")
    assert count_words(path, 0, len(data), tokenize_line, "</s>") == plain


def test_many_words():
    words = [f"w{i}" * (i % 5 + 1) for i in range(20_000)]
    counts, lines = core.count_words(" ".join(words + words[::3]).encode())
    assert lines == 1 and list(counts) == list(dict.fromkeys(words))
    assert sum(counts.values()) == len(words) + len(words[::3])
    tokens, sizes, replaced = core.Vocabulary({word: i for i, word in enumerate(counts)}).encode_lines(
        "\n".join(counts).encode(), -1, None, False
    )
    assert tokens.tolist() == list(range(len(counts))) and set(sizes.tolist()) == {1} and replaced == {}


def test_text_that_is_not_utf8_is_told(tmp_path):
    (tmp_path / "text").write_bytes(b"good\nb\xe4d\n")
    with pytest.raises(LineError, match="0xe4"):
        count_words(str(tmp_path / "text"), 0, 9, tokenize_line, "</s>")
