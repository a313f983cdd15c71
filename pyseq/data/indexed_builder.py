"""Writing an mmap dataset."""

from __future__ import annotations

import contextlib
import os
import shutil
from array import array
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseq.data.atomic_file import remove_if_there, replacing, telling_disk_errors, temporary_name
from pyseq.data.indexed_format import data_file_path, read_index, write_index
from pyseq.errors import DataError


class MMapDatasetBuilder:
    """Writes the items of a dataset one after another; the files get their names when all is written.

    As a context manager it throws an unfinished file away.

    Args:
        out_file: path of the data file, ``X.bin``.
        dtype: in which tokens are stored; see :func:`~pyseq.data.indexed_format.best_fitting_int_dtype`.
    """

    def __init__(self, out_file: str | os.PathLike[str], dtype: npt.DTypeLike = np.int64) -> None:
        self.out_file, self.dtype = os.fspath(out_file), np.dtype(dtype)
        self._sizes = array("i")
        self._temporary = temporary_name(self.out_file)
        with telling_disk_errors(self.out_file):
            self._file = open(self._temporary, "wb")  # noqa: SIM115

    def add_item(self, tensor: Any) -> None:
        """Append one item: 1-d tensor or array of integers."""
        tokens = np.asarray(tensor)
        self.add_items(tokens, np.array([tokens.size], dtype=np.int32))

    def add_items(self, tokens: npt.NDArray[Any], sizes: npt.NDArray[np.int32]) -> None:
        """Append many items at once: their tokens one after another, and the number of tokens of each.

        Raises:
            DataError: a token does not fit the dtype, or the file cannot be written.
        """
        stored = np.ascontiguousarray(tokens, dtype=self.dtype)
        if stored.dtype != tokens.dtype and not np.array_equal(stored, tokens):
            raise DataError(f"{self.out_file}: tokens from {tokens.min()} to {tokens.max()} do not fit {self.dtype}")
        self._sizes.frombytes(np.ascontiguousarray(sizes, dtype=np.int32).tobytes())
        with telling_disk_errors(self.out_file):
            self._file.write(stored.data)

    def merge_file_(self, another_file: str) -> None:
        """Append all items of the dataset with this path prefix.

        Raises:
            DataError: it is damaged, or its tokens have another dtype.
        """
        index = read_index(another_file)
        if index.dtype != self.dtype:
            raise DataError(f"{another_file}: tokens are {index.dtype}, expected {self.dtype}")
        self._sizes.frombytes(index.sizes.tobytes())
        with open(data_file_path(another_file), "rb") as data, telling_disk_errors(self.out_file):
            shutil.copyfileobj(data, self._file)

    def finalize(self, index_file: str | os.PathLike[str]) -> None:
        """Write the index and give both files their names.

        Raises:
            DataError: a file cannot be written; what was there before is kept.
        """
        try:
            with telling_disk_errors(self.out_file):
                self._file.close()
            with replacing(os.fspath(index_file), "wb") as file:
                write_index(file, self.dtype, np.array(self._sizes, dtype=np.int32))
                # Both are renamed only when both are on the disk, or an old index would be left with new data.
                file.flush()
                os.replace(self._temporary, self.out_file)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Throw away what has been written. Without effect after :meth:`finalize`."""
        with contextlib.suppress(OSError):  # what was still buffered does not fit on a full disk either
            self._file.close()
        remove_if_there(self._temporary)

    def __enter__(self) -> MMapDatasetBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
