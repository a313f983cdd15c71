"""Alignments between source and target words, read off the attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hard_alignment(attn: Tensor, src: Tensor, tgt: Tensor, pad: int, eos: int) -> list[tuple[int, int]]:
    """For each target token the source token it attends to most.

    Args:
        attn: [T, S] attention.
        src: [S] source tokens, padding on either side.
        tgt: [T] target tokens.

    Returns:
        Pairs of a source and a target position, counted from 0 without padding and end of sentence.
    """
    src_words, tgt_words = is_word(src, pad, eos), is_word(tgt, pad, eos)
    if not bool(src_words.any()) or not bool(tgt_words.any()):
        return []
    best = attn[tgt_words].masked_fill(~src_words, -math.inf).argmax(dim=1)
    src_positions = (src_words.cumsum(0) - 1)[best].tolist()
    return list(zip(src_positions, range(len(src_positions))))


def soft_alignment(attn: Tensor, src: Tensor, tgt: Tensor, pad: int) -> list[list[str]]:
    """The attention itself, as text: for each target token (padding left out) its weights on the source tokens."""
    rows = attn[tgt.ne(pad)][:, src.ne(pad)].tolist()
    return [[f"{weight:.6f}" for weight in row] for row in rows]


def is_word(tokens: Tensor, pad: int, eos: int) -> Tensor:
    """True where a token is neither padding nor end of sentence."""
    return torch.ne(tokens, pad) & torch.ne(tokens, eos)
