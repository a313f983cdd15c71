from __future__ import annotations

import numpy as np
import torch

from pyseq.data.base_wrapper_dataset import BaseWrapperDataset
from pyseq.data.dataset import Dataset


class Inner(Dataset):
    def __init__(self):
        super().__init__()
        self.sizes = np.array([5, 2, 4])
        self.at_once = 0
        self.epoch = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.full((int(self.sizes[index]),), index)

    def collater(self, samples):
        return sorted(len(sample) for sample in samples)

    def collate_indices(self, indices):
        self.at_once += 1
        return super().collate_indices(indices)

    def ordered_indices(self):
        return np.argsort(self.sizes)

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        return [indices]

    @property
    def can_reuse_epoch_itr_across_epochs(self):
        return False

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_everything_is_the_wrapped_datasets():
    inner = Inner()
    data = BaseWrapperDataset(inner)
    data.set_epoch(4)
    assert (len(data), data[1].tolist(), inner.epoch) == (3, [1, 1], 4)
    assert data.ordered_indices().tolist() == [1, 2, 0]
    assert (data.num_tokens(0), data.num_tokens_vec(np.array([2, 0])).tolist(), data.size(2)) == (5, [4, 5], 4)
    assert data.filter_indices_by_size(np.arange(3), 4)[1] == [0]
    assert [b.tolist() for b in data.batch_by_size(np.arange(3), max_tokens=5)] == [[0, 1, 2]]
    assert not data.can_reuse_epoch_itr_across_epochs
    assert data.collate_indices([0, 1]) == [2, 5] and inner.at_once == 1


def test_what_a_subclass_replaces_counts_everywhere():
    class Longer(BaseWrapperDataset):
        def __getitem__(self, index):
            return torch.cat([self.dataset[index]] * 2)

        def num_tokens(self, index):
            return 2 * self.dataset.num_tokens(index)

        def size(self, index):
            return 2 * self.dataset.size(index)

    data = Longer(Inner())
    assert data.collate_indices([0, 1]) == [4, 10]
    assert [b.tolist() for b in data.batch_by_size(np.arange(3), max_tokens=10)] == [[0], [1], [2]]
    assert data.filter_indices_by_size(np.arange(3), 8)[1] == [0]


def test_a_list_can_be_wrapped():
    data = BaseWrapperDataset([torch.ones(2), torch.zeros(2)])
    assert data.can_reuse_epoch_itr_across_epochs and not data.supports_prefetch
    assert data.collate_indices([0, 1]).tolist() == [[1, 1], [0, 0]]
    data.set_epoch(2)
