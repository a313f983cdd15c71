"""Sequences without padding: the tokens of a padded batch that are real, one sentence after another.

Layers work on T x B x C. A packed batch of N tokens is N x 1 x C to them: what they do token by token is the same, and
attention is told by a :class:`PackedMask` in the place of a padding mask which tokens belong together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyseq.ops import Segments


class PackedMask(NamedTuple):
    """Sentence i of the queries sees sentence i of the keys, and no other."""

    queries: Segments
    keys: Segments
    causal: bool = False  # a query does not see keys that come after it


class Packing:
    """Where the real tokens of a batch are.

    Args:
        tokens: [B x T], padded on either side.
        padding_idx: of padding.

    Attributes:
        index: [N], the places of real tokens in the flattened batch.
        segments: the sentences among the N tokens.
        tokens: [1 x N], the real tokens.
        positions: [1 x N], numbered within each sentence from ``padding_idx + 1``.
    """

    def __init__(self, tokens: Tensor, padding_idx: int) -> None:
        self.shape = tokens.shape
        real = tokens.ne(padding_idx)
        lengths = real.sum(dim=1)
        self.index = real.flatten().nonzero().squeeze(1)
        self.segments = Segments.from_lengths(lengths)
        self.tokens = tokens.flatten()[self.index].unsqueeze(0)
        starts = self.segments.offsets[:-1].long().repeat_interleave(lengths, output_size=len(self.index))
        self.positions = (torch.arange(len(self.index), device=tokens.device) - starts + padding_idx + 1).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """N x 1 x C to B x T x C, zeros at padding."""
        rows, columns = self.shape
        if len(self.index) == rows * columns:
            return x.view(rows, columns, -1)
        padded = x.new_zeros(rows * columns, x.size(-1))
        return padded.index_copy(0, self.index, x.squeeze(1)).view(rows, columns, -1)
