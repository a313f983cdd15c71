"""The older binary format (``--dataset-impl cached`` and ``lazy``): read, not written.

Little-endian index: magic ``TNTIDX\\0\\0``, then uint64 version 1, dtype code, element size, N and S,
(N + 1) x int64 dim offsets, (N + 1) x int64 data offsets (elements), S x int64 sizes. Item i has the shape
``sizes[dim_offsets[i] : dim_offsets[i + 1]]``; for sentences that is one number each. Tokens are stored plus one.
"""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseq.data.indexed_dataset import IndexedDataset
from pyseq.data.indexed_format import (
    AGAIN,
    CODE_TO_DTYPE,
    MMAP_MAGIC,
    TORCHNET_MAGIC,
    VERSION,
    check_both_exist,
    cut_short,
    data_file_path,
    describe_magic,
    index_file_path,
    map_file,
)
from pyseq.errors import DataError

HEADER = struct.Struct("<8sQQQQQ")


class TorchNetDataset(IndexedDataset):
    """The dataset ``path.bin``, ``path.idx`` of the older format.

    Args:
        fix_lua_indexing: subtract 1 from every token, which takes a copy of the data in memory.

    Raises:
        DataError: a file is missing, damaged, of another format, or holds items that are not 1-d.
    """

    def __init__(self, path: str | os.PathLike[str], fix_lua_indexing: bool = False) -> None:
        self.path, self.fix_lua_indexing = os.fspath(path), fix_lua_indexing
        check_both_exist(self.path)
        self.dtype, self.starts, self.sizes = self._read_index(index_file_path(self.path))
        data = data_file_path(self.path)
        found = os.path.getsize(data)
        expected = int(self.sizes.sum()) * self.dtype.itemsize
        if found < expected:
            raise cut_short(data, found, expected)
        self.buffer = map_file(data, self.dtype)
        if fix_lua_indexing:
            self.buffer = self.buffer - 1

    @staticmethod
    def _read_index(path: str) -> tuple[np.dtype[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        with open(path, "rb") as file:
            header = file.read(HEADER.size)
        if not header.startswith(TORCHNET_MAGIC):
            if header.startswith(MMAP_MAGIC):
                raise DataError(f"{path}: this is an mmap index: use --dataset-impl mmap, or leave it out")
            raise DataError(f"{path}: not an index of the 'cached' and 'lazy' format but {describe_magic(header)}")
        if len(header) < HEADER.size:
            raise cut_short(path, len(header), HEADER.size)
        _, version, code, element_size, count, numbers = HEADER.unpack(header)
        dtype = CODE_TO_DTYPE.get(code)
        if version != VERSION or dtype is None or dtype.itemsize != element_size:
            raise DataError(
                f"{path}: version {version}, dtype code {code}, {element_size} bytes an element is not a combination "
                f"that can be read. {AGAIN}"
            )
        found, expected = os.path.getsize(path), HEADER.size + 8 * (2 * (count + 1) + numbers)
        if found < expected:
            raise cut_short(path, found, expected)
        body = np.fromfile(path, "<i8", 2 * (count + 1) + numbers, offset=HEADER.size)
        dim_offsets, starts, sizes = np.split(body, [count + 1, 2 * (count + 1)])
        if not np.array_equal(dim_offsets, np.arange(count + 1)) or not np.array_equal(np.diff(starts), sizes):
            raise DataError(f"{path}: the items are not sentences (1-d), or the file is damaged. {AGAIN}")
        return dtype, starts[:-1], sizes
