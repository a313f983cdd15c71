"""Opening a dataset of whatever implementation its files are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyseq.data.indexed_dataset import IndexedDataset, MMapIndexedDataset
from pyseq.data.indexed_format import (
    HUFFMAN_MAGIC,
    MMAP_MAGIC,
    TORCHNET_MAGIC,
    check_both_exist,
    data_file_path,
    describe_magic,
    index_file_path,
)
from pyseq.data.raw_dataset import RawTextDataset
from pyseq.data.torchnet_dataset import TorchNetDataset
from pyseq.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from pyseq.data.dictionary import Dictionary

IMPLEMENTATIONS = ("raw", "lazy", "cached", "mmap")


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
        if dictionary is None:
            raise ConfigError(f"{path}: --dataset-impl raw needs a dictionary to encode the text")
        return RawTextDataset(path, dictionary)
    return TorchNetDataset(path, fix_lua_indexing)
