from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyseq.data import text_file
from pyseq.data.binarizer import (
    AlignmentBinarizer,
    BinarizedLines,
    Binarizer,
    BinarizeSummary,
    VocabularyBinarizer,
    binarize_file,
)
from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_builder import MMapDatasetBuilder
from pyseq.data.indexed_dataset import MMapIndexedDataset
from pyseq.data.text_file import read_lines
from pyseq.errors import DataError


def small_dictionary() -> Dictionary:
    dictionary = Dictionary()
    for word in "abc":
        dictionary.add_symbol(word)
    return dictionary


def binarize(path: Path, binarizer: Binarizer, workers: int = 1) -> tuple[BinarizeSummary, MMapIndexedDataset]:
    prefix = f"{path}.out{workers}"
    with MMapDatasetBuilder(prefix + ".bin", np.uint16) as builder:
        summary = binarize_file(str(path), binarizer, builder, workers)
        builder.finalize(prefix + ".idx")
    return summary, MMapIndexedDataset(prefix)


@given(st.lists(st.text("abcx </s>\t\u3000", max_size=12)), st.booleans(), st.booleans())
def test_lines_become_what_the_dictionary_says(lines: list[str], append_eos: bool, reverse_order: bool) -> None:
    dictionary = small_dictionary()
    result = VocabularyBinarizer(dictionary, append_eos=append_eos, reverse_order=reverse_order).binarize(lines)
    replaced: list[str] = []
    expected = [
        dictionary.encode_line(
            line,
            add_if_not_exist=False,
            append_eos=append_eos,
            reverse_order=reverse_order,
            consumer=lambda word, idx: replaced.append(word) if idx == 3 else None,
        ).tolist()
        for line in lines
    ]
    ends = np.cumsum(result.sizes)
    assert [row.tolist() for row in np.split(result.tokens, ends[:-1])][: len(lines)] == expected
    assert result.summary.num_seq == len(lines)
    assert result.summary.num_tok == len(result.tokens) == sum(map(len, expected))
    assert result.summary.num_replaced == len(replaced)


TEXT = st.lists(st.text("abcxé中 \t\r\n\x0b\x1c\x85\u2028\u3000<unk>/s", max_size=30)).map("\n".join)


@given(TEXT, st.booleans(), st.booleans())
def test_the_compiled_core_binarises_as_python_does(
    tmp_path_factory: pytest.TempPathFactory, text: str, append_eos: bool, reverse_order: bool
) -> None:
    path = str(tmp_path_factory.getbasetemp() / "text")
    Path(path).write_bytes(text.encode())
    binarizer = VocabularyBinarizer(small_dictionary(), append_eos=append_eos, reverse_order=reverse_order)
    assert binarizer.native is not None
    found = binarizer.binarize_piece(path, 0, len(text.encode()))
    expected = binarizer.binarize(read_lines(path, 0, len(text.encode())))
    assert (found.tokens.tolist(), found.sizes.tolist()) == (expected.tokens.tolist(), expected.sizes.tolist())
    assert found.tokens.dtype == found.sizes.dtype == np.int32
    assert found.summary == expected.summary


def test_a_binarizer_that_is_not_plain_keeps_its_own_way(tmp_path: Path) -> None:
    class Shout(VocabularyBinarizer):
        def binarize(self, lines: list[str]) -> BinarizedLines:
            return super().binarize([line.lower() for line in lines])

    (tmp_path / "text").write_text("A b\n")
    assert Shout(small_dictionary()).binarize_piece(str(tmp_path / "text"), 0, 4).tokens.tolist() == [4, 5, 2]
    letters = VocabularyBinarizer(small_dictionary(), tokenize=list)
    assert letters.binarize_piece(str(tmp_path / "text"), 0, 4).tokens.tolist() == [3, 3, 5, 2]


def test_a_binarizer_is_sent_to_processes_without_what_is_compiled() -> None:
    binarizer = VocabularyBinarizer(small_dictionary())
    assert binarizer.native is not None
    copy = pickle.loads(pickle.dumps(binarizer))
    assert "native" not in vars(copy) and copy.native is not None


def test_the_unknown_word_itself_is_not_replaced() -> None:
    summary = VocabularyBinarizer(small_dictionary()).binarize(["a <unk> x x y"]).summary
    assert summary.replaced == {"x": 2, "y": 1}
    assert str(summary) == "1 sents, 6 tokens, 50.0% replaced"


def test_a_tokenizer_of_ones_own() -> None:
    assert VocabularyBinarizer(small_dictionary(), tokenize=list).binarize(["abc"]).tokens.tolist() == [4, 5, 6, 2]


@pytest.mark.parametrize("workers", [2, 5])
def test_files_do_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(text_file, "LEAST_PIECE_BYTES", 5)
    monkeypatch.setattr(text_file, "PIECE_BYTES", 50)
    (tmp_path / "text").write_text("a b c\n\nc x\n" * 40 + "last b")
    binarizer = VocabularyBinarizer(small_dictionary())
    alone, dataset = binarize(tmp_path / "text", binarizer)
    shared, _ = binarize(tmp_path / "text", binarizer, workers)
    for end in (".bin", ".idx"):
        assert (tmp_path / f"text.out1{end}").read_bytes() == (tmp_path / f"text.out{workers}{end}").read_bytes()
    assert str(alone) == str(shared) == "121 sents, 323 tokens, 12.7% replaced"
    assert shared.replaced == {"x": 40, "last": 1}
    assert dataset[120].tolist() == [3, 5, 2]


def test_alignments(tmp_path: Path) -> None:
    (tmp_path / "align").write_text("0-0 1-2 12-3\n\n2-2\n")
    summary, dataset = binarize(tmp_path / "align", AlignmentBinarizer())
    assert [item.tolist() for item in dataset] == [[0, 0, 1, 2, 12, 3], [], [2, 2]]
    assert str(summary) == "3 sents, 8 tokens"


@pytest.mark.parametrize("pair", ["1", "1-", "-1", "1-2-3", "a-b", "1--2", "1- 2", "²-1"])
def test_broken_alignments_are_named_by_line(tmp_path: Path, pair: str) -> None:
    (tmp_path / "align").write_text(f"0-0\n0-0 {pair}\n")
    with pytest.raises(DataError, match="align:2: expected pairs SOURCE-TARGET"):
        binarize(tmp_path / "align", AlignmentBinarizer())
    assert [p.name for p in tmp_path.iterdir()] == ["align"]
