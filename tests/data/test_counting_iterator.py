from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyseq.data.counting_iterator import CountingIterator, GroupedIterator, ShardedIterator
from pyseq.errors import ConfigError


def test_counting():
    iterator = CountingIterator(range(5))
    assert (len(iterator), iterator.n, iterator.has_next()) == (5, 0, True)
    assert next(iterator) == 0
    assert next(iterator.skip(2)) == 3 and iterator.n == 4
    assert list(iterator) == [4] and iterator.n == 5 and not iterator.has_next()
    assert list(iterator) == []


def test_counting_from_a_place_on():
    iterator = CountingIterator([7, 8], start=3)
    assert (iterator.n, len(iterator)) == (3, 5)
    assert list(iterator) == [7, 8]
    inner = CountingIterator(range(6)).skip(2)
    assert CountingIterator(inner).n == 2


def test_an_iterator_that_ends_too_early_is_an_error():
    iterator = CountingIterator(iter([1]), total=2)
    next(iterator)
    with pytest.raises(IndexError, match="expected to have length 2, but exhausted at position 1"):
        next(iterator)


def test_take_counts_what_was_consumed():
    inner = CountingIterator(range(10))
    outer = CountingIterator(inner)
    next(outer)
    assert list(outer.take(4)) == [1, 2, 3] and not inner.has_next()


def test_waiting_is_measured_at_the_outermost_iterator():
    def slow():
        for i in range(4):
            time.sleep(0.02)
            yield i

    grouped = GroupedIterator(CountingIterator(slow(), total=4), 2)
    for _ in grouped:
        time.sleep(0.05)
    assert 0.08 <= grouped.wait_seconds < 0.15


@given(count=st.integers(0, 20), size=st.integers(1, 6), skip=st.booleans())
def test_groups(count, size, skip):
    inner = CountingIterator(range(count))
    grouped = GroupedIterator(inner, size, skip_remainder_batch=skip)
    groups = [list(range(i, min(i + size, count))) for i in range(0, count, size)]
    expected = [g for g in groups if len(g) == size or not skip]
    assert len(grouped) == len(expected)
    assert list(grouped) == expected
    assert not inner.has_next()


@given(count=st.integers(0, 20), consumed=st.integers(0, 20), size=st.integers(1, 6))
def test_groups_of_what_remains(count, consumed, size):
    consumed = min(consumed, count)
    grouped = GroupedIterator(CountingIterator(range(consumed, count), start=consumed), size)
    groups = list(grouped)
    assert [x for group in groups for x in group] == list(range(consumed, count))
    assert not grouped.has_next() and grouped.n == -(-consumed // size) + len(groups)


@given(count=st.integers(0, 20), shards=st.integers(1, 5))
def test_shards_are_strided_and_equally_long(count, shards):
    found = [list(ShardedIterator(list(range(count)), shards, k, fill_value=None)) for k in range(shards)]
    assert len({len(shard) for shard in found}) == 1
    for k, shard in enumerate(found):
        assert [x for x in shard if x is not None] == list(range(k, count, shards))


@pytest.mark.parametrize("shard", [-1, 2])
def test_a_shard_that_is_not_there(shard):
    with pytest.raises(ConfigError, match="must be between 0 and"):
        ShardedIterator([1], 2, shard)
