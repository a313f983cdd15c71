from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import summary

SAMPLES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40)


@given(SAMPLES)
def test_percentiles_are_numpys(samples: list[float]) -> None:
    expected = np.percentile(samples, [20, 50, 80])
    assert np.allclose(summary.spread(samples), expected, rtol=1e-12)
    assert summary.spread(samples).median == pytest.approx(statistics.median(samples))


def test_no_samples_have_no_median() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summary.spread([])


def test_ratios_are_taken_within_a_turn() -> None:
    # The machine is three times slower in the second turn. Each turn says 2; the ratio of the sums would say so too,
    # the ratio of the medians of unlike turns would not.
    ours, theirs = [1.0, 3.0, 1.1], [2.0, 6.0, 2.2]
    assert summary.paired(theirs, ours) == pytest.approx((2.0, 2.0, 2.0))
    with pytest.raises(ValueError, match="no pairs"):
        summary.paired([1.0], [1.0, 2.0])


def test_noise_is_half_the_spread_over_the_median() -> None:
    assert summary.Spread(0.9, 1.0, 1.2).noise == pytest.approx(0.15)


def test_rows(run: Callable[..., Any], side: Callable[..., Any]) -> None:
    taken = run(
        (
            "a case",
            [
                side("pyseq", [1.0, 2.0], bytes=100, memory={"allocated": 10, "kept": 3, "resident": 8}),
                side("torch", [3.0, 4.0], bytes=100),
                side("copy", [0.5, 0.8], bytes=100, ceiling="bandwidth"),
            ],
        )
    )
    ours, theirs, copy = summary.rows(taken["cases"][0])
    assert ours.behind is None and ours.memory == 10
    assert ours.rate == pytest.approx(100 / 1.5) and ours.unit == "B"
    assert ours.share is not None and ours.share.median == pytest.approx((0.5 / 1.0 + 0.8 / 2.0) / 2)
    assert theirs.behind is not None and theirs.behind.median == pytest.approx((3.0 / 1.0 + 4.0 / 2.0) / 2)
    assert copy.share is None


def test_work_that_counts_operations_is_held_against_the_matrix_rate(
    run: Callable[..., Any], side: Callable[..., Any]
) -> None:
    case = run(
        (
            "a case",
            [
                side("pyseq", [2.0], flops=100),
                side("copy", [1.0], bytes=1, ceiling="bandwidth"),
                side("product", [1.0], flops=400, ceiling="matrix"),
            ],
        )
    )["cases"][0]
    share = summary.share(case, case["sides"][0])
    assert share is not None and share.median == pytest.approx(50 / 400)
