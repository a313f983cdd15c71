from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseq.data import batching
from pyseq.data.batching import RealTokens, batch_by_size, token_budget
from pyseq.errors import ConfigError, DataError


@pytest.fixture(params=["native", "reference"])
def batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[int]]]:
    """batch_by_size over one of its two implementations, with samples 0, 1, 2, ... and lists as the result."""
    if request.param == "reference":
        monkeypatch.setattr(batching, "native", None)
    elif batching.native is None:
        pytest.skip("the compiled core is not built")

    def batches(lengths: list[int], *args: int, **kw: int) -> list[list[int]]:
        return [b.tolist() for b in batch_by_size(range(len(lengths)), lengths, *args, **kw)]

    return batches


def test_cost_is_sentences_times_longest(batch: Callable[..., list[list[int]]]) -> None:
    assert batch([1, 2, 3, 4], max_tokens=8) == [[0, 1], [2, 3]]
    assert batch([4, 3, 2, 1], max_tokens=8) == [[0, 1], [2, 3]]
    assert batch([8, 1, 1], max_tokens=8) == [[0], [1, 2]]


def test_multiple_and_what_is_left(batch: Callable[..., list[list[int]]]) -> None:
    sizes = [len(b) for b in batch([1] * 27, max_tokens=20, required_batch_size_multiple=8)]
    assert sizes == [16, 8, 3]  # 16 is the largest multiple below 20; 3 is fewer than 8; nothing is dropped
    assert [len(b) for b in batch([1] * 5, required_batch_size_multiple=8)] == [5]


def test_a_tail_that_does_not_fit_is_a_batch_of_its_own(batch: Callable[..., list[list[int]]]) -> None:
    # 0-3 are a legal batch, 4 and 5 wait for a multiple of four, and 6 fits with neither of the two.
    assert batch([1, 1, 1, 1, 1, 1, 6], max_tokens=12, required_batch_size_multiple=4) == [[0, 1, 2, 3], [4, 5], [6]]


def test_real_tokens_are_summed(batch: Callable[..., list[list[int]]]) -> None:
    assert batch([1, 2, 3, 4], max_tokens=RealTokens(6)) == [[0, 1, 2], [3]]
    assert batch([8, 1, 1], max_tokens=RealTokens(9)) == [[0, 1], [2]]
    assert [len(b) for b in batch([1] * 27, max_tokens=RealTokens(20), required_batch_size_multiple=8)] == [16, 8, 3]
    assert batch([1, 1, 1, 1, 2, 2, 6], RealTokens(9), required_batch_size_multiple=4) == [[0, 1, 2, 3], [4, 5], [6]]
    assert batch([1] * 7, max_tokens=RealTokens(100), max_sentences=3) == [[0, 1, 2], [3, 4, 5], [6]]
    with pytest.raises(DataError, match=r"max_tokens=10: sample 2 has 11 tokens"):
        batch([4, 4, 11, 4], max_tokens=RealTokens(10))


def test_sums_do_not_wrap(batch: Callable[..., list[list[int]]]) -> None:
    huge = 2**63 - 1
    assert batch([huge, huge, 1], max_tokens=RealTokens(huge)) == [[0], [1], [2]]
    assert batch([huge, huge], max_tokens=huge) == [[0], [1]]


def test_a_budget_says_its_unit() -> None:
    assert isinstance(token_budget(5, packed=True), RealTokens) and token_budget(5, packed=True) == 5
    assert not isinstance(token_budget(5, packed=False), RealTokens)
    assert token_budget(None, packed=True) is None


def test_max_sentences(batch: Callable[..., list[list[int]]]) -> None:
    assert batch([1] * 7, max_sentences=3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert batch([1] * 7, max_sentences=3, required_batch_size_multiple=8) == [[0, 1, 2], [3, 4, 5], [6]]
    assert [len(b) for b in batch([1] * 30, max_sentences=12, required_batch_size_multiple=8)] == [8, 8, 8, 6]


def test_no_samples_and_no_limits(batch: Callable[..., list[list[int]]]) -> None:
    assert batch([], max_tokens=5) == []
    assert batch([3, 1, 2]) == [[0, 1, 2]]
    assert batch([3, 1, 2], max_tokens=0, max_sentences=-1) == [[0, 1, 2]]


def test_a_sample_that_no_batch_can_hold_is_named(batch: Callable[..., list[list[int]]]) -> None:
    with pytest.raises(DataError, match=r"max_tokens=10: sample 2 has 11 tokens"):
        batch([4, 4, 11, 4], max_tokens=10)
    assert batch([10, 10], max_tokens=10) == [[0], [1]]


def test_the_error_names_the_sample_not_its_place() -> None:
    with pytest.raises(DataError, match=r"sample 70 has 9 tokens"):
        batch_by_size([50, 60, 70], [1, 2, 9], max_tokens=8)


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="required_batch_size_multiple"):
        batch_by_size([0], [1], required_batch_size_multiple=0)
    with pytest.raises(ValueError, match="one length"):
        batch_by_size([0, 1], [1])
    with pytest.raises(TypeError, match="integers"):
        batch_by_size([0], [1.5])


