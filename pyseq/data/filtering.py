"""Leaving out samples that are longer than a model takes."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]


def fits(size: Any, limit: Any) -> bool:
    """Whether a sample of ``size`` is within ``limit``.

    Args:
        size: a number, a tuple with one for each side of the sample, or a dict of tuples.
        limit: likewise; a number holds for every side, several hold for the one side there is. A None, on either side,
            is no limit; of two dicts the common keys are compared.
    """
    if limit is None or size is None:
        return True
    if isinstance(limit, dict):
        return all(fits(size[key], limit[key]) for key in limit.keys() & size.keys())
    if isinstance(limit, Iterable):
        if isinstance(size, Iterable):
            return all(fits(side, bound) for side, bound in zip(size, limit))
        return all(fits(size, bound) for bound in limit)
    if isinstance(size, dict):
        return all(fits(side, limit) for side in size.values())
    if isinstance(size, Iterable):
        return all(fits(side, limit) for side in size)
    return bool(size <= limit)


def split_by_size(indices: IndexArray, sizes: npt.NDArray[Any], max_sizes: Any) -> tuple[IndexArray, list[int]]:
    """:func:`fits` over arrays: the indices within the limits, and the list of the others.

    Args:
        sizes: ``(n,)`` or ``(n, k)``, sizes of the samples at ``indices``.
        max_sizes: a number, or k of them; None, there or inside, is no limit.
    """
    keep = np.ones(len(indices), dtype=bool)
    columns = sizes.T if sizes.ndim == 2 else (sizes,)
    if max_sizes is None or isinstance(max_sizes, Real):
        pairs = [(column, max_sizes) for column in columns]
    elif len(columns) == 1:
        pairs = [(columns[0], bound) for bound in max_sizes]
    else:
        pairs = list(zip(columns, max_sizes))
    for column, bound in pairs:
        if bound is not None:
            keep &= column <= bound
    if keep.all():
        return indices, []
    return indices[keep], indices[~keep].tolist()
