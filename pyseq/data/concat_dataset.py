"""Several datasets one after another."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.utils.data

from pyseq.data.dataset import Dataset, IndexArray, sizes_of
from pyseq.data.filtering import split_by_size
from pyseq.data.ordering import ordered_by
from pyseq.errors import ConfigError


class ConcatDataset(Dataset):
    """The samples of ``datasets`` one after another, each dataset ``sample_ratios`` times over.

    Args:
        datasets: datasets whose samples are collated alike (the first one's collater is used).
        sample_ratios: how often each is repeated, one number for all or one for each; a fraction repeats a part.

    Raises:
        ConfigError: there are no datasets, a ratio is not positive, or there is not one for each.
    """

    def __init__(self, datasets: Iterable[Any], sample_ratios: float | Sequence[float] = 1) -> None:
        super().__init__()
        self.datasets = list(datasets)
        ratios = list(sample_ratios) if isinstance(sample_ratios, Sequence) else [sample_ratios] * len(self.datasets)
        if not self.datasets or len(ratios) != len(self.datasets) or min(ratios) <= 0:
            raise ConfigError(f"{len(self.datasets)} datasets cannot be joined in the ratios {ratios}")
        self.sample_ratios = ratios
        self.real_sizes = [len(dataset) for dataset in self.datasets]
        counts = [int(ratio * size) for ratio, size in zip(ratios, self.real_sizes)]
        self.cumulative_sizes: list[int] = np.cumsum(counts).tolist()

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: int) -> Any:
        dataset, sample = self.locate(index)
        return self.datasets[dataset][sample]

    def locate(self, index: int) -> tuple[int, int]:
        """Which dataset sample ``index`` is from, and its index there."""
        dataset = bisect.bisect_right(self.cumulative_sizes, index)
        before = self.cumulative_sizes[dataset - 1] if dataset else 0
        return dataset, int(index - before) % self.real_sizes[dataset]

    def collater(self, samples: list[Any], **extra: Any) -> Any:
        if hasattr(self.datasets[0], "collater"):
            return self.datasets[0].collater(samples, **extra)
        return torch.utils.data.default_collate(samples)

    @cached_property
    def sizes(self) -> npt.NDArray[Any]:
        """``(N,)`` or ``(N, k)``."""
        counts = np.diff(self.cumulative_sizes, prepend=0)
        parts = [sizes_of(dataset) for dataset in self.datasets]
        return np.concatenate([part[np.arange(count) % max(len(part), 1)] for part, count in zip(parts, counts)])

    def size(self, index: int) -> Any:
        dataset, sample = self.locate(index)
        return self.datasets[dataset].size(sample)

    def num_tokens(self, index: int) -> int:
        return int(np.max(self.size(index)))

    def num_tokens_vec(self, indices: IndexArray) -> npt.NDArray[Any]:
        lengths = self.sizes[indices]
        return lengths if lengths.ndim == 1 else lengths.max(axis=1)

    def ordered_indices(self) -> IndexArray:
        """By length; pairs by source, then target length, in random order within a length if the first one shuffles."""
        if self.sizes.ndim == 1:
            return ordered_by(np.arange(len(self), dtype=np.int64), self.sizes)
        shuffle = getattr(self.datasets[0], "shuffle", False)
        indices = np.random.permutation(len(self)) if shuffle else np.arange(len(self), dtype=np.int64)
        for column in reversed(self.sizes.T):
            indices = ordered_by(indices, column)
        return indices

    def filter_indices_by_size(self, indices: IndexArray, max_sizes: Any) -> tuple[IndexArray, list[int]]:
        if isinstance(max_sizes, dict):
            return super().filter_indices_by_size(indices, max_sizes)
        return split_by_size(np.asarray(indices), self.sizes[indices], max_sizes)

    @property
    def supports_prefetch(self) -> bool:
        return all(getattr(dataset, "supports_prefetch", False) for dataset in self.datasets)

    def prefetch(self, indices: Iterable[int]) -> None:
        wanted: list[list[int]] = [[] for _ in self.datasets]
        for index in indices:
            dataset, sample = self.locate(index)
            wanted[dataset].append(sample)
        for part, samples in zip(self.datasets, wanted):
            part.prefetch(samples)

    def attr(self, attr: str, index: int) -> Any:
        dataset, sample = self.locate(index)
        part = self.datasets[dataset]
        return part.attr(attr, sample) if hasattr(part, "attr") else getattr(part, attr, None)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return all(getattr(dataset, "can_reuse_epoch_itr_across_epochs", True) for dataset in self.datasets)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.__dict__.pop("sizes", None)
        for dataset in self.datasets:
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)
