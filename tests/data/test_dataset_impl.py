from __future__ import annotations

from pathlib import Path

import pytest

from pyseq.data.dataset_impl import dataset_exists, infer_dataset_impl, make_dataset
from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_dataset import MMapIndexedDataset
from pyseq.data.raw_dataset import RawTextDataset
from pyseq.data.torchnet_dataset import TorchNetDataset
from pyseq.errors import ConfigError, DataError
from support.token_files import ITEMS, write_mmap, write_torchnet


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
