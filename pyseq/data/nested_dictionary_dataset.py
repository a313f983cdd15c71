"""A batch put together from one dataset for each of its entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import default_collate

from pyseq.data.base_wrapper_dataset import BaseWrapperDataset
from pyseq.data.collation import collate_tokens
from pyseq.data.dataset import Dataset, IndexArray


class NestedDictionaryDataset(Dataset):
    """Samples and batches are dicts, nested like ``defn``, with an entry from each dataset in it.

    Args:
        defn: datasets, in dicts of any depth.
        sizes: length of every sample, an array for each side; they count for batching and filtering.

    Raises:
        ValueError: an entry is not a dataset, or two (that are not empty) differ in length.
    """

    def __init__(self, defn: Mapping[str, Any], sizes: Sequence[npt.NDArray[Any]] | None = None) -> None:
        super().__init__()
        self.defn = flatten(defn)
        self.sizes: Any = [sizes] if not isinstance(sizes, (list, tuple)) else list(sizes)
        lengths = {}
        for key, part in self.defn.items():
            if not isinstance(part, torch.utils.data.Dataset):
                raise ValueError(f"{key}: expected a dataset, not {type(part).__name__}")
            lengths[key] = len(part)  # type: ignore[arg-type]
        self._length = max(lengths.values())
        if any(length not in (0, self._length) for length in lengths.values()):
            raise ValueError(f"the datasets differ in length: {lengths}")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: part[index] for key, part in self.defn.items()}

    def collater(self, samples: list[Any]) -> dict[str, Any]:
        if not samples:
            return {}
        batch = {}
        for key, part in self.defn.items():
            values = [sample[key] for sample in samples]
            try:
                batch[key] = part.collater(values) if hasattr(part, "collater") else default_collate(values)
            except NotImplementedError:
                batch[key] = default_collate(values)
        return unflatten(batch)

    def num_tokens(self, index: int) -> int:
        return max(int(side[index]) for side in self.sizes)

    def num_tokens_vec(self, indices: IndexArray) -> npt.NDArray[Any]:
        return np.maximum.reduce([np.asarray(side)[indices] for side in self.sizes])

    def size(self, index: int) -> Any:
        return self.sizes[0][index] if len(self.sizes) == 1 else tuple(side[index] for side in self.sizes)

    @property
    def supports_prefetch(self) -> bool:
        return any(getattr(part, "supports_prefetch", False) for part in self.defn.values())

    def prefetch(self, indices: Iterable[int]) -> None:
        wanted = list(indices)
        for part in self.defn.values():
            if getattr(part, "supports_prefetch", False):
                part.prefetch(wanted)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return all(getattr(part, "can_reuse_epoch_itr_across_epochs", True) for part in self.defn.values())

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        for part in self.defn.values():
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": x}}`` as ``{"a.b": x}``."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *outer, last = path.split(".")
        place = nested
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = value
    return nested


class PadDataset(BaseWrapperDataset):
    """Collates samples of tokens by padding: see :func:`~pyseq.data.collation.collate_tokens`."""

    def __init__(self, dataset: Any, pad_idx: int, left_pad: bool, pad_length: int | None = None) -> None:
        super().__init__(dataset)
        self.pad_idx, self.left_pad, self.pad_length = pad_idx, left_pad, pad_length

    def collater(self, samples: list[Any]) -> Tensor:
        return collate_tokens(samples, self.pad_idx, left_pad=self.left_pad, pad_to_length=self.pad_length)


class LeftPadDataset(PadDataset):
    def __init__(self, dataset: Any, pad_idx: int, pad_length: int | None = None) -> None:
        super().__init__(dataset, pad_idx, True, pad_length)


class RightPadDataset(PadDataset):
    def __init__(self, dataset: Any, pad_idx: int, pad_length: int | None = None) -> None:
        super().__init__(dataset, pad_idx, False, pad_length)


class NumelDataset(BaseWrapperDataset):
    """Number of tokens of each sample; with ``reduce`` a batch has their sum instead of a LongTensor [B]."""

    def __init__(self, dataset: Any, reduce: bool = False) -> None:
        super().__init__(dataset)
        self.reduce = reduce

    def __getitem__(self, index: int) -> int:
        return int(np.prod(self.dataset[index].shape))

    def collater(self, samples: list[Any]) -> Any:
        return sum(samples) if self.reduce else torch.tensor(samples)


class IdDataset(Dataset):
    """The index of each sample; as long as the datasets beside it."""

    def __getitem__(self, index: int) -> int:
        return int(index)

    def __len__(self) -> int:
        return 0

    def collater(self, samples: list[Any]) -> Tensor:
        return torch.tensor(samples)


class NumSamplesDataset(Dataset):
    """Number of samples of a batch."""

    def __getitem__(self, index: int) -> int:
        return 1

    def __len__(self) -> int:
        return 0

    def collater(self, samples: list[Any]) -> int:
        return sum(samples)
