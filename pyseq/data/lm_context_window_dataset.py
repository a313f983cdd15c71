"""Blocks of text with some of the text before them, to measure a language model with context at every token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyseq.data.base_wrapper_dataset import BaseWrapperDataset
from pyseq.data.dataset import IndexArray


class LMContextWindowDataset(BaseWrapperDataset):
    """Puts up to ``context_window`` source tokens of the blocks before it in front of each block.

    The target is padding there, so that every token is still scored once. A batch has ``start_indices``, the number of
    such tokens in each row, besides what the wrapped dataset's batches have.

    Args:
        dataset: a :class:`~pyseq.data.monolingual_dataset.MonolingualDataset` in the order of the text.
        tokens_per_sample: length of its blocks; a longer block gets so much less context.
    """

    def __init__(self, dataset: Any, tokens_per_sample: int, context_window: int, pad_idx: int) -> None:
        super().__init__(dataset)
        self.tokens_per_sample, self.context_window, self.pad_idx = tokens_per_sample, context_window, pad_idx

    def context_of(self, index: int, room: int) -> Tensor:
        """The last ``room`` source tokens (or as many as there are) before sample ``index``."""
        parts: list[Tensor] = []
        while room > 0 and index > 0:
            index -= 1
            parts.insert(0, self.dataset[index]["source"][-room:])
            room -= len(parts[0])
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)

    def collater(self, samples: list[Any]) -> Any:
        if not samples:
            return {}
        batch = self.dataset.collater(samples)
        tokens, target = batch["net_input"]["src_tokens"], batch["target"]
        lengths = batch["net_input"]["src_lengths"]
        wide = (tokens.size(0), tokens.size(1) + self.context_window)
        new_tokens, new_target = tokens.new_full(wide, self.pad_idx), target.new_full(wide, self.pad_idx)
        starts = []
        for row, (index, length) in enumerate(zip(batch["id"].tolist(), lengths.tolist())):
            room = min(self.context_window, self.tokens_per_sample + self.context_window - length)
            context = self.context_of(index, room)
            start = len(context)
            new_tokens[row, :start] = context
            new_tokens[row, start : start + tokens.size(1)] = tokens[row]
            new_target[row, start : start + target.size(1)] = target[row]
            starts.append(start)
        batch["net_input"].update(src_tokens=new_tokens, src_lengths=lengths + torch.tensor(starts))
        return {**batch, "target": new_target, "start_indices": starts}

    def ordered_indices(self) -> IndexArray:
        return np.arange(len(self.dataset), dtype=np.int64)
