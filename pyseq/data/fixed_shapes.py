"""Batches of a few fixed shapes, for hardware or compilers that pay for every new shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseq.data.batching import RealTokens, batch_by_size
from pyseq.errors import ConfigError, DataError

IndexArray = npt.NDArray[np.int64]


def batch_by_size_and_shape(
    indices: npt.ArrayLike,
    num_tokens: npt.NDArray[Any],
    max_tokens: int | None = None,
    max_sentences: int | None = None,
    required_batch_size_multiple: int = 1,
    shapes: Sequence[tuple[int | None, int]] | None = None,
) -> list[IndexArray]:
    """:func:`~pyseq.data.batching.batch_by_size`, or batches of at most the given shapes if there are any.

    Args:
        num_tokens: length of each sample of ``indices``; floats are cut to integers.
        shapes: (sentences, tokens) of each allowed shape. Sentences may be None: as many as ``max_tokens``, and
            ``max_sentences`` or else the multiple, allow.

    Raises:
        DataError: a sample fits no batch.
        ConfigError: there are shapes, and ``max_tokens`` counts no padding.
    """
    lengths = np.asarray(num_tokens).astype(np.int64, copy=False)
    ids = np.asarray(indices).astype(np.int64, copy=False)
    if shapes is None:
        return batch_by_size(ids, lengths, max_tokens, max_sentences, required_batch_size_multiple)
    if isinstance(max_tokens, RealTokens):
        raise ConfigError("--packed takes out the padding that batches of fixed shapes add: leave out one of the two")
    resolved = [
        (sentences_of(shape, max_tokens, max_sentences, required_batch_size_multiple), int(shape[1]))
        for shape in shapes
    ]
    return batch_by_shape(ids, lengths, resolved)


def sentences_of(
    shape: tuple[int | None, int], max_tokens: int | None, max_sentences: int | None, multiple: int
) -> int:
    """How many sentences a batch of this shape holds under the limits."""
    sentences, tokens = shape
    if sentences is None:
        if max_tokens is None:
            raise ConfigError("--max-tokens must be given: it says how many sentences a batch of each bucket holds")
        sentences = int(max_tokens // tokens)
    if max_sentences is not None:
        return min(sentences, max_sentences)
    return sentences - sentences % multiple if sentences >= multiple else sentences


def batch_by_shape(ids: IndexArray, lengths: IndexArray, shapes: Sequence[tuple[int, int]]) -> list[IndexArray]:
    """Cut ``ids`` greedily, in their order, into batches each of which fits one of ``shapes`` (sentences, tokens).

    Raises:
        DataError: a sample is longer than every shape.
    """
    capacity = capacities(lengths, shapes)
    if capacity.size and capacity.min() < 1:
        sample = int(np.argmin(capacity))
        raise DataError(
            f"sample {ids[sample]} has {lengths[sample]} tokens: no batch of the allowed shapes (sentences, tokens) "
            f"{[tuple(map(int, shape)) for shape in shapes]} holds it. Raise --max-tokens."
        )
    batches, begin = [], 0
    largest = max((sentences for sentences, _ in shapes), default=1)
    while begin < len(ids):
        window = capacity[begin : begin + largest + 1]
        # A batch of its first n samples holds if n is within the capacity for the longest of them.
        allowed = np.minimum.accumulate(window)
        size = int(np.count_nonzero(np.arange(1, len(window) + 1) <= allowed))
        batches.append(ids[begin : begin + size])
        begin += size
    return batches


def capacities(lengths: IndexArray, shapes: Sequence[tuple[int, int]]) -> IndexArray:
    """For each length, the most sentences of a shape that is long enough for it (0 if there is none)."""
    table = np.array(sorted(shapes, key=lambda shape: shape[1]), dtype=np.int64).reshape(-1, 2)
    most = np.append(np.maximum.accumulate(table[::-1, 0])[::-1], 0)
    return most[np.searchsorted(table[:, 1], lengths)]
