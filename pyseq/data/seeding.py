"""Seeds of numpy's generator that do not leak."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np


def seed_from(seed: int, *more: int) -> int:
    """One seed for numpy's legacy generator from several numbers (a seed, an epoch, a sample)."""
    return int(hash((seed, *more)) % 1e6) if more else seed


@contextlib.contextmanager
def numpy_seed(seed: int | None, *more: int) -> Iterator[None]:
    """Within the context, numpy's global generator is the one of this seed; afterwards it goes on where it was.

    With None it is left alone. The generator belongs to the whole process: a background thread makes a
    ``np.random.RandomState(seed_from(...))`` of its own, which gives the same numbers.
    """
    if seed is None:
        yield
        return
    state = np.random.get_state()
    np.random.seed(seed_from(seed, *more))
    try:
        yield
    finally:
        np.random.set_state(state)
