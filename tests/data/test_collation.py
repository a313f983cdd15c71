from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseq.data import collation
from pyseq.data.collation import collate_rows, collate_tokens

PAD, EOS = 1, 2
TOKEN_TYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]


@pytest.fixture(params=["native", "reference"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test below runs over the compiled function and over its reference."""
    if request.param == "reference":
        monkeypatch.setattr(collation, "native", None)
    elif collation.native is None:
        pytest.skip("the compiled core is not built")
    return str(request.param)


def tensors(*rows: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=torch.long) for row in rows]


def test_pads_right_or_left() -> None:
    values = tensors([5, 6, EOS], [7, EOS])
    assert collate_tokens(values, PAD).tolist() == [[5, 6, EOS], [7, EOS, PAD]]
    assert collate_tokens(values, PAD, EOS, left_pad=True).tolist() == [[5, 6, EOS], [PAD, 7, EOS]]


def test_moves_eos_to_the_beginning() -> None:
    values = tensors([5, 6, 9], [7, 8])
    moved = collate_tokens(values, PAD, move_eos_to_beginning=True)
    assert moved.tolist() == [[9, 5, 6], [8, 7, PAD]]
    moved = collate_tokens(values, PAD, EOS, left_pad=True, move_eos_to_beginning=True)
    assert moved.tolist() == [[EOS, 5, 6], [PAD, EOS, 7]]


def test_least_sizes() -> None:
    values = tensors([5, 6, EOS], [7, EOS])
    assert collate_tokens(values, PAD, pad_to_length=5).tolist() == [[5, 6, EOS, PAD, PAD], [7, EOS, PAD, PAD, PAD]]
    assert collate_tokens(values, PAD, pad_to_length=2).shape == (2, 3)
    assert collate_tokens(values, PAD, pad_to_multiple=8).shape == (2, 8)
    assert collate_tokens(values, PAD, pad_to_length=9, pad_to_multiple=8).shape == (2, 16)
    assert collate_tokens(values, PAD, pad_to_bsz=4).tolist()[2:] == [[PAD] * 3] * 2
    assert collate_tokens(values, PAD, pad_to_bsz=1).shape == (2, 3)


def test_empty_rows_and_no_rows() -> None:
    values = tensors([], [7])
    assert collate_tokens(values, PAD, EOS, move_eos_to_beginning=True).tolist() == [[PAD], [EOS]]
    assert collate_tokens([], PAD).shape == (0, 0)
    assert collate_tokens([], PAD, pad_to_bsz=2, pad_to_length=3).tolist() == [[PAD] * 3] * 2


def test_takes_arrays_and_mixtures() -> None:
    expected = [[5, 6], [7, PAD]]
    mixtures: list[list[Any]] = [
        [np.array([5, 6], np.uint16), np.array([7], np.uint16)],
        [torch.tensor([5, 6]), np.array([7], np.int32)],
        [torch.tensor([5, 6], dtype=torch.int32), torch.tensor([7])],
    ]
    for values in mixtures:
        collated = collate_tokens(values, PAD)
        assert (collated.dtype, collated.tolist()) == (torch.long, expected)


def test_floats_and_booleans_keep_their_type() -> None:
    floats = collate_tokens([torch.tensor([0.5, 1.5]), torch.tensor([2.5])], 0, left_pad=True)
    assert (floats.dtype, floats.tolist()) == (torch.float32, [[0.5, 1.5], [0.0, 2.5]])
    booleans = collate_tokens([torch.tensor([True]), torch.tensor([True, True])], 0)
    assert (booleans.dtype, booleans.tolist()) == (torch.bool, [[True, False], [True, True]])


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="one-dimensional"):
        collate_tokens([torch.zeros(2, 2)], PAD)
    with pytest.raises(ValueError, match="pad_to_multiple"):
        collate_tokens(tensors([5]), PAD, pad_to_multiple=0)
    with pytest.raises(ValueError, match="one length|differ in length"):
        collate_rows(np.zeros(9, np.int64), [0, 1], [1], PAD)
    with pytest.raises(TypeError, match="starts must be integers"):
        collate_rows(np.zeros(9, np.int64), [0.5], [1], PAD)


@pytest.mark.parametrize("start, length", [(-1, 2), (0, -1), (8, 3), (11, 0), (0, 2**62), (2**62, 2), (2**63 - 1, 1)])
def test_rows_outside_the_tokens_are_an_error(start: int, length: int) -> None:
    with pytest.raises(IndexError, match="row 1: start .* is outside the 10 tokens"):
        collate_rows(np.zeros(10, np.uint16), [0, start], [10, length], PAD)


@pytest.mark.parametrize("dtype", TOKEN_TYPES)
def test_rows_of_a_memory_map(tmp_path: Path, dtype: Any) -> None:
    highest = min(np.iinfo(dtype).max, 2**63 - 1)
    np.array([3, 4, highest, 6, np.iinfo(dtype).min], dtype=dtype).tofile(tmp_path / "tokens.bin")
    tokens = np.memmap(tmp_path / "tokens.bin", dtype=dtype, mode="r")
    collated = collate_rows(tokens, [3, 0], [2, 3], PAD)
    assert (collated.dtype, collated.tolist()) == (torch.long, [[6, np.iinfo(dtype).min, PAD], [3, 4, highest]])


def test_starts_and_lengths_may_be_unaligned_columns_of_an_index() -> None:
    raw = np.frombuffer(b"\0\0" + np.array([2, 0, 1, 2], np.int64).tobytes(), np.int64, offset=2)
    assert collate_rows(np.array([5, 6, 7], np.uint16), raw[:2], raw[2:], PAD).tolist() == [[7, PAD], [5, 6]]


def test_the_result_is_writable_and_its_own() -> None:
    tokens = np.array([5, 6], dtype=np.int64)
    collated = collate_rows(tokens, [0], [2], PAD)
    collated[0, 0] = 9
    assert tokens.tolist() == [5, 6]


def test_the_compiled_function_refuses_what_it_cannot_read() -> None:
    core = pytest.importorskip("pyseq._core").data
    at, length = np.array([0]), np.array([2])

    def collate(tokens: Any, out: Any, starts: Any = at, lengths: Any = length) -> None:
        core.collate(tokens, starts, lengths, out, PAD, False, False, None)

    good, out = np.arange(4), np.zeros((1, 2), np.int64)
    for bad in (good.astype(np.float32), good.astype(bool), good.astype(">i4"), good.astype("m8[s]")):
        with pytest.raises(TypeError, match="integers"):
            collate(bad, out)
    frozen = out.copy()
    frozen.setflags(write=False)
    bad_outs = [out[:0], out[:, :1], np.zeros((2, 2), np.int64).T[:1], np.zeros(2, np.int64), frozen]
    for bad in bad_outs:
        with pytest.raises(ValueError):
            collate(good, bad)
    with pytest.raises(ValueError, match="contiguous"):
        collate(good[::2], out)
    with pytest.raises(TypeError, match="out must be int64"):
        collate(good, out.astype(np.int32))
    with pytest.raises(TypeError, match="lengths must be int64"):
        collate(good, out, lengths=length.astype(np.uint64))
    with pytest.raises(IndexError):
        collate(good, out, starts=np.array([3]))


def naive_collate(rows: list[list[int]], least: int, multiple: int, rows_wanted: int, **how: Any) -> list[list[int]]:
    """Lists, one sample at a time: the oracle."""
    width = max([least, *map(len, rows)])
    while width % multiple:
        width += 1
    result = []
    for row in rows:
        if how["move"] and row:
            row = [row[-1] if how["eos"] is None else how["eos"], *row[:-1]]
        padding = [PAD] * (width - len(row))
        result.append(padding + row if how["left"] else row + padding)
    return result + [[PAD] * width for _ in range(rows_wanted - len(rows))]


@given(
    rows=st.lists(st.lists(st.integers(0, 127), max_size=20), max_size=8),
    dtype=st.sampled_from(TOKEN_TYPES),
    eos=st.sampled_from([None, EOS, 300]),
    left=st.booleans(),
    move=st.booleans(),
    least=st.integers(0, 25),
    multiple=st.integers(1, 9),
    rows_wanted=st.integers(0, 10),
)
@settings(deadline=None)
def test_both_against_lists(
    rows: list[list[int]],
    dtype: Any,
    eos: int | None,
    left: bool,
    move: bool,
    least: int,
    multiple: int,
    rows_wanted: int,
) -> None:
    expected = naive_collate(rows, least, multiple, rows_wanted, eos=eos, left=left, move=move)
    options = (PAD, eos, left, move, least, multiple, rows_wanted)
    values = [torch.tensor(row, dtype=torch.long) for row in rows]
    assert collate_tokens(values, *options).tolist() == expected
    flat = np.array([99, *(token for row in rows for token in row)], dtype=dtype)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    assert collate_rows(flat, 1 + np.cumsum(lengths) - lengths, lengths, *options).tolist() == expected
