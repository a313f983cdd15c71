"""A stream of sentences cut into the blocks that a language model reads.

Break modes:
    none: blocks of ``block_size`` tokens, wherever a sentence ends.
    complete: whole sentences up to ``block_size`` tokens; a longer sentence is a block of its own.
    complete_doc: the same within a document. A sentence of ``document_sep_len`` tokens separates documents and belongs
        to no block; blocks of one token are dropped.
    eos: one sentence a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pyseq.data.native import Int64Array, int64_array, native
from pyseq.errors import ConfigError, nearest

BREAK_MODES = ("none", "complete", "complete_doc", "eos")


def token_blocks(
    sizes: npt.ArrayLike, break_mode: str | None, block_size: int | None = None, document_sep_len: int = 1
) -> tuple[Int64Array, Int64Array]:
    """What :func:`slice_indices` and :func:`block_to_dataset_index` give for sentences of ``sizes`` tokens."""
    slices = slice_indices(sizes, break_mode, block_size, document_sep_len)
    if break_mode == "eos":  # also where a sentence is empty, which block_to_dataset_index could not tell from the next
        sentences = np.arange(len(slices), dtype=np.int64)
        return slices, np.stack([sentences, np.zeros_like(sentences), sentences], axis=1)
    return slices, block_to_dataset_index(sizes, slices)


def slice_indices(
    sizes: npt.ArrayLike, break_mode: str | None, block_size: int | None = None, document_sep_len: int = 1
) -> Int64Array:
    """Where each block begins and ends in the stream.

    Args:
        sizes: tokens of each sentence.
        break_mode: one of the modes above; None means "none".
        block_size: in tokens; not needed for "eos".
        document_sep_len: tokens of a sentence that separates documents ("complete_doc").

    Returns:
        int64 [n_blocks, 2], counted in tokens from the start of the stream; the end is exclusive.

    Raises:
        ConfigError: the mode is not known, or ``block_size`` is missing or not positive.
        ValueError: a size is negative.
    """
    mode = break_mode or "none"
    if mode not in BREAK_MODES:
        raise ConfigError(f"unknown break mode '{mode}'. {nearest(mode, BREAK_MODES)}")
    if mode != "eos" and (block_size is None or block_size < 1):
        raise ConfigError(f"break mode '{mode}' needs a block size of at least 1 token, not {block_size}")
    checked = sentence_sizes(sizes)
    if native is not None:
        return native.slice_indices(checked, getattr(native.BreakMode, mode), block_size or 0, document_sep_len)
    return slice_indices_reference(checked, mode, block_size or 0, document_sep_len)


def block_to_dataset_index(sizes: npt.ArrayLike, slices: npt.ArrayLike) -> Int64Array:
    """Which sentences each block takes tokens from.

    Args:
        sizes: tokens of each sentence.
        slices: [n_blocks, 2] as :func:`slice_indices` gives them: neither begins nor ends decrease.

    Returns:
        int64 [n_blocks, 3]: the sentence that holds the block's first token, the offset of that token in it, and the
        sentence that holds the last token. A block without tokens is put at the sentence that follows it, or the last.

    Raises:
        ValueError: the slices are out of order or outside the stream.
    """
    checked, blocks = sentence_sizes(sizes), int64_array(slices, "slices")
    if native is not None:
        return native.block_to_dataset_index(checked, blocks)
    return block_to_dataset_index_reference(checked, blocks)


def sentence_sizes(sizes: npt.ArrayLike) -> Int64Array:
    """``sizes`` as int64 [n]. Raises ValueError if one is negative."""
    checked = int64_array(sizes, "sizes")
    if checked.ndim != 1:
        raise ValueError(f"sizes must have one dimension, not shape {checked.shape}")
    if checked.size and checked.min() < 0:
        at = int(checked.argmin())
        raise ValueError(f"sizes[{at}] = {checked[at]} is negative")
    return checked


def slice_indices_reference(sizes: Int64Array, mode: str, block_size: int, document_sep_len: int) -> Int64Array:
    """What ``pyseq._core.data.slice_indices`` computes."""
    ends = np.cumsum(sizes)
    if mode == "eos":
        return np.stack([ends - sizes, ends], axis=1)
    if mode == "none":
        total = int(ends[-1]) if len(ends) else 0
        begins = np.arange(0, total, block_size, dtype=np.int64)
        return np.stack([begins, np.minimum(begins + block_size, total)], axis=1)
    separator, shortest = (document_sep_len, 2) if mode == "complete_doc" else (-1, 1)
    blocks = [b for b in whole_sentences(sizes.tolist(), block_size, separator) if b[1] - b[0] >= shortest]
    return np.array(blocks, dtype=np.int64).reshape(-1, 2)


def whole_sentences(sizes: list[int], block_size: int, separator: int) -> Iterator[tuple[int, int]]:
    """Blocks of whole sentences, empty ones included."""
    begin = end = 0
    for size in sizes:
        if size == separator:
            yield begin, end
            begin = end = end + size
        elif begin < end and end - begin + size > block_size:
            yield begin, end
            begin, end = end, end + size
        else:
            end += size
    yield begin, end


def block_to_dataset_index_reference(sizes: Int64Array, slices: Int64Array) -> Int64Array:
    """What ``pyseq._core.data.block_to_dataset_index`` computes."""
    ends = np.cumsum(sizes)
    begin, end = slices[:, 0], slices[:, 1]
    total = int(ends[-1]) if len(ends) else 0
    ordered = (np.diff(slices, axis=0, prepend=0) >= 0).all() and (begin <= end).all() and (end <= total).all()
    if len(slices) and not (ordered and len(sizes)):
        raise ValueError(f"slices are out of order or outside the {total} tokens")

    def holder(tokens: Int64Array) -> Int64Array:
        return np.minimum(np.searchsorted(ends, tokens, side="right"), len(sizes) - 1)

    first = holder(begin)
    return np.stack([first, begin - (ends - sizes)[first], holder(np.maximum(begin, end - 1))], axis=1)
