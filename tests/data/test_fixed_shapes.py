from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyseq.data.batching import RealTokens
from pyseq.data.fixed_shapes import batch_by_shape, batch_by_size_and_shape, sentences_of
from pyseq.errors import ConfigError, DataError


def greedy(lengths, shapes):
    """Put a sample into the open batch if any shape holds the batch with it."""
    batches = [[]]
    for position, length in enumerate(lengths):
        longest = max([lengths[i] for i in batches[-1]] + [length])
        if any(len(batches[-1]) + 1 <= n and longest <= tokens for n, tokens in shapes):
            batches[-1].append(position)
        else:
            batches.append([position])
    return [batch for batch in batches if batch]


@given(
    lengths=st.lists(st.integers(1, 20), max_size=60),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=5),
    ascending=st.booleans(),
)
def test_batches_are_those_of_the_greedy_rule(lengths, shapes, ascending):
    shapes = [*shapes, (1, 20)]
    lengths = sorted(lengths) if ascending else lengths
    ids = np.arange(len(lengths)) + 100
    batches = batch_by_shape(ids, np.array(lengths, dtype=np.int64), shapes)
    assert [batch.tolist() for batch in batches] == [[i + 100 for i in batch] for batch in greedy(lengths, shapes)]


@pytest.mark.parametrize(
    "shape, max_tokens, max_sentences, multiple, expected",
    [
        ((None, 10), 100, None, 1, 10),
        ((None, 10), 109, None, 8, 8),
        ((None, 30), 100, None, 8, 3),  # fewer than the multiple stay as they are
        ((None, 10), 100, 6, 8, 6),
        ((20, 10), 100, None, 1, 20),
    ],
)
def test_how_many_sentences_a_shape_holds(shape, max_tokens, max_sentences, multiple, expected):
    assert sentences_of(shape, max_tokens, max_sentences, multiple) == expected


def test_real_tokens_have_no_shape():
    with pytest.raises(ConfigError, match="--packed"):
        batch_by_size_and_shape(np.arange(2), np.array([1, 2]), RealTokens(8), shapes=[(None, 2)])


def test_shapes_without_sentences_need_max_tokens():
    with pytest.raises(ConfigError, match="--max-tokens"):
        batch_by_size_and_shape(np.arange(2), np.array([1, 2]), shapes=[(None, 2)])


def test_a_sample_longer_than_every_shape_is_named():
    with pytest.raises(DataError, match="sample 7 has 9 tokens"):
        batch_by_size_and_shape(np.array([6, 7]), np.array([2, 9]), max_tokens=8, shapes=[(None, 4), (None, 9)])


def test_no_samples_give_no_batches():
    assert batch_by_size_and_shape(np.arange(0), np.arange(0), 10, shapes=[(None, 4)]) == []


def test_lengths_that_are_floats_are_lengths():
    batches = batch_by_size_and_shape(np.arange(4), np.ones(4, dtype=np.float32), max_tokens=2)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3]]
