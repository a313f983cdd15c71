"""Samples padded to one of a few lengths, for ``--num-batch-buckets``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from pyseq.data.token_wrappers import ResizedDataset


def get_buckets(sizes: npt.ArrayLike, num_buckets: int) -> npt.NDArray[Any]:
    """At most ``num_buckets`` of the ``sizes``, ascending: their percentiles at equal steps, rounded down to a size."""
    return np.unique(np.percentile(np.asarray(sizes), np.linspace(0, 100, num_buckets + 1), method="lower")[1:])


def get_bucketed_sizes(sizes: npt.ArrayLike, buckets: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Each size rounded up to the next bucket; the last bucket is the largest size."""
    return buckets[np.searchsorted(buckets, sizes)]


class BucketPadLengthDataset(ResizedDataset):
    """Every sample padded to the next of ``num_buckets`` lengths.

    Args:
        dataset: samples are 1-d tensors.
        sizes: their lengths.
        left_pad: padding stands before the tokens.
    """

    def __init__(self, dataset: Any, sizes: Any, num_buckets: int, pad_idx: int | float, left_pad: bool) -> None:
        self.buckets = get_buckets(sizes, num_buckets)
        super().__init__(dataset, get_bucketed_sizes(sizes, self.buckets))
        self.pad_idx, self.left_pad = pad_idx, left_pad

    def __getitem__(self, index: int) -> Tensor:
        item = self.dataset[index]
        missing = int(self._sizes[index]) - item.size(-1)
        return F.pad(item, (missing, 0) if self.left_pad else (0, missing), value=self.pad_idx)
