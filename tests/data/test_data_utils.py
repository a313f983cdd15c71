from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from pyseq.data import data_utils
from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_builder import MMapDatasetBuilder
from pyseq.data.language_pair_dataset import LanguagePairDataset
from pyseq.errors import ConfigError, DataError


def write(prefix, sentences):
    with MMapDatasetBuilder(f"{prefix}.bin", np.uint16) as builder:
        for sentence in sentences:
            builder.add_item(torch.tensor(sentence))
        builder.finalize(f"{prefix}.idx")


def tokens(data):
    return [data[i].tolist() for i in range(len(data))]


def test_a_dataset_is_loaded_alone_or_with_those_that_continue_it(tmp_path):
    for k, sentences in (("", [[4, 2]]), ("1", [[5, 2], [6, 2]]), ("2", [[7, 2]]), ("4", [[8, 2]])):
        write(tmp_path / f"valid{k}", sentences)
    path = str(tmp_path / "valid")
    assert tokens(data_utils.load_indexed_dataset(path)) == [[4, 2]]
    combined = data_utils.load_indexed_dataset(path, combine=True)
    assert tokens(combined) == [[4, 2], [5, 2], [6, 2], [7, 2]]
    assert combined.sizes.tolist() == [2, 2, 2, 2]


def test_raw_text_is_loaded_with_its_dictionary(tmp_path):
    words = Dictionary()
    words.add_symbol("a")
    (tmp_path / "train.en-de.en").write_text("a a\nb\n")
    data = data_utils.load_indexed_dataset(str(tmp_path / "train.en-de.en"), words)
    assert tokens(data) == [[4, 4, 2], [3, 2]]


def test_no_dataset_is_none_and_a_damaged_one_an_error(tmp_path):
    assert data_utils.load_indexed_dataset(str(tmp_path / "train")) is None
    write(tmp_path / "train", [[4, 2]])
    (tmp_path / "train.bin").write_bytes(b"")
    with pytest.raises(DataError, match="cut short"):
        data_utils.load_indexed_dataset(str(tmp_path / "train"))


@pytest.mark.parametrize(
    "names, pair",
    [
        (["dict.en.txt", "train.en-de.en.bin", "valid.en-de.de.idx"], ("en", "de")),
        (["train.align.en-de.bin", "test.fr-en.fr.bin"], ("fr", "en")),
        (["train.bin", "train.idx", "a-b.c.d"], (None, None)),
    ],
)
def test_languages_are_inferred_from_file_names(tmp_path, names, pair):
    for name in names:
        (tmp_path / name).touch()
    assert data_utils.infer_language_pair(str(tmp_path)) == pair


def test_languages_of_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="nowhere: cannot list the data folder"):
        data_utils.infer_language_pair(str(tmp_path / "nowhere"))


def test_a_validation_set_that_would_be_ignored_is_an_error(tmp_path):
    for name in ("valid.en-de.en.bin", "valid1.en-de.en.bin", "valid1.en-de.de.bin", "valid2.en-de.en.bin", "validity"):
        (tmp_path / name).touch()
    folders = f"{tmp_path / 'no such folder'}:{tmp_path}"
    with pytest.raises(ConfigError, match="valid1, valid2.*--ignore-unused-valid-subsets"):
        data_utils.check_unlisted_valid_subsets(folders, "valid")
    with pytest.raises(ConfigError, match="the data has valid2,"):
        data_utils.check_unlisted_valid_subsets(folders, "valid,valid1")
    data_utils.check_unlisted_valid_subsets(folders, "valid,valid1,valid2")


def test_batches_by_a_function_and_by_an_array_of_lengths_are_the_same():
    lengths = np.random.RandomState(0).randint(1, 30, 100)
    order = np.argsort(lengths)
    by_function = data_utils.batch_by_size(order, lambda i: lengths[i], max_tokens=100, required_batch_size_multiple=4)
    by_array = data_utils.batch_by_size(
        order, lambda i: 1 / 0, lengths[order], max_tokens=100, required_batch_size_multiple=4
    )
    assert [b.tolist() for b in by_function] == [b.tolist() for b in by_array]
    assert np.concatenate(by_array).tolist() == order.tolist()


def pairs():
    words = Dictionary()
    src, tgt = ([torch.arange(n) for n in side] for side in ([3, 1, 8], [2, 9, 8]))
    return LanguagePairDataset(src, [3, 1, 8], words, tgt, [2, 9, 8], words)


def test_too_long_samples_are_skipped_with_a_warning_or_refused(caplog):
    with caplog.at_level(logging.WARNING):
        kept = data_utils.filter_by_size(np.arange(3), pairs(), (8, 8))
    assert kept.tolist() == [0, 2]
    assert "1 samples have invalid sizes and will be skipped, max_positions=(8, 8), first few sample ids=[1]" in (
        caplog.text
    )
    with pytest.raises(DataError, match=r"Size of sample #1 is invalid \(=\(1, 9\)\) since max_positions=\(8, 8\)"):
        data_utils.filter_by_size(np.arange(3), pairs(), (8, 8), raise_exception=True)


def test_pairs_without_targets_are_filtered_by_source():
    kept, ignored = data_utils.filter_paired_dataset_indices_by_size(np.array([3, 1, 8]), None, np.arange(3), (7, 1))
    assert (kept.tolist(), ignored) == ([0, 1], [2])
