"""Forbidding tokens that would complete an n-gram for the second time."""

from __future__ import annotations

import math

from torch import Tensor


def block_repeated_ngrams(tokens: Tensor, lprobs: Tensor, size: int, pad: int, eos: int) -> None:
    """Set the log-probability of every token that repeats an n-gram of its row to -inf, in place.

    The end of sentence is never forbidden: it would leave a hypothesis without a way to end.

    Args:
        tokens: [R, L] what each row holds so far, start symbol first.
        lprobs: [R, V] log-probabilities of the next token, in which padding is already -inf.
        size: n, at least 1.
    """
    length = tokens.size(1)
    if length < size:
        return
    ngrams = tokens.unfold(1, size, 1)  # R x (L - n + 1) x n
    last = tokens[:, length - size + 1 :].unsqueeze(1)  # R x 1 x (n - 1)
    follower = ngrams[:, :, -1]
    repeats = ngrams[:, :, :-1].eq(last).all(dim=-1) & follower.ne(eos)
    lprobs.scatter_(1, follower.masked_fill(~repeats, pad), -math.inf)
