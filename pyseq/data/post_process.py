"""Undoing a subword segmentation in a line of text."""

from __future__ import annotations

import re

from pyseq.errors import ConfigError, nearest

# Segmentations that mark the beginning of a word with a symbol of their own and put a space between all pieces.
WORD_MARKS = {"sentencepiece": "\u2581", "wordpiece": "_", "letter": "|", "_EOW": "_EOW"}
KNOWN = (*WORD_MARKS, "silence", "subword_nmt", "@@ ", "@@", "none")


def post_process(sentence: str, symbol: str | None) -> str:
    """Join the subwords of ``sentence``.

    Args:
        symbol: the kind of segmentation, as for ``--post-process``; None and "none" leave the sentence as it is.

    Raises:
        ConfigError: the kind is not known.
    """
    if symbol is None or symbol == "none":
        return sentence
    if symbol in WORD_MARKS:
        return sentence.replace(" ", "").replace(WORD_MARKS[symbol], " ").strip()
    if symbol == "silence":
        return re.sub(" +", " ", sentence.replace("<SIL>", "")).strip()
    if symbol in ("subword_nmt", "@@ ", "@@"):
        continuation = "@@ " if symbol == "subword_nmt" else symbol
        return (sentence + " ").replace(continuation, "").rstrip()
    raise ConfigError(f"--post-process {symbol!r} is not known. {nearest(symbol, KNOWN)}")
