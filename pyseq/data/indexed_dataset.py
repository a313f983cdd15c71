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
    HUFFMAN_MAGIC,
    MMAP_MAGIC,
    TORCHNET_MAGIC,
    best_fitting_int_dtype,
    check_both_exist,
    data_file_path,
    describe_magic,
    index_file_path,
    map_file,
    read_index,
)
from pyseq.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from pyseq.data.dictionary import Dictionary

__all__ = [
    "IndexedDataset",
    "MMapDatasetBuilder",
    "MMapIndexedDataset",
    "best_fitting_int_dtype",
    "dataset_exists",
    "infer_dataset_impl",
    "make_dataset",
]

IMPLEMENTATIONS = ("raw", "lazy", "cached", "mmap")


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


def infer_dataset_impl(path: str) -> str | None:
    """The implementation that reads the dataset with this path prefix; None if there is no such dataset.

    Raises:
        DataError: it is of a format that is not carried, or one of its two files is missing.
    """
    if os.path.isfile(path):
        return "raw"
    if not os.path.isfile(index_file_path(path)) and not os.path.isfile(data_file_path(path)):
        return None
    check_both_exist(path)
    with open(index_file_path(path), "rb") as file:
        magic = file.read(len(MMAP_MAGIC))
    if magic == MMAP_MAGIC:
        return "mmap"
    if magic.startswith(TORCHNET_MAGIC) and not magic.startswith(HUFFMAN_MAGIC):
        return "cached"
    raise DataError(f"{index_file_path(path)}: not the index of a dataset but {describe_magic(magic)}")


def dataset_exists(path: str, impl: str | None = None) -> bool:
    """Whether there is a dataset with this path prefix that ``impl`` (None: any) may be able to read."""
    if impl is None:
        return infer_dataset_impl(path) is not None
    return os.path.isfile(path) if impl == "raw" else MMapIndexedDataset.exists(path)


def make_dataset(
    path: str, impl: str | None = None, fix_lua_indexing: bool = False, dictionary: Dictionary | None = None
) -> IndexedDataset | None:
    """Open the dataset with this path prefix.

    Args:
        impl: "mmap", "raw", "cached" or "lazy" (these two are one older format); None finds out.
        fix_lua_indexing: subtract 1 from the tokens of the older format.
        dictionary: encodes the text of a raw dataset.

    Returns:
        The dataset, or None if there is none with this prefix.

    Raises:
        ConfigError: ``impl`` is not known, or raw text comes without a dictionary.
        DataError: the dataset is damaged or of another format than ``impl``.
    """
    if impl is not None and impl not in IMPLEMENTATIONS:
        raise ConfigError(f"--dataset-impl {impl} is not known. {nearest(impl, IMPLEMENTATIONS)}")
    impl = impl or infer_dataset_impl(path)
    if impl is None or not dataset_exists(path, impl):
        return None
    if impl == "mmap":
        return MMapIndexedDataset(path)
    if impl == "raw":
        from pyseq.data.raw_dataset import RawTextDataset

        if dictionary is None:
            raise ConfigError(f"{path}: --dataset-impl raw needs a dictionary to encode the text")
        return RawTextDataset(path, dictionary)
    from pyseq.data.torchnet_dataset import TorchNetDataset

    return TorchNetDataset(path, fix_lua_indexing)
