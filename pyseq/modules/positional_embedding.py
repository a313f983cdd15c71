"""Where a token stands: learned or sinusoidal position vectors.

Positions count the tokens that are not padding, from ``padding_idx + 1``; row ``padding_idx`` is zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyseq.utils import make_positions

_ENDLESS = int(1e5)  # the sinusoidal table grows on demand; this is only what max_positions says


class LearnedPositionalEmbedding(nn.Embedding):
    """A trained vector for each position.

    Args:
        num_embeddings: rows of the table; the first ``padding_idx + 1`` of them are not positions.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.max_positions = num_embeddings - padding_idx - 1

    def forward(
        self,
        input: Tensor,
        incremental_state: dict[str, Any] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Vectors for the tokens ``input`` [B x T]; with an incremental state, for the last one alone [1 x 1 x C]."""
        if positions is None:
            assert self.padding_idx is not None
            if incremental_state is not None:
                positions = torch.full((1, 1), self.padding_idx + input.size(1), device=input.device)
            else:
                positions = make_positions(input, self.padding_idx)
        return F.embedding(positions, self.weight, self.padding_idx)  # B x T x C


class SinusoidalPositionalEmbedding(nn.Module):
    """Sines of geometrically spaced frequencies, then their cosines (Vaswani et al., 2017, section 3.5)."""

    weights: Tensor

    def __init__(self, embedding_dim: int, padding_idx: int, init_size: int = 1024) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.max_positions = _ENDLESS
        # Not in the state dict: the table follows from its size.
        table = self.get_embedding(init_size, embedding_dim, padding_idx)
        self.register_buffer("weights", table, persistent=False)

    @staticmethod
    def get_embedding(num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> Tensor:
        """The table, in fp32 [num_embeddings x embedding_dim]."""
        half = embedding_dim // 2
        step = math.log(10000) / max(half - 1, 1)
        frequencies = torch.exp(torch.arange(half, dtype=torch.float) * -step)
        angles = torch.arange(num_embeddings, dtype=torch.float).unsqueeze(1) * frequencies.unsqueeze(0)
        table = F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, embedding_dim % 2))
        if padding_idx is not None:
            table[padding_idx] = 0
        return table

    def forward(
        self,
        input: Tensor,
        incremental_state: dict[str, Any] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Vectors for the tokens ``input`` [B x T]; with an incremental state, for the last one alone [B x 1 x C]."""
        bsz, seq_len = input.size(0), input.size(1)
        size = self.padding_idx + 1 + seq_len
        if positions is not None and size > self.weights.size(0):  # sentences one after another are shorter than all
            size = int(positions.max()) + 1
        self._grow(size)
        if incremental_state is not None:
            return self.weights[self.padding_idx + seq_len].expand(bsz, 1, -1)
        if positions is None:
            positions = make_positions(input, self.padding_idx)
        return F.embedding(positions, self.weights)  # B x T x C

    def _grow(self, size: int) -> None:
        if size > self.weights.size(0):
            self.weights = self.get_embedding(size, self.embedding_dim, self.padding_idx).to(self.weights)


def PositionalEmbedding(
    num_embeddings: int, embedding_dim: int, padding_idx: int, learned: bool = False
) -> LearnedPositionalEmbedding | SinusoidalPositionalEmbedding:
    """Vectors for ``num_embeddings`` positions. Learned ones start as N(0, 1 / embedding_dim)."""
    size = num_embeddings + padding_idx + 1
    if not learned:
        return SinusoidalPositionalEmbedding(embedding_dim, padding_idx, init_size=size)
    table = LearnedPositionalEmbedding(size, embedding_dim, padding_idx)
    nn.init.normal_(table.weight, mean=0, std=embedding_dim**-0.5)
    nn.init.zeros_(table.weight[padding_idx])
    return table
