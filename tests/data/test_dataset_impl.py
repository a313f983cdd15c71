from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyseq.data.dataset_impl import dataset_exists, infer_dataset_impl, make_dataset
from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_builder import MMapDatasetBuilder
from pyseq.data.indexed_dataset import MMapIndexedDataset
from pyseq.data.raw_dataset import RawTextDataset
from pyseq.data.torchnet_dataset import TorchNetDataset
from pyseq.errors import ConfigError, DataError

ITEMS = [[5, 6, 2], [2], [], [7, 65000, 2]]


def write_mmap(prefix: Path | str, items: list[list[int]], dtype: Any = np.uint16) -> str:
    with MMapDatasetBuilder(f"{prefix}.bin", dtype) as builder:
        for item in items:
            builder.add_item(torch.tensor(item, dtype=torch.int32))
        builder.finalize(f"{prefix}.idx")
    return str(prefix)


def write_torchnet(prefix: Path | str, items: list[list[int]]) -> str:
    """The older format, written field by field."""
    sizes = [len(item) for item in items]
    offsets = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    numbers = [*range(len(items) + 1), *offsets, *sizes]
    header = b"TNTIDX\0\0" + struct.pack("<QQQQQ", 1, 4, 4, len(items), len(sizes))
    Path(f"{prefix}.idx").write_bytes(header + struct.pack(f"<{len(numbers)}q", *numbers))
    Path(f"{prefix}.bin").write_bytes(np.array([t + 1 for item in items for t in item], dtype="<i4").tobytes())
    return str(prefix)


def test_the_implementation_is_found_out(tmp_path: Path) -> None:
    dictionary = Dictionary()
    (tmp_path / "raw").write_text("a b\n")
    cases = {
        "raw": (str(tmp_path / "raw"), RawTextDataset),
        "mmap": (write_mmap(tmp_path / "mmap", ITEMS), MMapIndexedDataset),
        "cached": (write_torchnet(tmp_path / "old", ITEMS), TorchNetDataset),
    }
    for impl, (path, cls) in cases.items():
        assert infer_dataset_impl(path) == impl
        assert dataset_exists(path, impl) and dataset_exists(path)
        assert type(make_dataset(path, dictionary=dictionary)) is cls
        assert type(make_dataset(path, impl, dictionary=dictionary)) is cls
    assert type(make_dataset(str(tmp_path / "old"), "lazy")) is TorchNetDataset
    for impl_or_none in (None, "raw", "mmap", "cached"):
        assert make_dataset(str(tmp_path / "nothing"), impl_or_none) is None
        assert not dataset_exists(str(tmp_path / "nothing"), impl_or_none)


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    prefix = write_mmap(tmp_path / "train", ITEMS)
    with pytest.raises(ConfigError, match="Did you mean 'mmap'"):
        make_dataset(prefix, "mmapp")
    with pytest.raises(ConfigError, match="needs a dictionary"):
        make_dataset(prefix + ".bin", "raw")
    Path(prefix + ".idx").write_bytes(b"HUFFIDX\0\0" + b"\0" * 30)
    with pytest.raises(DataError, match="huffman"):
        make_dataset(prefix)
    Path(prefix + ".idx").unlink()
    with pytest.raises(DataError, match=r"train\.idx: no such file"):
        make_dataset(prefix)