def test_unaligned_and_strided_lengths() -> None:
    raw = np.frombuffer(b"\0\0" + np.array([5, 1, 5, 1], np.int32).tobytes(), np.int32, offset=2)
    assert [b.tolist() for b in batch_by_size(range(2), raw[::2], max_tokens=5)] == [[0], [1]]


def test_the_compiled_function_refuses_what_it_cannot_read() -> None:
    core = pytest.importorskip("pyseq._core").data
    with pytest.raises(TypeError, match="num_tokens must be int64, not int32"):
        core.batch_by_size(np.zeros(3, np.int32), 1, 1, 1, False)
    with pytest.raises(ValueError, match="contiguous"):
        core.batch_by_size(np.zeros(6, np.int64)[::2], 1, 1, 1, False)
    with pytest.raises(ValueError, match="contiguous"):
        core.batch_by_size(np.zeros((2, 3), np.int64), 1, 1, 1, False)
    with pytest.raises(ValueError, match="multiple"):
        core.batch_by_size(np.zeros(3, np.int64), 1, 1, 0, False)


LENGTHS = st.lists(st.integers(0, 40), max_size=80)


@given(LENGTHS, st.integers(0, 80), st.integers(0, 20), st.integers(1, 9), st.booleans())
@settings(deadline=None, max_examples=200)
def test_compiled_equals_reference(
    lengths: list[int], max_tokens: int, max_sentences: int, multiple: int, packed: bool
) -> None:
    core = pytest.importorskip("pyseq._core").data
    array = np.array(lengths, dtype=np.int64)
    ends, too_long = core.batch_by_size(array, max_tokens, max_sentences, multiple, packed)
    expected, expected_too_long = batching.batch_ends_reference(array, max_tokens, max_sentences, multiple, packed)
    assert (ends.tolist(), too_long) == (expected.tolist(), expected_too_long)


@given(
    st.lists(st.integers(0, 20), max_size=80), st.integers(20, 60), st.integers(0, 20), st.integers(1, 9), st.booleans()
)
@settings(deadline=None, max_examples=200)
def test_every_sample_once_within_the_limits(
    lengths: list[int], max_tokens: int, max_sentences: int, multiple: int, packed: bool
) -> None:
    budget = token_budget(max_tokens, packed)
    batches = [b.tolist() for b in batch_by_size(range(len(lengths)), lengths, budget, max_sentences, multiple)]
    assert [i for b in batches for i in b] == list(range(len(lengths)))
    for b in batches:
        of_each = [lengths[i] for i in b]
        assert (sum(of_each) if packed else len(b) * max(of_each)) <= max_tokens
        assert 1 <= len(b) <= (max_sentences or len(b))
        assert len(b) < multiple or len(b) % multiple == 0


def sentence_sizes(path: Path) -> np.ndarray:
    """Token counts in an index file: a header of 26 bytes, then int32 sizes; their number is the last field."""
    content = path.read_bytes()
    return np.frombuffer(content, "<i4", int.from_bytes(content[18:26], "little"), 26)


def test_batches_and_their_order_are_those_of_fairseq(reference: Path) -> None:
    """Multi30k, --max-tokens 4096 --seed 1 --required-batch-size-multiple 8, epochs 1 to 3.

    The samples are permuted with seed + 1, the first epoch, which also fixes the batches of all later epochs; the list
    of batches is shuffled with seed + epoch. Within a batch the recorded order is that of the padded rows.
    """
    seed = 1
    source = sentence_sizes(reference / "data-bin" / "train.en-de.en.idx")
    target = sentence_sizes(reference / "data-bin" / "train.en-de.de.idx")
    order = np.random.RandomState(seed + 1).permutation(len(source))
    order = order[np.argsort(target[order], kind="mergesort")]
    order = order[np.argsort(source[order], kind="mergesort")]
    batches = batch_by_size(order, np.maximum(source, target)[order], 4096, None, 8)
    with gzip.open(reference / "runs" / "epoch_orders.json.gz") as file:
        recorded = json.load(file)
    for epoch in (1, 2, 3):
        shuffled = list(batches)
        np.random.RandomState(seed + epoch).shuffle(shuffled)
        assert [sorted(b.tolist()) for b in shuffled] == [sorted(b) for b in recorded[f"epoch{epoch} shard0/1"]]
        for shard in (0, 1):
            ours = [sorted(b.tolist()) for b in shuffled[shard::2]]
            assert ours == [sorted(b) for b in recorded[f"epoch{epoch} shard{shard}/2"]]
