"""Word alignments in a batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def collate_alignments(
    alignments: Sequence[Tensor], batch: dict[str, Any], pad_idx: int, left_pad_source: bool, left_pad_target: bool
) -> dict[str, Tensor]:
    """Alignments of a batch as positions in its flattened tokens.

    Args:
        alignments: of each row, pairs of source and target position without padding, flat or [k, 2]. Rows without any
            are allowed; a row with a position beyond its sentence (its last token, the eos, not counted) is left out
            with a warning.
        batch: what :func:`~pyseq.data.language_pair_dataset.collate` returns, with a target.

    Returns:
        ``alignments`` LongTensor [K, 2], source positions within a row of ``src_tokens`` and target positions in
        ``target.view(-1)``, and ``align_weights`` [K], one over the number of alignments of the same target token;
        nothing if there is no alignment.
    """
    src_lengths = batch["net_input"]["src_lengths"]
    tgt_lengths = batch["target"].ne(pad_idx).sum(dim=1)
    src_width, (rows, tgt_width) = batch["net_input"]["src_tokens"].size(1), batch["target"].shape
    offsets = torch.stack([torch.zeros(rows, dtype=torch.long), torch.arange(rows) * tgt_width], dim=1)
    if left_pad_source:
        offsets[:, 0] += src_width - src_lengths
    if left_pad_target:
        offsets[:, 1] += tgt_width - tgt_lengths
    kept = []
    for flat, offset, src_length, tgt_length in zip(alignments, offsets, src_lengths.tolist(), tgt_lengths.tolist()):
        pairs = flat.view(-1, 2)
        if not len(pairs):
            continue
        last_source, last_target = pairs.max(dim=0).values.tolist()
        if last_source >= src_length - 1 or last_target >= tgt_length - 1:
            logger.warning("alignment size mismatch found, skipping alignment!")
            continue
        kept.append(pairs + offset)
    if not kept:
        return {}
    pairs = torch.cat(kept)
    return {"alignments": pairs, "align_weights": alignment_weights(pairs)}


def alignment_weights(alignments: Tensor) -> Tensor:
    """For each of ``alignments`` [K, 2] one over how many of them have the same target position."""
    _, place, count = torch.unique(alignments[:, 1], return_inverse=True, return_counts=True)
    return 1.0 / count[place].float()
