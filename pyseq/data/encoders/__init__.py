"""Turning text into the words that a dictionary knows, and back: tokenizers (``--tokenizer``) and subwords (``--bpe``).

An instance has ``encode(str) -> str`` and ``decode(str) -> str``; the output of ``encode`` is separated by spaces.
"""

from __future__ import annotations

from typing import Any, Protocol

from pyseq.registry import Registry, import_siblings

TOKENIZERS = Registry("tokenizer")
BPE = Registry("bpe")
register_tokenizer = TOKENIZERS.register
register_bpe = BPE.register


class TextEncoder(Protocol):
    """What a tokenizer or bpe plug-in offers."""

    def encode(self, x: str) -> str: ...

    def decode(self, x: str) -> str: ...


def build_tokenizer(cfg: Any, *args: Any) -> TextEncoder | None:
    """The tokenizer that ``cfg`` chooses; None if it chooses none. Raises ConfigError for an unknown name."""
    return TOKENIZERS.build(cfg, *args)


def build_bpe(cfg: Any, *args: Any) -> TextEncoder | None:
    """The subword encoder that ``cfg`` chooses; None if it chooses none. Raises ConfigError for an unknown name."""
    return BPE.build(cfg, *args)


import_siblings(__file__, __name__)
