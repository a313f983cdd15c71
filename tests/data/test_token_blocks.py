from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseq.data import token_blocks as module
from pyseq.data.token_blocks import BREAK_MODES, block_to_dataset_index, slice_indices, token_blocks
from pyseq.errors import ConfigError

Slices = list[list[int]]
sizes_of_sentences = st.lists(st.integers(0, 9), max_size=40)


@pytest.fixture(params=["native", "reference"])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Slices]:
    if request.param == "reference":
        monkeypatch.setattr(module, "native", None)
    elif module.native is None:
        pytest.skip("the compiled core is not built")
    return lambda *args: slice_indices(*args).tolist()


def test_none_fills_blocks_across_sentences(slices: Callable[..., Slices]) -> None:
    assert slices([4, 3, 5], "none", 5) == [[0, 5], [5, 10], [10, 12]]
    assert slices([4, 6], None, 5) == [[0, 5], [5, 10]]
    assert slices([4], "none", 2**62) == [[0, 4]]


def test_complete_keeps_sentences_whole(slices: Callable[..., Slices]) -> None:
    # 9 exceeds the block and stands alone; 4 + 3 + 1 fill it exactly
    assert slices([4, 3, 1, 2, 9, 1, 7], "complete", 8) == [[0, 8], [8, 10], [10, 19], [19, 27]]


def test_complete_doc_breaks_at_separators_and_drops_single_tokens(slices: Callable[..., Slices]) -> None:
    assert slices([4, 3, 1, 2, 9, 1, 1, 2], "complete_doc", 8, 1) == [[0, 7], [8, 10], [10, 19], [21, 23]]
    assert slices([1, 3, 2, 1, 3], "complete_doc", 3, 2) == [[1, 4], [7, 10]]
    assert slices([3, 3], "complete_doc", 8, 5) == [[0, 6]]


def test_eos_is_a_sentence_a_block(slices: Callable[..., Slices]) -> None:
    assert slices([4, 0, 2], "eos") == [[0, 4], [4, 4], [4, 6]]


@pytest.mark.parametrize("mode", BREAK_MODES)
def test_no_sentences(slices: Callable[..., Slices], mode: str) -> None:
    assert slices([], mode, 4) == []
    assert [part.shape for part in token_blocks([], mode, 4)] == [(0, 2), (0, 3)]


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'complete' or 'complete_doc'"):
        slice_indices([3], "completes", 4)
    for block_size in (None, 0, -1):
        with pytest.raises(ConfigError, match="block size of at least 1"):
            slice_indices([3], "none", block_size)
    with pytest.raises(ValueError, match=r"sizes\[1\] = -3 is negative"):
        slice_indices([3, -3], "none", 4)


@pytest.mark.parametrize("use", ["native", "reference"])
@pytest.mark.parametrize("bad", [[[0, 6]], [[-1, 2]], [[3, 2]], [[2, 4], [0, 2]], [[0, 4], [2, 3]]])
def test_slices_outside_or_out_of_order(bad: Slices, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if use == "reference":
        monkeypatch.setattr(module, "native", None)
    with pytest.raises(ValueError, match="out of order or outside the 5 tokens"):
        block_to_dataset_index([2, 3], bad)


def test_the_compiled_functions_refuse_what_they_cannot_read() -> None:
    core = pytest.importorskip("pyseq._core").data
    sizes = np.array([2, 3])
    with pytest.raises(TypeError, match="sizes must be int64"):
        core.slice_indices(sizes.astype(np.uint16), core.BreakMode.none, 4, 1)
    with pytest.raises(ValueError, match="negative"):
        core.slice_indices(-sizes, core.BreakMode.none, 4, 1)
    with pytest.raises(ValueError, match="overflow"):
        core.slice_indices(np.array([2**62, 2**62, 2**62]), core.BreakMode.none, 4, 1)
    with pytest.raises(ValueError, match="block_size"):
        core.slice_indices(sizes, core.BreakMode.complete, 0, 1)
    with pytest.raises(ValueError, match="two columns"):
        core.block_to_dataset_index(sizes, np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match="no sentences"):
        core.block_to_dataset_index(sizes[:0], np.zeros((1, 2), np.int64))


@given(sizes_of_sentences, st.sampled_from(BREAK_MODES), st.integers(1, 20), st.integers(0, 3))
@settings(deadline=None)
def test_compiled_equals_reference(sizes: list[int], mode: str, block_size: int, separator: int) -> None:
    core = pytest.importorskip("pyseq._core").data
    array = np.array(sizes, dtype=np.int64)
    compiled = core.slice_indices(array, getattr(core.BreakMode, mode), block_size, separator)
    assert compiled.tolist() == module.slice_indices_reference(array, mode, block_size, separator).tolist()
    if sizes:
        found = core.block_to_dataset_index(array, compiled)
        assert found.tolist() == module.block_to_dataset_index_reference(array, compiled).tolist()


@given(sizes_of_sentences, st.sampled_from(BREAK_MODES), st.integers(1, 20))
@settings(deadline=None)
def test_blocks_against_the_tokens_themselves(sizes: list[int], mode: str, block_size: int) -> None:
    """Every token is (sentence, place in it): blocks must hold exactly these tokens, in order, found by their index."""
    stream = [(i, k) for i, size in enumerate(sizes) for k in range(size)]
    slices, index = token_blocks(sizes, mode, block_size, document_sep_len=1)
    blocks = [stream[begin:end] for begin, end in slices.tolist()]
    kept = [token for block in blocks for token in block]
    for block, (first, offset, last) in zip(blocks, index.tolist()):
        assert not block or (block[0], block[-1][0]) == ((first, offset), last)
    if mode == "eos":
        assert [len(block) for block in blocks] == sizes
        assert index.tolist() == [[i, 0, i] for i in range(len(sizes))]
    elif mode == "complete_doc":
        assert kept == [token for token in stream if sizes[token[0]] != 1]  # the only single tokens are separators
    else:
        assert kept == stream
    if mode == "none":
        assert all(len(block) == block_size for block in blocks[:-1])
    if mode.startswith("complete"):
        assert all(len(block) <= block_size or len({i for i, _ in block}) == 1 for block in blocks)
        assert all(block[0][1] == 0 and block[-1][1] == sizes[block[-1][0]] - 1 for block in blocks)


def test_many_sentences_take_linear_time() -> None:
    sizes = np.full(400_000, 7)
    slices, index = token_blocks(sizes, "none", 3)
    assert len(slices) == -(-7 * len(sizes) // 3)
    assert index[-1].tolist() == [len(sizes) - 1, 6, len(sizes) - 1]
