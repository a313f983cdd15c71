"""Batches of samples under a limit of tokens, padded or real, and of sentences."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyseq.data.native import Int64Array, int64_array, native
from pyseq.errors import ConfigError, DataError


class RealTokens(int):
    """A ``max_tokens`` that counts the tokens there are (``--packed``); a plain int counts padding too.

    The number carries its unit, so that it passes through every signature that takes ``max_tokens``, those of plug-ins
    included. What is computed from it is a plain int again.
    """


def token_budget(max_tokens: int | None, packed: bool) -> int | None:
    """``max_tokens`` in the unit that ``--packed`` says."""
    return RealTokens(max_tokens) if packed and max_tokens is not None else max_tokens


def batch_by_size(
    indices: npt.ArrayLike,
    num_tokens: npt.ArrayLike,
    max_tokens: int | None = None,
    max_sentences: int | None = None,
    required_batch_size_multiple: int = 1,
) -> list[Int64Array]:
    """Cut ``indices`` into batches, in their order.

    A batch costs its number of sentences times its longest one, which is what it takes after padding; or, if
    ``max_tokens`` is a :class:`RealTokens`, the sum of its lengths. The samples are taken greedily; a batch has fewer
    sentences than ``required_batch_size_multiple`` or a multiple of it, and every sample is in exactly one batch: what
    remains at the end is a batch too.

    Args:
        indices: sample ids in the order in which they are visited, usually sorted by length.
        num_tokens: length of each of these samples, in tokens; ``num_tokens[i]`` belongs to ``indices[i]``. The length
            of a pair is that of its longer side, so neither side of a batch exceeds ``max_tokens``.
        max_tokens: largest cost of a batch; None or not positive: no limit.
        max_sentences: largest number of sentences of a batch; None or not positive: no limit.
        required_batch_size_multiple: see above; at least 1.

    Returns:
        The sample ids of each batch (views of ``indices`` where it is an int64 array).

    Raises:
        DataError: a sample is longer than ``max_tokens``, so that no batch can hold it.
        ConfigError: ``required_batch_size_multiple`` is not positive.
    """
    ids = int64_array(indices, "indices")
    lengths = int64_array(num_tokens, "num_tokens")
    if ids.shape != lengths.shape or ids.ndim != 1:
        raise ValueError(f"indices and num_tokens must be two lists of one length, not {ids.shape} and {lengths.shape}")
    if required_batch_size_multiple < 1:
        raise ConfigError(f"required_batch_size_multiple must be at least 1, not {required_batch_size_multiple}")
    find = native.batch_by_size if native is not None else batch_ends_reference
    packed = isinstance(max_tokens, RealTokens)
    ends, too_long = find(lengths, max_tokens or 0, max_sentences or 0, required_batch_size_multiple, packed)
    if too_long >= 0:
        raise DataError(
            f"Sentences lengths should not exceed max_tokens={max_tokens}: sample {ids[too_long]} has "
            f"{lengths[too_long]} tokens. Raise --max-tokens, or leave out what is longer (--max-source-positions, "
            "--max-target-positions, --skip-invalid-size-inputs-valid-test)."
        )
    stops = ends.tolist()
    return [ids[begin:end] for begin, end in zip([0, *stops], stops)]


def batch_ends_reference(
    num_tokens: Int64Array, max_tokens: int, max_sentences: int, multiple: int, packed: bool
) -> tuple[Int64Array, int]:
    """What ``pyseq._core.data.batch_by_size`` computes: end offsets, and the first sample that is too long or -1.

    The open batch is ``[begin, end)``, whose size is legal; the tail, from ``end`` on, are samples that would make it
    illegal.
    """
    lengths = num_tokens.tolist()

    def too_large(first: int, stop: int) -> bool:
        size = stop - first
        tokens = sum(lengths[first:stop]) if packed else size * max(lengths[first:stop])
        return 0 < max_sentences < size or 0 < max_tokens < tokens

    ends: list[int] = []
    begin = end = 0
    for position, tokens in enumerate(lengths):
        if 0 < max_tokens < tokens:
            return np.array(ends, dtype=np.int64), position
        size = position + 1 - begin
        overflow = too_large(begin, position + 1)
        if overflow:
            ends.append(end)
            begin = end
            if max_tokens > 0 and too_large(begin, position + 1):
                ends.append(position)
                begin = position
        if overflow or size < multiple or size % multiple == 0:
            end = position + 1
    if end > begin:
        ends.append(end)
    if len(lengths) > end:
        ends.append(len(lengths))
    return np.array(ends, dtype=np.int64), -1
