from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyseq.data.filtering import fits, split_by_size


@pytest.mark.parametrize(
    "size, limit, expected",
    [
        (5, 5, True),
        (6, 5, False),
        (6, 5.5, False),
        (6, None, True),
        ((3, 9), (3, 9), True),
        ((3, 9), (3, 8), False),
        ((3, 9), (3, None), True),
        ((None, 9), (1, 9), True),
        ((3, 9), 8, False),
        (4, (4, 9), True),
        (5, (4, 9), False),
        ({"en-de": (3, 4), "en-fr": (9, 9)}, {"en-de": (3, 4)}, True),
        ({"en-de": (3, 4)}, {"en-de": (3, 3), "en-fr": (1, 1)}, False),
        ({"en-de": (3, 4)}, 3, False),
        (np.int32(5), np.float64(4.5), False),
    ],
)
def test_fits(size, limit, expected):
    assert fits(size, limit) is expected


@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12),
    limit=st.one_of(st.none(), st.integers(0, 9), st.tuples(*[st.one_of(st.none(), st.integers(0, 9))] * 2)),
)
def test_arrays_follow_the_rule_of_one_sample(sizes, limit):
    array = np.array(sizes, dtype=np.int32).reshape(-1, 2)
    indices = np.arange(len(sizes))[::-1]
    kept, ignored = split_by_size(indices, array[indices], limit)
    assert kept.tolist() == [i for i in indices if fits(sizes[i], limit)]
    assert ignored == [i for i in indices if not fits(sizes[i], limit)]


@given(
    sizes=st.lists(st.integers(0, 9), max_size=12),
    limit=st.one_of(st.none(), st.integers(0, 9), st.tuples(st.integers(0, 9), st.integers(0, 9))),
)
def test_one_side_against_one_or_more_limits(sizes, limit):
    kept, _ = split_by_size(np.arange(len(sizes)), np.array(sizes, dtype=np.int64), limit)
    assert kept.tolist() == [i for i in range(len(sizes)) if fits(sizes[i], limit)]
