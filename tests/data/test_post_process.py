from __future__ import annotations

import pytest

from pyseq.data.post_process import post_process
from pyseq.errors import ConfigError


@pytest.mark.parametrize(
    "symbol, sentence, expected",
    [
        ("sentencepiece", "\u2581the \u2581cat s", "the cats"),
        ("wordpiece", "_the _cat s", "the cats"),
        ("letter", "| t h e | c a t |", "the cat"),
        ("silence", "<SIL> the <SIL> <SIL> cat", "the cat"),
        ("_EOW", "t h e _EOW c a t _EOW", "the cat"),
        ("subword_nmt", "the c@@ at@@ s x@@", "the cats x"),
        ("@@ ", "the c@@ ats", "the cats"),
        ("@@", "the c@@ ats", "the c ats"),
        ("none", " the c@@ at", " the c@@ at"),
        (None, " the c@@ at", " the c@@ at"),
    ],
)
def test_subwords_are_joined(symbol: str | None, sentence: str, expected: str) -> None:
    assert post_process(sentence, symbol) == expected


def test_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'sentencepiece'"):
        post_process("a", "sentence-piece")
