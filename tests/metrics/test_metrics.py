"""Logged values: weighted means, nesting, order, state."""

from __future__ import annotations

import pytest
import torch

from pyseq import metrics


@pytest.fixture(autouse=True)
def fresh():
    metrics.reset()
    yield
    metrics.reset()


def test_weighted_mean_and_rounding():
    with metrics.aggregate("a"):
        metrics.log_scalar("loss", 1.0, weight=3, round=2)
        metrics.log_scalar("loss", 2.0, weight=1, round=2)
    assert metrics.get_smoothed_values("a")["loss"] == 1.25


def test_tensors_average_like_numbers():
    with metrics.aggregate("a"):
        metrics.log_scalar("loss", torch.tensor(1.0), weight=torch.tensor(3))
        metrics.log_scalar("loss", torch.tensor(2.0), weight=torch.tensor(1))
    assert metrics.get_smoothed_value("a", "loss") == 1.25


def test_weight_zero_is_the_latest_value():
    with metrics.aggregate("a"):
        metrics.log_scalar("lr", 0.1, weight=0)
        metrics.log_scalar("lr", 0.2, weight=0)
    assert metrics.get_smoothed_value("a", "lr") == 0.2


def test_nesting_adds_to_all_open_aggregators_and_a_new_root_to_itself_alone():
    with metrics.aggregate("outer"):
        with metrics.aggregate("inner"):
            metrics.log_scalar("x", 1)
        with metrics.aggregate("valid", new_root=True):
            metrics.log_scalar("x", 100)
    assert metrics.get_smoothed_value("outer", "x") == 1
    assert metrics.get_smoothed_value("inner", "x") == 1
    assert metrics.get_smoothed_value("valid", "x") == 100
    assert metrics.get_smoothed_value("default", "x") == 1


def test_order_is_by_priority_then_by_arrival():
    with metrics.aggregate("a"):
        metrics.log_scalar("late", 1, priority=300)
        metrics.log_scalar("b", 1, priority=10)
        metrics.log_scalar("c", 1, priority=10)
        metrics.log_scalar("_hidden", 1, priority=1)
        metrics.log_derived("ppl", lambda meters: meters["b"].avg * 2, priority=20)
    assert list(metrics.get_smoothed_values("a").items()) == [("b", 1), ("c", 1), ("ppl", 2), ("late", 1)]


def test_reset_at_the_log_interval_does_not_touch_the_outer_mean():
    with metrics.aggregate("train"):
        for value in (1.0, 3.0):
            with metrics.aggregate("train_inner"):
                metrics.log_scalar("loss", value)
            metrics.reset_meters("train_inner")
    assert metrics.get_smoothed_value("train", "loss") == 2.0
    assert metrics.get_smoothed_value("train_inner", "loss") is None


def test_state_goes_round():
    metrics.log_scalar("loss", 1.0, weight=3)
    metrics.log_derived("ppl", lambda meters: 2)
    metrics.log_start_time("wall")
    state = metrics.state_dict()
    assert [key for _, key, _, _ in state["default"]] == ["loss", "wall"]
    metrics.reset()
    metrics.load_state_dict(state)
    metrics.log_scalar("loss", 5.0, weight=1)
    assert metrics.get_smoothed_value("default", "loss") == 2.0


def test_speed_counts_from_its_second_call(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    metrics.log_speed("wps", 1000)
    clock[0] = 2.0
    metrics.log_speed("wps", 500)
    assert metrics.get_smoothed_value("default", "wps") == 250


def test_the_default_aggregator_cannot_be_opened():
    with pytest.raises(ValueError, match="always open"), metrics.aggregate("default"):
        pass
