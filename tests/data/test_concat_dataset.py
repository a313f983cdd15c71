from __future__ import annotations

import numpy as np
import pytest
import torch

from pyseq.data.concat_dataset import ConcatDataset
from pyseq.data.dictionary import Dictionary
from pyseq.data.language_pair_dataset import LanguagePairDataset
from pyseq.errors import ConfigError


class Numbers:
    def __init__(self, numbers):
        self.numbers = numbers
        self.sizes = np.array(numbers)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return torch.full((self.numbers[index],), self.numbers[index])

    def size(self, index):
        return self.numbers[index]


@pytest.mark.parametrize(
    "ratios, expected",
    [(1, [3, 1, 2, 5, 4]), ([2, 1], [3, 1, 2, 3, 1, 2, 5, 4]), ([1, 1.5], [3, 1, 2, 5, 4, 5])],
)
def test_samples_one_after_another_in_the_ratios(ratios, expected):
    data = ConcatDataset([Numbers([3, 1, 2]), Numbers([5, 4])], ratios)
    assert len(data) == len(expected)
    assert [len(data[i]) for i in range(len(data))] == expected == data.sizes.tolist()
    assert data.num_tokens_vec(np.arange(len(data))).tolist() == expected
    assert [data.num_tokens(i) for i in range(len(data))] == expected
    assert data.filter_indices_by_size(np.arange(len(data)), 3)[1] == [i for i, n in enumerate(expected) if n > 3]
    assert data.ordered_indices().tolist() == sorted(range(len(expected)), key=lambda i: expected[i])


@pytest.mark.parametrize("datasets, ratios", [([], 1), ([Numbers([1])], [1, 2]), ([Numbers([1])], -1)])
def test_what_cannot_be_joined(datasets, ratios):
    with pytest.raises(ConfigError, match="cannot be joined"):
        ConcatDataset(datasets, ratios)


def pairs(src_lengths, tgt_lengths):
    words = Dictionary()
    src, tgt = ([torch.arange(n) + 4 for n in side] for side in (src_lengths, tgt_lengths))
    return LanguagePairDataset(src, src_lengths, words, tgt, tgt_lengths, words)


def test_pairs_are_joined_with_both_sizes_and_batched_together():
    data = ConcatDataset([pairs([3, 1], [2, 9]), pairs([3], [1])], [2, 1])
    assert data.sizes.tolist() == [[3, 2], [1, 9], [3, 2], [1, 9], [3, 1]]
    assert data.num_tokens(1) == 9
    order = data.ordered_indices().tolist()
    assert set(order[:2]) == {1, 3} and order[2] == 4 and set(order[3:]) == {0, 2}
    batch = data.collate_indices([1, 4])
    assert batch["net_input"]["src_lengths"].tolist() == [3, 1]
    assert data.can_reuse_epoch_itr_across_epochs
