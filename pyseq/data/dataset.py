"""What a dataset is: samples by index, how long each is, in which order they are visited, and how a batch is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.utils.data

from pyseq.data.filtering import fits, split_by_size
from pyseq.data.fixed_shapes import batch_by_size_and_shape
from pyseq.data.indexed_dataset import IndexedDataset

IndexArray = npt.NDArray[np.int64]


class EpochListening:
    """Mixin of what takes part in the change of epochs."""

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Whether the batches made once hold for every epoch.

        A dataset whose samples or sizes change in :meth:`set_epoch` returns False; its batches are then made anew in
        each epoch.
        """
        return True

    def set_epoch(self, epoch: int) -> None:
        """Called at the beginning of each epoch, in the main process, before workers are started."""


class Dataset(torch.utils.data.Dataset[Any], EpochListening):
    """Samples by index. A subclass defines ``__getitem__``, ``__len__`` and :meth:`collater`, and the sizes.

    A subclass whose lengths stand in an array ``sizes`` (``(N,)``, or ``(N, k)`` where a sample has k sides) gets
    the lengths and the filtering from it; else it defines :meth:`num_tokens` and :meth:`size`.
    """

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def collater(self, samples: list[Any]) -> Any:
        """Merge samples, as :meth:`__getitem__` gives them, into one mini-batch. No samples give an empty dict."""
        raise NotImplementedError

    def collate_indices(self, indices: Sequence[int] | IndexArray) -> Any:
        """The mini-batch of the samples at ``indices``; what the iterators call.

        A dataset that can build a batch without a tensor for each sample does so here; the batch must be the one that
        :meth:`collater` makes of the samples.
        """
        return self.collater([self[int(index)] for index in indices])

    def num_tokens(self, index: int) -> int:
        """Length of a sample in tokens, the one that counts against ``--max-tokens`` (the longest of its sides)."""
        return int(np.max(sizes_of(self)[index]))

    def num_tokens_vec(self, indices: IndexArray) -> npt.NDArray[Any]:
        """:meth:`num_tokens` of many samples."""
        sizes = array_sizes(self)
        if sizes is None or not keeps(self, Dataset, "num_tokens"):
            return np.fromiter((self.num_tokens(int(i)) for i in indices), dtype=np.int64, count=len(indices))
        lengths = sizes[np.asarray(indices)]
        return lengths if lengths.ndim == 1 else lengths.max(axis=1)

    def size(self, index: int) -> Any:
        """Length of a sample as ``max_positions`` limits it: a number, a tuple of them, or a dict of tuples."""
        size = sizes_of(self)[index]
        return tuple(size.tolist()) if isinstance(size, np.ndarray) else size

    def ordered_indices(self) -> IndexArray:
        """All indices in the order in which they are cut into batches.

        What is random in it is drawn from numpy's global generator, which the caller seeds
        (:func:`pyseq.data.data_utils.numpy_seed`).
        """
        return np.arange(len(self), dtype=np.int64)

    @property
    def supports_prefetch(self) -> bool:
        """Whether :meth:`prefetch` is to be called with the samples of an epoch before it begins."""
        return False

    def prefetch(self, indices: Iterable[int]) -> None:
        """Read the samples at ``indices`` into memory."""
        raise NotImplementedError

    @property
    def supports_fetch_outside_dataloader(self) -> bool:
        """Whether samples may be read in the main process too."""
        return True

    def attr(self, attr: str, index: int) -> Any:
        """Attribute ``attr`` of the dataset that sample ``index`` comes from, or None."""
        return getattr(self, attr, None)

    def get_batch_shapes(self) -> Any:
        """The allowed shapes ``[(sentences or None, tokens), ...]`` of batches, or None if any shape will do."""
        return None

    def batch_by_size(
        self,
        indices: IndexArray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[IndexArray]:
        """Cut ``indices`` into batches, in their order; no sample is left out.

        Raises:
            DataError: a sample is longer than ``max_tokens``.
        """
        return batch_by_size_and_shape(
            indices,
            self.num_tokens_vec(np.asarray(indices)),
            max_tokens,
            max_sentences,
            required_batch_size_multiple,
            self.get_batch_shapes(),
        )

    def filter_indices_by_size(self, indices: IndexArray, max_sizes: Any) -> tuple[IndexArray, list[int]]:
        """Separate the samples that are longer than ``max_sizes``.

        Args:
            max_sizes: a number, or as :meth:`size` returns it; None, there or inside, is no limit.

        Returns:
            The indices that remain, in their order, and the list of those left out.
        """
        indices = np.asarray(indices)
        sizes = array_sizes(self)
        if sizes is not None and keeps(self, Dataset, "size") and not isinstance(max_sizes, dict):
            return split_by_size(indices, sizes[indices], max_sizes)
        keep = np.fromiter((fits(self.size(int(i)), max_sizes) for i in indices), dtype=bool, count=len(indices))
        return indices[keep], indices[~keep].tolist()


def keeps(dataset: Any, cls: type, *methods: str) -> bool:
    """Whether ``dataset``, a ``cls``, has these methods as ``cls`` defines them: neither its class nor it replaces one.

    A short cut past a method may be taken only then.
    """
    return all(getattr(type(dataset), m) is getattr(cls, m) and m not in vars(dataset) for m in methods)


def is_token_file(dataset: Any) -> bool:
    """Whether sample i of ``dataset`` is nothing but ``buffer[starts[i] : starts[i] + sizes[i]]``."""
    return (
        isinstance(dataset, IndexedDataset)
        and keeps(dataset, IndexedDataset, "__getitem__")
        and dataset.buffer.dtype.kind in "iu"
    )


def array_sizes(dataset: Any) -> npt.NDArray[Any] | None:
    """``dataset.sizes`` if it is an array (or a list that holds just one array), else None."""
    sizes = getattr(dataset, "sizes", None)
    if isinstance(sizes, list) and len(sizes) == 1 and isinstance(sizes[0], np.ndarray):
        sizes = sizes[0]
    return sizes if isinstance(sizes, np.ndarray) else None


def sizes_of(dataset: Any) -> npt.NDArray[Any]:
    """``dataset.sizes`` as an array. Raises NotImplementedError if there is none."""
    sizes = array_sizes(dataset)
    if sizes is None:
        raise NotImplementedError(f"{type(dataset).__name__} must define num_tokens() and size(), or an array `sizes`")
    return sizes
