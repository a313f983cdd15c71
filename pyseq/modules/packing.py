"""Sequences without padding: the tokens of a padded batch that are real, one sentence after another.

Layers work on T x B x C. A packed batch of N tokens is N x 1 x C to them: what they do token by token is the same, and
attention is told by a :class:`PackedMask` in the place of a padding mask which tokens belong together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyseq.ops import Segments
from pyseq.utils import host_copy


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
        real = host_copy(tokens).ne(padding_idx)
        lengths = real.sum(dim=1)
        index = real.flatten().nonzero().squeeze(1)
        offsets, longest = Segments.from_lengths(lengths)
        starts = offsets[:-1].long().repeat_interleave(lengths, output_size=len(index))
        positions = (torch.arange(len(index), device=real.device) - starts + padding_idx + 1).unsqueeze(0)
        self.index, self.positions, offsets = (_upload(t, tokens.device) for t in (index, positions, offsets))
        self.segments = Segments(offsets, longest)
        self.tokens = tokens.flatten()[self.index].unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """N x 1 x C to B x T x C, zeros at padding."""
        rows, columns = self.shape
        if len(self.index) == rows * columns:
            return x.view(rows, columns, -1)
        padded = x.new_zeros(rows * columns, x.size(-1))
        return padded.index_copy(0, self.index, x.squeeze(1)).view(rows, columns, -1)


def _upload(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without waiting for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
