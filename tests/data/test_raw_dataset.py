from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from pyseq.data.dictionary import Dictionary
from pyseq.data.raw_dataset import RawTextDataset
from pyseq.errors import DataError

LINES = ["a b", "", "  b x\ta ", "a"]


@pytest.fixture
def dictionary() -> Dictionary:
    dictionary = Dictionary()
    for word in "ab":
        dictionary.add_symbol(word)
    return dictionary


@pytest.mark.parametrize("append_eos", [True, False])
@pytest.mark.parametrize("reverse_order", [True, False])
def test_items_are_the_encoded_lines(
    tmp_path: Path, dictionary: Dictionary, append_eos: bool, reverse_order: bool
) -> None:
    (tmp_path / "text").write_text("\n".join(LINES))
    dataset = RawTextDataset(tmp_path / "text", dictionary, append_eos, reverse_order)
    assert len(dataset) == len(LINES)
    for i, line in enumerate(LINES):
        expected = dictionary.encode_line(
            line, add_if_not_exist=False, append_eos=append_eos, reverse_order=reverse_order
        )
        assert dataset[i].dtype == torch.int64
        assert dataset[i].tolist() == expected.tolist()
        assert dataset.sizes[i] == dataset.num_tokens(i) == len(expected)
        assert dataset.get_original_text(i) == line
    assert len(dictionary) == 6
    assert pickle.loads(pickle.dumps(dataset))[0].equal(dataset[0])


def test_empty_file(tmp_path: Path, dictionary: Dictionary) -> None:
    (tmp_path / "text").write_text("")
    assert len(RawTextDataset(tmp_path / "text", dictionary)) == 0


def test_files_that_cannot_be_read(tmp_path: Path, dictionary: Dictionary) -> None:
    with pytest.raises(DataError, match="nothing: no such file"):
        RawTextDataset(tmp_path / "nothing", dictionary)
    (tmp_path / "text").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match="text:2: byte 0xff"):
        RawTextDataset(tmp_path / "text", dictionary)
