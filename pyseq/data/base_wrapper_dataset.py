"""A dataset around another one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy.typing as npt
import torch.utils.data

from pyseq.data.dataset import Dataset, IndexArray, keeps


class BaseWrapperDataset(Dataset):
    """Everything is the wrapped dataset's, which is at ``dataset``; a subclass replaces what differs."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def collater(self, samples: list[Any]) -> Any:
        if hasattr(self.dataset, "collater"):
            return self.dataset.collater(samples)
        return torch.utils.data.default_collate(samples)

    def collate_indices(self, indices: Sequence[int] | IndexArray) -> Any:
        if keeps(self, BaseWrapperDataset, "__getitem__", "collater") and hasattr(self.dataset, "collate_indices"):
            return self.dataset.collate_indices(indices)
        return super().collate_indices(indices)

    @property
    def sizes(self) -> Any:
        return self.dataset.sizes

    def num_tokens(self, index: int) -> int:
        return self.dataset.num_tokens(index)

    def num_tokens_vec(self, indices: IndexArray) -> npt.NDArray[Any]:
        if keeps(self, BaseWrapperDataset, "num_tokens") and hasattr(self.dataset, "num_tokens_vec"):
            return self.dataset.num_tokens_vec(indices)
        return super().num_tokens_vec(indices)

    def size(self, index: int) -> Any:
        return self.dataset.size(index)

    def ordered_indices(self) -> IndexArray:
        return self.dataset.ordered_indices()

    @property
    def supports_prefetch(self) -> bool:
        return getattr(self.dataset, "supports_prefetch", False)

    def prefetch(self, indices: Iterable[int]) -> None:
        self.dataset.prefetch(indices)

    @property
    def supports_fetch_outside_dataloader(self) -> bool:
        return getattr(self.dataset, "supports_fetch_outside_dataloader", True)

    def attr(self, attr: str, index: int) -> Any:
        return self.dataset.attr(attr, index)

    def get_batch_shapes(self) -> Any:
        return self.dataset.get_batch_shapes()

    def batch_by_size(
        self,
        indices: IndexArray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[IndexArray]:
        own_lengths = not keeps(self, BaseWrapperDataset, "num_tokens", "num_tokens_vec", "get_batch_shapes")
        cut = super().batch_by_size if own_lengths else self.dataset.batch_by_size
        return cut(indices, max_tokens, max_sentences, required_batch_size_multiple)

    def filter_indices_by_size(self, indices: IndexArray, max_sizes: Any) -> tuple[IndexArray, list[int]]:
        own_sizes = not keeps(self, BaseWrapperDataset, "size")
        cut = super().filter_indices_by_size if own_sizes else self.dataset.filter_indices_by_size
        return cut(indices, max_sizes)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return getattr(self.dataset, "can_reuse_epoch_itr_across_epochs", True)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
