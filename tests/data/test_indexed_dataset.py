from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_builder import MMapDatasetBuilder
from pyseq.data.indexed_dataset import (
    IndexedDataset,
    MMapIndexedDataset,
    best_fitting_int_dtype,
)
from pyseq.data.torchnet_dataset import TorchNetDataset
from pyseq.errors import DataError
from support.token_files import ITEMS, write_mmap, write_torchnet


def contents(dataset: IndexedDataset) -> list[list[int]]:
    return [dataset[i].tolist() for i in range(len(dataset))]


def test_bytes_on_disk(tmp_path: Path) -> None:
    prefix = write_mmap(tmp_path / "train", ITEMS)
    assert Path(prefix + ".bin").read_bytes() == struct.pack("<7H", 5, 6, 2, 2, 7, 65000, 2)
    assert Path(prefix + ".idx").read_bytes() == (
        b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, 8, 4) + struct.pack("<4i", 3, 1, 0, 3) + struct.pack("<4q", 0, 6, 8, 8)
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.bin", "train.idx"]


@given(st.lists(st.lists(st.integers(0, 2**16 - 1), max_size=20)), st.sampled_from([np.uint16, np.uint32, np.int64]))
@settings(max_examples=50)
def test_items_come_back(tmp_path_factory: pytest.TempPathFactory, items: list[list[int]], dtype: Any) -> None:
    prefix = write_mmap(tmp_path_factory.mktemp("mmap") / "train", items, dtype)
    dataset = MMapIndexedDataset(prefix)
    assert contents(dataset) == items
    assert len(dataset) == len(items)
    assert all(dataset[i].dtype == torch.int64 for i in range(len(items)))
    assert dataset.sizes.tolist() == [len(item) for item in items]
    assert dataset.buffer.dtype == dtype
    for i, item in enumerate(items):
        assert dataset.buffer[dataset.starts[i] : dataset.starts[i] + dataset.sizes[i]].tolist() == item
        assert dataset.size(i) == dataset.num_tokens(i) == len(item)


def test_many_items_at_once_are_the_same_as_one_by_one(tmp_path: Path) -> None:
    write_mmap(tmp_path / "single", ITEMS)
    with MMapDatasetBuilder(tmp_path / "bulk.bin", np.uint16) as builder:
        builder.add_items(np.array(ITEMS[0] + ITEMS[1]), np.array([3, 1], dtype=np.int32))
        builder.add_items(np.array(ITEMS[3], dtype=np.int32), np.array([0, 3], dtype=np.int32))
        builder.finalize(tmp_path / "bulk.idx")
    for end in (".bin", ".idx"):
        assert (tmp_path / f"single{end}").read_bytes() == (tmp_path / f"bulk{end}").read_bytes()


def test_merging(tmp_path: Path) -> None:
    parts = [write_mmap(tmp_path / "part1", ITEMS[:2]), write_mmap(tmp_path / "part2", ITEMS[2:])]
    with MMapDatasetBuilder(tmp_path / "merged.bin", np.uint16) as builder:
        for part in parts:
            builder.merge_file_(part)
        builder.finalize(tmp_path / "merged.idx")
    assert contents(MMapIndexedDataset(tmp_path / "merged")) == ITEMS
    with MMapDatasetBuilder(tmp_path / "wide.bin", np.int64) as builder, pytest.raises(DataError, match="uint16"):
        builder.merge_file_(parts[0])


def test_empty_dataset(tmp_path: Path) -> None:
    dataset = MMapIndexedDataset(write_mmap(tmp_path / "train", []))
    assert len(dataset) == 0
    with pytest.raises(IndexError):
        dataset[0]


def test_index_out_of_range(tmp_path: Path) -> None:
    dataset = MMapIndexedDataset(write_mmap(tmp_path / "train", ITEMS))
    with pytest.raises(IndexError):
        dataset[len(ITEMS)]


def test_workers_map_the_file_anew(tmp_path: Path) -> None:
    dataset = MMapIndexedDataset(write_mmap(tmp_path / "train", ITEMS))
    assert len(pickle.dumps(dataset)) < 500
    assert contents(pickle.loads(pickle.dumps(dataset))) == ITEMS
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=1)  # type: ignore[arg-type]
    assert [item.tolist() for item in loader] == ITEMS


