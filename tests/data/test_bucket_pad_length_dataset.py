from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyseq.data.bucket_pad_length_dataset import BucketPadLengthDataset, get_bucketed_sizes, get_buckets


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=40), count=st.integers(1, 8))
def test_buckets_are_lower_percentiles_and_sizes_are_rounded_up_to_them(sizes, count):
    buckets = get_buckets(np.array(sizes), count)
    ordered = sorted(sizes)
    # The percentile at step k of n, rounded down to a sample, is the one at floor(k / n * (N - 1)).
    expected = sorted({ordered[k * (len(sizes) - 1) // count] for k in range(1, count + 1)})
    assert buckets.tolist() == expected
    rounded = get_bucketed_sizes(np.array(sizes), buckets)
    assert rounded.tolist() == [min(b for b in expected if b >= size) for size in sizes]


def test_samples_are_padded_on_either_side():
    sentences = [torch.arange(n) + 4 for n in (1, 2, 5)]
    sizes = np.array([1, 2, 5])
    left = BucketPadLengthDataset(sentences, sizes, 2, 1, left_pad=True)
    right = BucketPadLengthDataset(sentences, sizes, 2, 1, left_pad=False)
    assert left.buckets.tolist() == [2, 5]
    assert [left[i].tolist() for i in range(3)] == [[1, 4], [4, 5], [4, 5, 6, 7, 8]]
    assert right[0].tolist() == [4, 1]
    assert left.sizes.tolist() == [2, 2, 5] == [left.num_tokens(i) for i in range(3)]
