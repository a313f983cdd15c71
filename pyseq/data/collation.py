"""Rows of tokens, padded into one matrix.

:func:`collate_rows` makes a batch straight from the tokens of a memory-mapped file; :func:`collate_tokens` takes one
tensor a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyseq.data.native import Int64Array, int64_array, native


def collate_tokens(
    values: Sequence[Tensor | npt.NDArray[Any]],
    pad_idx: int,
    eos_idx: int | None = None,
    left_pad: bool = False,
    move_eos_to_beginning: bool = False,
    pad_to_length: int | None = None,
    pad_to_multiple: int = 1,
    pad_to_bsz: int | None = None,
) -> Tensor:
    """Pad one-dimensional tensors or arrays into a matrix.

    Args:
        values: the samples; samples of floats and booleans keep their type.
        pad_idx: what fills the rest of a row, and the rows beyond the samples.
        eos_idx: with ``move_eos_to_beginning``: the token put in front; None: the last one of the row.
        left_pad: padding stands before the tokens instead of behind them.
        move_eos_to_beginning: put a row's last token before the others (the decoder's input in training).
        pad_to_length: least width.
        pad_to_multiple: the width is rounded up to a multiple of this.
        pad_to_bsz: least number of rows.

    Returns:
        LongTensor [B, L] (or of the samples' type, see above), on the device of the first sample.

    Raises:
        ValueError: a sample is not one-dimensional, or ``pad_to_multiple`` is not positive.
    """
    if not {value.ndim for value in values} <= {1}:
        raise ValueError("collate_tokens takes one-dimensional samples")
    tensors = [value for value in values if isinstance(value, Tensor)]
    if tensors and len(tensors) == len(values):
        tokens = torch.cat(tensors).cpu().numpy()
    else:
        arrays = [np.asarray(value.cpu() if isinstance(value, Tensor) else value) for value in values]
        tokens = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
    lengths = np.array([value.shape[0] for value in values], dtype=np.int64)
    collated = collate_rows(
        tokens,
        np.cumsum(lengths) - lengths,
        lengths,
        pad_idx,
        eos_idx=eos_idx,
        left_pad=left_pad,
        move_eos_to_beginning=move_eos_to_beginning,
        pad_to_length=pad_to_length,
        pad_to_multiple=pad_to_multiple,
        pad_to_bsz=pad_to_bsz,
    )
    return collated.to(tensors[0].device) if tensors else collated


def collate_rows(
    tokens: npt.NDArray[Any],
    starts: npt.ArrayLike,
    lengths: npt.ArrayLike,
    pad_idx: int,
    eos_idx: int | None = None,
    left_pad: bool = False,
    move_eos_to_beginning: bool = False,
    pad_to_length: int | None = None,
    pad_to_multiple: int = 1,
    pad_to_bsz: int | None = None,
) -> Tensor:
    """Pad rows of one buffer into a matrix: row r is ``tokens[starts[r] : starts[r] + lengths[r]]``.

    Args:
        tokens: one-dimensional, of any type that a token file may have; a memory map is read in place.
        starts: first token of each row, in elements of ``tokens``.
        lengths: number of tokens of each row.

    The other arguments and the result are those of :func:`collate_tokens`.

    Raises:
        IndexError: a row is not within ``tokens``.
        ValueError: an argument has the wrong shape, or ``pad_to_multiple`` is not positive.
    """
    starts, lengths = int64_array(starts, "starts"), int64_array(lengths, "lengths")
    if pad_to_multiple < 1:
        raise ValueError(f"pad_to_multiple must be at least 1, not {pad_to_multiple}")
    longest = int(lengths.max(initial=0))
    if longest > tokens.size:  # before so wide a matrix is asked for
        raise row_outside(int(lengths.argmax()), starts, lengths, tokens.size)
    width = max(longest, pad_to_length or 0)
    width = -(-width // pad_to_multiple) * pad_to_multiple
    integers = tokens.dtype.kind in "iu"
    fill = native.collate if integers and native is not None else collate_reference
    out = np.empty((max(len(lengths), pad_to_bsz or 0), width), dtype=np.int64 if integers else tokens.dtype)
    fill(tokens, starts, lengths, out, pad_idx, left_pad, move_eos_to_beginning, eos_idx)
    return torch.from_numpy(out)


def collate_reference(
    tokens: npt.NDArray[Any],
    starts: Int64Array,
    lengths: Int64Array,
    out: npt.NDArray[Any],
    pad: int,
    left: bool,
    rotate: bool,
    eos: int | None,
) -> None:
    """What ``pyseq._core.data.collate`` writes into ``out`` [rows, width]."""
    if tokens.ndim != 1 or starts.ndim != 1 or starts.shape != lengths.shape:
        raise ValueError("tokens, starts and lengths must have one dimension, the last two one length")
    out[:] = pad
    for number, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist())):
        if start < 0 or length < 0 or start + length > tokens.size:
            raise row_outside(number, starts, lengths, tokens.size)
        first = out.shape[1] - length if left else 0
        row = out[number, first : first + length]
        row[:] = tokens[start : start + length]
        if rotate and length:
            row[:] = np.roll(row, 1)
            row[0] = row[0] if eos is None else eos


def row_outside(row: int, starts: Int64Array, lengths: Int64Array, size: int) -> IndexError:
    """The error for a row that is not within ``size`` tokens."""
    return IndexError(f"row {row}: start {starts[row]}, length {lengths[row]} is outside the {size} tokens")