def test_tokens_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with MMapDatasetBuilder(tmp_path / "train.bin", np.uint16) as builder:
        for tokens in ([70000], [-1]):
            with pytest.raises(DataError, match="do not fit uint16"):
                builder.add_item(np.array(tokens))
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_dataset_leaves_the_old_one(tmp_path: Path) -> None:
    prefix = write_mmap(tmp_path / "train", ITEMS)
    with pytest.raises(KeyboardInterrupt), MMapDatasetBuilder(prefix + ".bin") as builder:
        builder.add_item([1, 2])
        raise KeyboardInterrupt
    assert contents(MMapIndexedDataset(prefix)) == ITEMS
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("limit", [4000, 8100])  # inside the data; inside the index
def test_a_full_disk_leaves_the_old_dataset(tmp_path: Path, limit: int) -> None:
    prefix = write_mmap(tmp_path / "train", ITEMS)
    program = f"""
import resource, sys
import numpy as np
from pyseq.data.indexed_builder import MMapDatasetBuilder
from pyseq.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))  # a write beyond it fails, as on a full disk
try:
    with MMapDatasetBuilder({prefix + ".bin"!r}, np.uint8) as builder:
        builder.add_items(np.ones(8000, np.uint8), np.ones(8000, np.int32))
        builder.finalize({prefix + ".idx"!r})
except DataError as error:
    sys.exit(str(error))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert f"cannot write {prefix}" in result.stderr and "unchanged" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert contents(MMapIndexedDataset(prefix)) == ITEMS
    assert len(list(tmp_path.iterdir())) == 2


def test_dtype_follows_the_vocabulary() -> None:
    sizes = [100, 65499, 65500, 2**32 - 2, 2**32 - 1, None]
    assert [best_fitting_int_dtype(size).name for size in sizes] == [
        "uint16", "uint16", "uint32", "uint32", "int64", "uint32"
    ]  # fmt: skip


def change(path: str, position: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(data)


def cut(path: str, by: int) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:-by])


DAMAGE = {
    "idx is gone": (lambda p: Path(p + ".idx").unlink(), r"train\.idx: no such file"),
    "bin is gone": (lambda p: Path(p + ".bin").unlink(), r"train\.bin: no such file"),
    "bin cut short": (lambda p: cut(p + ".bin", 1), r"train\.bin: cut short, 13 of 14 bytes"),
    "idx cut short": (lambda p: cut(p + ".idx", 1), r"train\.idx: cut short, 73 of 74 bytes"),
    "idx cut in its header": (lambda p: cut(p + ".idx", 60), r"train\.idx: cut short, 14 of 26 bytes"),
    "idx empty": (lambda p: Path(p + ".idx").write_bytes(b""), r"train\.idx: not an mmap index but something else"),
    "idx of another format": (lambda p: write_torchnet(p, ITEMS), "older 'cached' and 'lazy' format"),
    "idx of something else": (lambda p: Path(p + ".idx").write_text("hello " * 9), r"train\.idx: not an mmap index"),
    "version 2": (lambda p: change(p + ".idx", 9, b"\2"), "version 2"),
    "dtype 99": (lambda p: change(p + ".idx", 17, b"\x63"), "dtype code 99"),
    "bin of another dataset": (lambda p: Path(p + ".bin").write_bytes(b"x" * 50), "do not belong together"),
    "more items than there are": (lambda p: change(p + ".idx", 18, struct.pack("<Q", 2**60)), r"idx: cut short"),
    "fewer items than there are": (
        lambda p: change(p + ".idx", 18, struct.pack("<Q", 3)),
        r"idx: 74 bytes, but 3 items take 62",
    ),
    "pointer outside": (lambda p: change(p + ".idx", 42 + 24, struct.pack("<q", 10)), r"idx: an item lies outside"),
    "negative size": (lambda p: change(p + ".idx", 26, struct.pack("<2i", -1, 5)), r"idx: an item lies outside"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=list(DAMAGE))
def test_damaged_files_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    prefix = write_mmap(tmp_path / "train", ITEMS)
    damage(prefix)
    with pytest.raises(DataError, match=message):
        MMapIndexedDataset(prefix)


def test_older_format(tmp_path: Path) -> None:
    prefix = write_torchnet(tmp_path / "train", ITEMS)
    dataset = TorchNetDataset(prefix, fix_lua_indexing=True)
    assert contents(dataset) == contents(pickle.loads(pickle.dumps(dataset))) == ITEMS
    assert dataset.sizes.tolist() == [3, 1, 0, 3]
    assert contents(TorchNetDataset(prefix)) == [[token + 1 for token in item] for item in ITEMS]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: cut(p + ".bin", 1), r"train\.bin: cut short"),
        (lambda p: cut(p + ".idx", 1), r"train\.idx: cut short"),
        (lambda p: cut(p + ".idx", 120), r"train\.idx: cut short, 40 of 48"),
        (lambda p: write_mmap(p, ITEMS), "--dataset-impl mmap"),
        (lambda p: change(p + ".idx", 24, b"\2"), "2 bytes an element"),
        (lambda p: change(p + ".idx", 48 + 8, b"\2"), "not sentences"),
    ],
)
def test_damaged_files_of_the_older_format_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    prefix = write_torchnet(tmp_path / "train", ITEMS)
    damage(prefix)
    with pytest.raises(DataError, match=message):
        TorchNetDataset(prefix)


def test_datasets_of_fairseq(reference: Path) -> None:
    dictionary = Dictionary.load(reference / "data-bin" / "dict.en.txt")
    dataset = MMapIndexedDataset(reference / "data-bin" / "valid.en-de.en")
    lines = (reference / "text" / "val.en").read_text(encoding="utf-8").splitlines()
    assert len(dataset) == len(lines) == 1014
    for i in (0, 500, 1013):
        assert dataset[i].equal(dictionary.encode_line(lines[i], add_if_not_exist=False).long())
