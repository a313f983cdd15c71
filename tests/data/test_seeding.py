from __future__ import annotations

import numpy as np
import pytest

from pyseq.data.seeding import numpy_seed, seed_from


def test_numbers_within_are_those_of_the_seed_and_the_generator_goes_on_afterwards():
    np.random.seed(5)
    expected_after = np.random.RandomState(5).rand(4)
    first = np.random.rand()
    with numpy_seed(3):
        assert np.random.permutation(50).tolist() == np.random.RandomState(3).permutation(50).tolist()
    assert [first, *np.random.rand(3)] == expected_after.tolist()


def test_the_generator_is_restored_after_an_exception():
    np.random.seed(5)
    with pytest.raises(KeyError), numpy_seed(3):
        raise KeyError
    assert np.random.rand() == np.random.RandomState(5).rand()


def test_none_leaves_the_generator_alone():
    np.random.seed(5)
    with numpy_seed(None):
        assert np.random.rand() == np.random.RandomState(5).rand()


def test_several_numbers_make_the_seed_that_fairseq_makes_of_them():
    assert seed_from(7) == 7
    assert seed_from(1, 2, 3) == int(hash((1, 2, 3)) % 1e6)
    assert len({seed_from(1, epoch, index) for epoch in range(10) for index in range(10)}) > 95
