"""The mmap dataset on disk: ``X.bin`` holds the tokens of all items one after another, ``X.idx`` says where they are.

Little-endian index: magic ``MMIDIDX\\0\\0``, uint64 version 1, uint8 dtype code, uint64 N, N x int32 sizes (tokens),
N x int64 pointers (bytes into ``X.bin``).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pyseq.errors import DataError

MMAP_MAGIC = b"MMIDIDX\x00\x00"
TORCHNET_MAGIC = b"TNTIDX\x00\x00"
HUFFMAN_MAGIC = b"HUFFIDX\x00\x00"
HEADER = struct.Struct("<9sQBQ")
VERSION = 1

CODE_TO_DTYPE: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f8"),
    8: np.dtype("<u2"),
    9: np.dtype("<u4"),
    10: np.dtype("<u8"),
}
DTYPE_TO_CODE = {dtype: code for code, dtype in reversed(CODE_TO_DTYPE.items())}


def index_file_path(prefix: str) -> str:
    return prefix + ".idx"


def data_file_path(prefix: str) -> str:
    return prefix + ".bin"


def best_fitting_int_dtype(max_int_to_represent: int | None) -> np.dtype[np.integer]:
    """The dtype in which tokens of a vocabulary of this size are stored: uint16, uint32 or int64; uint32 if unknown."""
    if max_int_to_represent is None:
        return np.dtype(np.uint32)
    if max_int_to_represent < 65500:
        return np.dtype(np.uint16)
    return np.dtype(np.uint32 if max_int_to_represent < 2**32 - 1 else np.int64)


@dataclass(frozen=True)
class MMapIndex:
    """Where the items of a dataset are.

    Attributes:
        dtype: of the tokens.
        sizes: int32 ``(N,)``, tokens of each item.
        pointers: int64 ``(N,)``, byte in the data file at which each item begins.
    """

    dtype: np.dtype[Any]
    sizes: npt.NDArray[np.int32]
    pointers: npt.NDArray[np.int64]

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """``pointers`` in elements."""
        return self.pointers // self.dtype.itemsize


def write_index(file: IO[bytes], dtype: npt.DTypeLike, sizes: npt.NDArray[np.int32]) -> None:
    """Write the index of items that follow each other without gaps."""
    dtype = np.dtype(dtype)
    pointers = np.zeros(len(sizes), dtype="<i8")
    np.cumsum(sizes[:-1], out=pointers[1:], dtype=np.int64)
    pointers *= dtype.itemsize
    file.write(HEADER.pack(MMAP_MAGIC, VERSION, DTYPE_TO_CODE[dtype], len(sizes)))
    file.write(np.ascontiguousarray(sizes, dtype="<i4").data)
    file.write(pointers.data)


def read_index(prefix: str) -> MMapIndex:
    """Read the index ``prefix.idx`` and check that it is whole and fits ``prefix.bin``.

    Raises:
        DataError: a file is missing, of another kind, cut short, or the two do not belong together.
    """
    path = index_file_path(prefix)
    check_both_exist(prefix)
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if not header.startswith(MMAP_MAGIC):
        raise DataError(f"{path}: not an mmap index but {describe_magic(header)}")
    if len(header) < HEADER.size:
        raise cut_short(path, len(header), HEADER.size)
    _, version, code, count = HEADER.unpack(header)
    if version != VERSION:
        raise DataError(f"{path}: version {version} of the mmap format is not known (only {VERSION})")
    if code not in CODE_TO_DTYPE:
        raise DataError(f"{path}: dtype code {code} is not known; the file is damaged. {AGAIN}")
    expected, found = HEADER.size + count * 12, os.path.getsize(path)
    if found < expected:
        raise cut_short(path, found, expected)
    if found > expected:
        raise DataError(
            f"{path}: {found:,} bytes, but {count:,} items take {expected:,}: made by another tool (Megatron)? {AGAIN}"
        )
    # Read, not mapped: both are needed whole for batching, and 26 bytes of header would leave them unaligned.
    sizes = np.fromfile(path, "<i4", count, offset=HEADER.size)
    pointers = np.fromfile(path, "<i8", count, offset=HEADER.size + 4 * count)
    index = MMapIndex(CODE_TO_DTYPE[code], sizes, pointers)
    check_data_file(prefix, index)
    return index


def check_data_file(prefix: str, index: MMapIndex) -> None:
    """Raise DataError unless the items of ``index`` fill ``prefix.bin`` and none lies outside it."""
    path, itemsize = data_file_path(prefix), index.dtype.itemsize
    found, expected = os.path.getsize(path), int(index.sizes.sum(dtype=np.int64)) * itemsize
    if found < expected:
        raise cut_short(path, found, expected)
    if found > expected:
        raise DataError(
            f"{path}: {found:,} bytes, but {index_file_path(prefix)} accounts for {expected:,}: "
            f"the two files do not belong together. {AGAIN}"
        )
    if len(index.sizes) and (
        index.sizes.min() < 0
        or index.pointers.min() < 0
        or (index.pointers + index.sizes.astype(np.int64) * itemsize).max() > found
        or (index.pointers % itemsize).any()
    ):
        raise DataError(f"{index_file_path(prefix)}: an item lies outside {path}; the file is damaged. {AGAIN}")


def map_file(path: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A read-only array over a file, which is paged in when it is read."""
    if os.path.getsize(path) == 0:  # mmap refuses an empty file
        return np.empty(0, dtype)
    # A plain array: indexing np.memmap itself takes several times as long.
    return np.asarray(np.memmap(path, dtype, "r"))


AGAIN = "Preprocess the text again, or copy both files again."


def cut_short(path: str, found: int, expected: int) -> DataError:
    return DataError(f"{path}: cut short, {found:,} of {expected:,} bytes. {AGAIN}")


def describe_magic(header: bytes) -> str:
    if header.startswith(TORCHNET_MAGIC):
        return "an index of the older 'cached' and 'lazy' format: use --dataset-impl cached, or leave it out"
    if header.startswith(HUFFMAN_MAGIC):
        return "a huffman-coded one, which is not carried: preprocess the text again with --dataset-impl mmap"
    return f"something else. {AGAIN}"


def check_both_exist(prefix: str) -> None:
    """Raise DataError unless ``prefix.idx`` and ``prefix.bin`` are both there."""
    for path, other in ((index_file_path(prefix), ".bin"), (data_file_path(prefix), ".idx")):
        if not os.path.isfile(path):
            raise DataError(f"{path}: no such file (a dataset is this and the {other} file beside it)")
