"""A corpus cut into blocks of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pyseq.data.dataset import Dataset, IndexArray, is_token_file
from pyseq.data.token_blocks import token_blocks
from pyseq.errors import DataError


class BlockRows(NamedTuple):
    """Blocks as rows of a token file: ``tokens[starts[i] : starts[i] + lengths[i]]``."""

    tokens: npt.NDArray[Any]
    starts: IndexArray
    lengths: IndexArray
    at_sentence_start: npt.NDArray[np.bool_]


class TokenBlockDataset(Dataset):
    """The sentences of ``dataset``, one after another, cut into blocks.

    Args:
        dataset: sentences, 1-d tensors by index (a dataset or a list).
        sizes: their lengths.
        block_size: in tokens; not needed for break mode "eos".
        pad, eos: the symbols before the beginning of a sentence, in the shifted views of a block.
        break_mode: "none" (or None), "complete", "complete_doc" or "eos"; see :mod:`pyseq.data.token_blocks`.
        include_targets: samples are (source, target, past target): the block shifted right by one, the block, and
            the block shifted right by two. What comes before the block's first token is the token before it in the
            same sentence, and where that begins ``eos`` (before it ``pad``).
        document_sep_len: length of the sentence that separates documents, for "complete_doc".

    Raises:
        DataError: there are no sentences, or not as many as sizes.
        ConfigError: the break mode is not known, or needs a block size.
    """

    def __init__(
        self,
        dataset: Any,
        sizes: Any,
        block_size: int | None,
        pad: int,
        eos: int,
        break_mode: str | None = None,
        include_targets: bool = False,
        document_sep_len: int = 1,
    ) -> None:
        super().__init__()
        sentence_sizes = np.asarray(sizes).astype(np.int64)
        if len(dataset) == 0:
            raise DataError("there is no text to cut into blocks: the dataset is empty")
        if len(dataset) != len(sentence_sizes):
            raise DataError(f"{len(dataset):,} sentences but {len(sentence_sizes):,} sizes")
        self.dataset, self.pad, self.eos, self.include_targets = dataset, pad, eos, include_targets
        slices, blocks = token_blocks(sentence_sizes, break_mode, block_size, document_sep_len)
        lengths = slices[:, 1] - slices[:, 0]
        largest = max(int(lengths.max(initial=0)), block_size or 0)
        self.sizes: npt.NDArray[Any] = lengths.astype(np.uint16 if largest < 65535 else np.uint32)
        self.slice_indices = compact(slices)
        self.block_to_dataset_index = compact(blocks)
        self._first_token = first_token_of_stream(dataset, sentence_sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Any:
        first, start, last = self.block_to_dataset_index[index].tolist()
        length = int(self.sizes[index])
        text = torch.cat([self.dataset[sentence] for sentence in range(first, last + 1)])
        block = text[start : start + length]
        if not self.include_targets:
            return block
        before = torch.cat([text.new_tensor([self.pad, self.eos]), text[:start]])[-2:]
        shifted = torch.cat([before, block])
        return shifted[1 : 1 + length], block, shifted[:length]

    def rows(self, indices: IndexArray) -> BlockRows | None:
        """The blocks at ``indices`` as rows of the token file; None if the text is not one file without gaps."""
        if self._first_token is None:
            return None
        starts = self.slice_indices[indices, 0].astype(np.int64) + self._first_token
        at_sentence_start = self.block_to_dataset_index[indices, 1] == 0
        return BlockRows(self.dataset.buffer, starts, self.sizes[indices].astype(np.int64), at_sentence_start)

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    def num_tokens_vec(self, indices: IndexArray) -> npt.NDArray[Any]:
        return self.sizes[indices]

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def attr(self, attr: str, index: int) -> Any:
        return self.dataset.attr(attr, int(self.block_to_dataset_index[index, 0]))

    @property
    def supports_prefetch(self) -> bool:
        return getattr(self.dataset, "supports_prefetch", False)

    def prefetch(self, indices: Iterable[int]) -> None:
        blocks = self.block_to_dataset_index[np.fromiter(indices, dtype=np.int64)]
        self.dataset.prefetch({s for first, _, last in blocks.tolist() for s in range(first, last + 1)})

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return getattr(self.dataset, "can_reuse_epoch_itr_across_epochs", True)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def compact(values: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """``values``, none negative, as uint32 where they fit: there are five for each block."""
    return values.astype(np.uint32) if values.max(initial=0) < 2**32 else values


def first_token_of_stream(dataset: Any, sizes: npt.NDArray[np.int64]) -> int | None:
    """Where the text begins in ``dataset.buffer``, if it stands there without gaps and in order; else None."""
    if not is_token_file(dataset) or not np.array_equal(dataset.sizes, sizes):
        return None
    first = int(dataset.starts[0])
    gapless = np.array_equal(dataset.starts, first + np.cumsum(sizes) - sizes)
    return first if gapless else None
