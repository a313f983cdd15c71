"""Samples in the order of their lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]


def ordered_by(indices: IndexArray, lengths: npt.NDArray[Any]) -> IndexArray:
    """``indices`` by ``lengths[indices]``, ascending; equal ones stay in their order.

    Args:
        lengths: ``(N,)``, of all samples.
    """
    # numpy sorts 16-bit integers by radix, several times faster than wider ones.
    if lengths.dtype.kind in "iu" and lengths.size and lengths.min() >= 0 and lengths.max() <= 0xFFFF:
        lengths = lengths.astype(np.uint16)
    return indices[np.argsort(lengths[indices], kind="stable")]
