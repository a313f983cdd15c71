from __future__ import annotations

import numpy as np
import pytest

from pyseq.data.ordering import ordered_by


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, np.float64])
@pytest.mark.parametrize("lowest, highest", [(0, 9), (65530, 65541), (-3, 3)])
def test_equal_lengths_stay_in_order(dtype, lowest, highest):
    draw = np.random.RandomState(1)
    lengths = draw.randint(lowest, highest + 1, 500).astype(dtype)
    indices = draw.permutation(500)[:300]
    expected = sorted(indices.tolist(), key=lambda i: lengths[i])
    assert ordered_by(indices, lengths).tolist() == expected


def test_no_samples():
    assert ordered_by(np.arange(0), np.zeros(0, np.int32)).tolist() == []
