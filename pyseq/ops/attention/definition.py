"""Attention of packed sequences in plain torch: what the kernels compute.

Sequences lie one after another, without padding. Of segment b with queries Q, keys K and values V, for each head::

    P = softmax(scale * Q K^T)           causal: query i sees keys 0..i
    out = dropout(P) V                   0 for a query without a key

(Vaswani et al. 2017, section 3.2.1). Arithmetic is fp32 or better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyseq.ops.dropout import limit
from pyseq.ops.dropout import scale as dropout_scale
from pyseq.ops.random import random_tiles

# A tile of 128 random numbers is for the weights of 8 queries and 16 keys, query by query.
TILE_QUERIES, TILE_KEYS = 8, 16


class Segments(NamedTuple):
    """Where the sequences of a packed batch are.

    Args:
        offsets: int32 [B + 1], on the device of the data: the token at which each sequence begins, from 0 on and never
            falling; and after them the number of tokens.
        longest: tokens of the longest sequence, or more. Which weights dropout drops depends on that of the keys.
    """

    offsets: Tensor
    longest: int

    @classmethod
    def from_lengths(cls, lengths: Sequence[int] | Tensor, device: torch.device | str | None = None) -> Segments:
        """Segments of these lengths. Lengths in a tensor on a GPU are waited for."""
        sizes = torch.as_tensor(lengths, dtype=torch.int64)
        offsets = torch.zeros(sizes.numel() + 1, dtype=torch.int32, device=sizes.device)
        torch.cumsum(sizes, 0, out=offsets[1:])
        return cls(offsets.to(device), int(sizes.max()) if sizes.numel() else 0)


class Options(NamedTuple):
    longest_query: int
    longest_key: int
    causal: bool
    scale: float
    p: float


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    options: Options,
    seed: Tensor | None,
) -> Tensor:
    """The output [Tq, H, D] of queries [Tq, H, D] and keys and values [Tk, H, D]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    queries, keys = places(query_offsets, query.size(0)), places(key_offsets, key.size(0))
    q = padded(query.to(wide), queries, query_offsets, options.longest_query)
    k, v = (padded(t.to(wide), keys, key_offsets, options.longest_key) for t in (key, value))
    hidden = torch.arange(k.size(1), device=k.device) >= lengths(key_offsets)[:, None, None, None]  # [B, 1, 1, Lk]
    if options.causal:
        hidden = hidden | torch.ones(q.size(1), k.size(1), dtype=torch.bool, device=k.device).triu(1)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * options.scale
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0.0)
    if seed is not None:
        keep = keep_mask(seed, query_offsets, query.size(1), options)
        weights = torch.where(keep, weights * dropout_scale(options.p), 0.0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)[queries].to(query.dtype)


def lengths(offsets: Tensor) -> Tensor:
    return offsets.diff()


def places(offsets: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Of each token, its segment and its place in it: int64 [T] each."""
    token = torch.arange(tokens, device=offsets.device)
    segment = torch.bucketize(token, offsets[1:].long(), right=True)
    return segment, token - offsets[segment]


def padded(packed: Tensor, at: tuple[Tensor, Tensor], offsets: Tensor, longest: int) -> Tensor:
    """[B, longest, H, D] with zeros after each sequence."""
    return packed.new_zeros(offsets.numel() - 1, longest, *packed.shape[1:]).index_put(at, packed)


def keep_mask(seed: Tensor, query_offsets: Tensor, heads: int, options: Options) -> Tensor:
    """Which weights dropout keeps: bool [B, H, longest query, longest key].

    Weights of query i and key j of a segment that begins at query t lie in tile
    ``((t + i // 8) * H + h) * ceil(longest key / 16) + j // 16``, at ``i % 8 * 16 + j % 16``. No two weights share a
    number, and as many numbers are drawn as there are weights, or not many more.
    """
    rows = -(-options.longest_query // TILE_QUERIES)
    cols = -(-options.longest_key // TILE_KEYS)
    row, head, col = (torch.arange(n, device=seed.device) for n in (rows, heads, cols))
    first = query_offsets[:-1].long()[:, None, None, None]  # [B, H, rows, cols]
    tile = ((first + row[:, None]) * heads + head[:, None, None]) * cols + col
    halves = random_tiles(seed, tile).unflatten(-1, (TILE_QUERIES, TILE_KEYS))
    halves = halves.transpose(3, 4).reshape(first.size(0), heads, rows * TILE_QUERIES, cols * TILE_KEYS)
    return halves[:, :, : options.longest_query, : options.longest_key] > limit(options.p)
