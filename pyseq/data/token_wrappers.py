"""Wrappers that change the tokens of each sample: add one, strip one, cut to a length."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyseq.data.base_wrapper_dataset import BaseWrapperDataset
from pyseq.data.dataset import Dataset, IndexArray
from pyseq.data.seeding import seed_from
from pyseq.errors import ConfigError


class ResizedDataset(BaseWrapperDataset):
    """A wrapper whose lengths are an array of its own, ``sizes`` ``(N,)``."""

    def __init__(self, dataset: Any, sizes: npt.NDArray[Any]) -> None:
        super().__init__(dataset)
        self._sizes = sizes

    @property
    def sizes(self) -> npt.NDArray[Any]:
        return self._sizes

    def num_tokens(self, index: int) -> int:
        return int(self._sizes[index])

    def num_tokens_vec(self, indices: IndexArray) -> npt.NDArray[Any]:
        return self._sizes[indices]

    def size(self, index: int) -> int:
        return int(self._sizes[index])

    def filter_indices_by_size(self, indices: IndexArray, max_sizes: Any) -> tuple[IndexArray, list[int]]:
        return Dataset.filter_indices_by_size(self, indices, max_sizes)


class AppendTokenDataset(ResizedDataset):
    """``token`` behind every sample; None changes nothing."""

    def __init__(self, dataset: Any, token: int | None = None) -> None:
        super().__init__(dataset, np.asarray(dataset.sizes, dtype=np.int64) + (token is not None))
        self.token = token

    def __getitem__(self, index: int) -> Tensor:
        item = self.dataset[index]
        return item if self.token is None else torch.cat([item, item.new_tensor([self.token])])


class PrependTokenDataset(ResizedDataset):
    """``token`` before every sample; None changes nothing."""

    def __init__(self, dataset: Any, token: int | None = None) -> None:
        super().__init__(dataset, np.asarray(dataset.sizes, dtype=np.int64) + (token is not None))
        self.token = token

    def __getitem__(self, index: int) -> Tensor:
        item = self.dataset[index]
        return item if self.token is None else torch.cat([item.new_tensor([self.token]), item])


class StripTokenDataset(BaseWrapperDataset):
    """Samples without the ``id_to_strip`` at both their ends. Sizes stay those of the wrapped dataset: upper bounds."""

    def __init__(self, dataset: Any, id_to_strip: int) -> None:
        super().__init__(dataset)
        self.id_to_strip = id_to_strip

    def __getitem__(self, index: int) -> Tensor:
        item = self.dataset[index]
        kept = torch.nonzero(item != self.id_to_strip)
        return item[int(kept[0]) : int(kept[-1]) + 1] if len(kept) else item[:0]


class TruncateDataset(ResizedDataset):
    """The first ``truncation_length`` tokens of every sample."""

    def __init__(self, dataset: Any, truncation_length: int) -> None:
        super().__init__(dataset, np.minimum(dataset.sizes, truncation_length))
        self.truncation_length = truncation_length

    def __getitem__(self, index: int) -> Tensor:
        return self.dataset[index][: self.truncation_length]


class RandomCropDataset(TruncateDataset):
    """``truncation_length`` tokens of every sample, from a place drawn anew in each epoch."""

    def __init__(self, dataset: Any, truncation_length: int, seed: int = 1) -> None:
        super().__init__(dataset, truncation_length)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.epoch = epoch

    def __getitem__(self, index: int) -> Tensor:
        item = self.dataset[index]
        excess = len(item) - self.truncation_length
        if excess <= 0:
            return item
        generator = np.random.RandomState(seed_from(self.seed, self.epoch, int(index)))
        start = int(generator.randint(0, excess))
        return item[start : start + self.truncation_length]


def maybe_shorten_dataset(
    dataset: Any,
    split: str,
    shorten_data_split_list: str,
    shorten_method: str,
    tokens_per_sample: int,
    seed: int,
) -> Any:
    """``dataset`` with its samples cut to ``tokens_per_sample``, as ``--shorten-method`` says.

    Args:
        shorten_data_split_list: the splits for which this is done, separated by commas; empty: all.

    Raises:
        ConfigError: the method is not known.
    """
    if shorten_method not in ("none", "truncate", "random_crop"):
        raise ConfigError(f"--shorten-method {shorten_method!r} is not known: give none, truncate or random_crop")
    if shorten_data_split_list and split not in shorten_data_split_list.split(","):
        return dataset
    if shorten_method == "truncate":
        return TruncateDataset(dataset, tokens_per_sample)
    if shorten_method == "random_crop":
        return RandomCropDataset(dataset, tokens_per_sample, seed)
    return dataset
