"""Datasets of tokens in one flat array: item i is ``buffer[starts[i] : starts[i] + sizes[i]]``.

Batches are collated straight from ``buffer``, ``starts`` and ``sizes``; ``dataset[i]`` is for everyone else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pyseq.data.indexed_builder import MMapDatasetBuilder
from pyseq.data.indexed_format import (
    best_fitting_int_dtype,
    data_file_path,
    index_file_path,
    map_file,
    read_index,
)

if TYPE_CHECKING:
    pass

__all__ = [
    "IndexedDataset",
    "MMapDatasetBuilder",
    "MMapIndexedDataset",
    "best_fitting_int_dtype",
]


class IndexedDataset:
    """Items in one flat array.

    Attributes:
        buffer: tokens of all items, in the dtype they are stored in.
        starts: int64 ``(N,)``, element of ``buffer`` at which each item begins.
        sizes: ``(N,)``, tokens of each item.
    """

    buffer: npt.NDArray[Any]
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> torch.Tensor:
        """LongTensor ``(sizes[index],)``. Raises IndexError beyond the ends."""
        start = self.starts[index]
        return torch.from_numpy(self.buffer[start : start + self.sizes[index]].astype(np.int64))

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    @property
    def supports_prefetch(self) -> bool:
        return False

    def prefetch(self, indices: Iterable[int]) -> None:
        """Nothing to do: the operating system pages the file in."""


class MMapIndexedDataset(IndexedDataset):
    """The dataset ``path.bin``, ``path.idx``, mapped into memory. Pickled by its path, so a worker maps it anew.

    Raises:
        DataError: a file is missing, damaged, of another format, or the two do not belong together.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        index = read_index(self.path)
        self.dtype, self.sizes, self.starts = index.dtype, index.sizes, index.starts
        self.buffer = map_file(data_file_path(self.path), index.dtype)

    def __reduce__(self) -> tuple[type[MMapIndexedDataset], tuple[str]]:
        return type(self), (self.path,)

    @staticmethod
    def exists(path: str) -> bool:
        return os.path.isfile(index_file_path(path)) and os.path.isfile(data_file_path(path))
