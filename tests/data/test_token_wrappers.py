from __future__ import annotations

import numpy as np
import pytest
import torch

from pyseq.data.dataset import Dataset
from pyseq.data.token_wrappers import (
    AppendTokenDataset,
    PrependTokenDataset,
    RandomCropDataset,
    StripTokenDataset,
    TruncateDataset,
    maybe_shorten_dataset,
)
from pyseq.errors import ConfigError

EOS = 2
SENTENCES = [[4, 5, 6, EOS], [7, EOS], [8, 9, 10, 11, 12, EOS], [EOS]]


class Sentences(Dataset):
    def __init__(self):
        super().__init__()
        self.sizes = np.array([len(s) for s in SENTENCES], dtype=np.uint16)

    def __len__(self):
        return len(SENTENCES)

    def __getitem__(self, index):
        return torch.tensor(SENTENCES[index])


def tokens(data):
    return [data[i].tolist() for i in range(len(data))]


@pytest.mark.parametrize(
    "wrapped, expected",
    [
        (lambda d: AppendTokenDataset(d, 3), [[*s, 3] for s in SENTENCES]),
        (lambda d: PrependTokenDataset(d, 0), [[0, *s] for s in SENTENCES]),
        (lambda d: AppendTokenDataset(d, None), SENTENCES),
        (lambda d: TruncateDataset(d, 3), [s[:3] for s in SENTENCES]),
    ],
)
def test_samples_and_their_sizes(wrapped, expected):
    data = wrapped(Sentences())
    assert tokens(data) == expected
    lengths = [len(s) for s in expected]
    assert data.sizes.tolist() == lengths == data.num_tokens_vec(np.arange(4)).tolist()
    assert [data.size(i) for i in range(4)] == lengths == [data.num_tokens(i) for i in range(4)]
    assert data.filter_indices_by_size(np.arange(4), 3)[0].tolist() == [i for i in range(4) if lengths[i] <= 3]
    assert [len(b) for b in data.batch_by_size(np.arange(4), max_tokens=max(lengths))] != [4]


def test_strip_takes_both_ends_only():
    data = StripTokenDataset([torch.tensor(s) for s in ([2, 4, 2, 5, 2, 2], [4], [2, 2], [])], 2)
    assert tokens(data) == [[4, 2, 5], [4], [], []]


def test_truncate_source_as_the_translation_task_does():
    data = AppendTokenDataset(TruncateDataset(StripTokenDataset(Sentences(), EOS), 3), EOS)
    assert tokens(data) == [[4, 5, 6, EOS], [7, EOS], [8, 9, 10, EOS], [EOS]]
    assert data.sizes.tolist() == [4, 3, 4, 2]  # fairseq's: the stripped symbol is not taken off


def test_random_crops_depend_on_seed_epoch_and_sample_alone():
    data = RandomCropDataset(Long(), 5, seed=3)
    data.set_epoch(1)
    first = tokens(data)
    np.random.seed(0)
    assert tokens(data) == first
    assert all(crop == list(range(crop[0], crop[0] + 5)) for crop in first)
    with_seed = np.random.RandomState(int(hash((3, 1, 2)) % 1e6)).randint(0, 95)
    assert first[2][0] == with_seed
    data.set_epoch(2)
    assert tokens(data) != first
    assert data.sizes.tolist() == [5, 5, 5]


class Long(Dataset):
    sizes = np.array([100, 100, 100])

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.arange(100)


def test_shortening_applies_to_the_listed_splits():
    data = Sentences()
    assert maybe_shorten_dataset(data, "train", "valid", "truncate", 2, 1) is data
    assert maybe_shorten_dataset(data, "train", "", "none", 2, 1) is data
    assert isinstance(maybe_shorten_dataset(data, "valid", "train,valid", "truncate", 2, 1), TruncateDataset)
    assert isinstance(maybe_shorten_dataset(data, "train", "", "random_crop", 2, 1), RandomCropDataset)
    with pytest.raises(ConfigError, match="--shorten-method 'crop'"):
        maybe_shorten_dataset(data, "train", "", "crop", 2, 1)
