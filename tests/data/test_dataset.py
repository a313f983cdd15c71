"""A plug-in's dataset that defines the least it must, and what the base class makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from pyseq.data.dataset import Dataset, keeps
from pyseq.errors import DataError

LENGTHS = [3, 9, 4, 4, 7, 1, 2]


class ByMethod(Dataset):
    """Lengths from methods, no array."""

    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, index):
        return [index] * LENGTHS[index]

    def collater(self, samples):
        return samples

    def num_tokens(self, index):
        return LENGTHS[index]

    def size(self, index):
        return LENGTHS[index]


class ByArray(Dataset):
    """Lengths from an array with two sides."""

    def __init__(self):
        super().__init__()
        self.sizes = np.stack([LENGTHS, LENGTHS[::-1]], axis=1)

    def __len__(self):
        return len(LENGTHS)


@pytest.mark.parametrize("max_tokens, max_sentences, multiple", [(9, None, 1), (18, 3, 2), (None, 2, 1)])
def test_batches_of_a_dataset_that_only_defines_num_tokens(max_tokens, max_sentences, multiple):
    data = ByMethod()
    batches = data.batch_by_size(data.ordered_indices(), max_tokens, max_sentences, multiple)
    assert np.concatenate(batches).tolist() == list(range(7))
    for batch in batches:
        assert max_tokens is None or len(batch) * max(LENGTHS[i] for i in batch) <= max_tokens
        assert max_sentences is None or len(batch) <= max_sentences


def test_a_sample_that_fits_no_batch_is_named():
    with pytest.raises(DataError, match="sample 1 has 9 tokens"):
        ByMethod().batch_by_size(np.arange(7), max_tokens=8)


def test_filtering_with_methods_and_with_an_array_agree_with_the_rule():
    kept, ignored = ByMethod().filter_indices_by_size(np.arange(7), 4)
    assert (kept.tolist(), ignored) == ([0, 2, 3, 5, 6], [1, 4])
    kept, ignored = ByArray().filter_indices_by_size(np.array([6, 1, 2]), (8, 8))
    assert (kept.tolist(), ignored) == ([6, 2], [1])
    assert ByArray().filter_indices_by_size(np.arange(7), None)[1] == []


def test_lengths_from_an_array_of_sides():
    data = ByArray()
    assert data.num_tokens_vec(np.arange(7)).tolist() == [3, 9, 7, 4, 7, 9, 3]
    assert (data.num_tokens(1), data.size(1)) == (9, (9, 1))


def test_a_dataset_without_lengths_says_what_it_lacks():
    class Nothing(Dataset):
        def __len__(self):
            return 1

    with pytest.raises(NotImplementedError, match="Nothing must define num_tokens"):
        Nothing().batch_by_size(np.arange(1), max_tokens=1)


def test_a_batch_is_collated_by_the_dataset():
    assert ByMethod().collate_indices(np.array([0, 5])) == [[0, 0, 0], [5]]


def test_keeps_sees_a_subclass_and_an_instance_that_replace_a_method():
    class Other(ByMethod):
        def collater(self, samples):
            return None

    replaced = ByMethod()
    replaced.collater = lambda samples: None
    assert keeps(ByMethod(), ByMethod, "collater", "size")
    assert not keeps(Other(), ByMethod, "collater", "size")
    assert not keeps(replaced, ByMethod, "collater")
