"""Logging of values by name into nested aggregators.

``log_scalar("loss", value, weight)`` adds to every aggregator that is open; ``with aggregate("train"):`` opens one.
Criterions and tasks log; the loop reads (:func:`get_smoothed_values`) at the log interval.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from pyseq.metrics.meters import (
    AverageMeter,
    ConcatTensorMeter,
    DerivedMeter,
    Meter,
    MetersDict,
    StopwatchMeter,
    SumMeter,
    TimeMeter,
)

_aggregators: OrderedDict[str, MetersDict] = OrderedDict()
_active: OrderedDict[str, tuple[MetersDict, int]] = OrderedDict()  # name -> (aggregator, how often it is open)


def reset() -> None:
    """Forget every value and aggregator, except an empty ``default``."""
    _aggregators.clear()
    _active.clear()
    _aggregators["default"] = MetersDict()
    _active["default"] = (_aggregators["default"], 1)


reset()


@contextlib.contextmanager
def aggregate(name: str | None = None, new_root: bool = False) -> Iterator[MetersDict]:
    """Values logged inside also go to the aggregator ``name``, which keeps them until it is reset.

    Args:
        name: a name that begins with anything but ``_``; None makes an aggregator that is forgotten afterwards.
        new_root: values logged inside go to this aggregator only, not to those open outside.
    """
    if name is None:
        name = str(uuid.uuid4())
        aggregator = MetersDict()
    else:
        if name == "default":
            raise ValueError("the aggregator 'default' is always open")
        aggregator = _aggregators.setdefault(name, MetersDict())
    outer = _active.copy()
    if new_root:
        _active.clear()
    _active[name] = (aggregator, outer.get(name, (aggregator, 0))[1] + 1)
    try:
        yield aggregator
    finally:
        _active.clear()
        _active.update(outer)


def get_active_aggregators() -> list[MetersDict]:
    return [aggregator for aggregator, _ in _active.values()]


def _meters(key: str, make: Callable[[], Meter], priority: int) -> Iterator[tuple[Meter, bool]]:
    """The meter ``key`` of every open aggregator, made where it is missing, and whether it was there."""
    for aggregator in get_active_aggregators():
        known = key in aggregator
        if not known:
            aggregator.add_meter(key, make(), priority)
        yield aggregator[key], known


def log_scalar(key: str, value: Any, weight: Any = 1, priority: int = 10, round: int | None = None) -> None:
    """Add ``value`` to the weighted mean ``key``. ``round`` is the number of digits printed."""
    for meter, _ in _meters(key, lambda: AverageMeter(round), priority):
        meter.update(value, weight)


def log_scalar_sum(key: str, value: Any, priority: int = 10, round: int | None = None) -> None:
    """Add ``value`` to the sum ``key``."""
    for meter, _ in _meters(key, lambda: SumMeter(round), priority):
        meter.update(value)


def log_concat_tensor(key: str, value: Any, priority: int = 10, dim: int = 0) -> None:
    """Append ``value`` to the tensor ``key``."""
    for meter, _ in _meters(key, lambda: ConcatTensorMeter(dim), priority):
        meter.update(value)


def log_derived(key: str, fn: Callable[[MetersDict], Any], priority: int = 20) -> None:
    """Define ``key`` as a function of the aggregator's other meters, computed when it is read."""
    for _ in _meters(key, lambda: DerivedMeter(fn), priority):
        pass


def log_speed(key: str, value: Any, priority: int = 30, round: int | None = None) -> None:
    """Count ``value`` events towards the rate ``key``. The first call only starts the clock."""
    for meter, known in _meters(key, lambda: TimeMeter(round=round), priority):
        meter.update(value) if known else meter.reset()


def log_start_time(key: str, priority: int = 40, round: int | None = None) -> None:
    """Start the stopwatch ``key``."""
    for meter, _ in _meters(key, lambda: StopwatchMeter(round), priority):
        meter.start()  # type: ignore[attr-defined]


def log_stop_time(key: str, weight: Any = 0.0) -> None:
    """Stop the stopwatch ``key``."""
    for aggregator in get_active_aggregators():
        if key in aggregator:
            aggregator[key].stop(weight)  # type: ignore[attr-defined]


def log_custom(make: Callable[[], Meter], key: str, *args: Any, priority: int = 50, **kwargs: Any) -> None:
    """Update the meter ``key`` of a class of your own."""
    for meter, _ in _meters(key, make, priority):
        meter.update(*args, **kwargs)


def reset_meter(name: str, key: str) -> None:
    meter = get_meter(name, key)
    if meter is not None:
        meter.reset()


def reset_meters(name: str) -> None:
    meters = get_meters(name)
    if meters is not None:
        meters.reset()


def get_meter(name: str, key: str) -> Meter | None:
    return _aggregators[name].get(key) if name in _aggregators else None


def get_meters(name: str) -> MetersDict | None:
    return _aggregators.get(name)


def get_smoothed_value(name: str, key: str) -> Any:
    return _aggregators[name].get_smoothed_value(key)


def get_smoothed_values(name: str) -> OrderedDict[str, Any]:
    """Key -> printed value of aggregator ``name``, in order of priority. Waits for the device."""
    return _aggregators[name].get_smoothed_values()


def state_dict() -> OrderedDict[str, Any]:
    return OrderedDict((name, aggregator.state_dict()) for name, aggregator in _aggregators.items())


def load_state_dict(state: dict[str, Any]) -> None:
    for name, aggregator_state in state.items():
        _aggregators.setdefault(name, MetersDict()).load_state_dict(aggregator_state)


__all__ = [
    "AverageMeter", "ConcatTensorMeter", "Meter", "MetersDict", "StopwatchMeter", "SumMeter", "TimeMeter",
    "aggregate", "get_active_aggregators", "get_meter", "get_meters", "get_smoothed_value", "get_smoothed_values",
    "load_state_dict", "log_concat_tensor", "log_custom", "log_derived", "log_scalar", "log_scalar_sum", "log_speed",
    "log_start_time", "log_stop_time", "reset", "reset_meter", "reset_meters", "state_dict",
]  # fmt: skip
