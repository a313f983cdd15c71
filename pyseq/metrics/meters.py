"""Accumulators of logged values. Values may be tensors; nothing waits for a device until a value is read."""

from __future__ import annotations

import bisect
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


def to_number(value: Any) -> Any:
    """A Python number for a one-element tensor or array, else the value itself."""
    return value.item() if hasattr(value, "item") else value


def rounded(value: Any, digits: int | None) -> Any:
    value = to_number(value)
    return value if value is None or digits is None else round(value, digits)


class Meter:
    """One logged value. ``smoothed_value`` is what is printed."""

    STATE: tuple[str, ...] = ()
    round: int | None

    def reset(self) -> None:
        raise NotImplementedError

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    @property
    def smoothed_value(self) -> Any:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self.STATE} | {"round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            if key in self.STATE or key == "round":
                setattr(self, key, value)


class AverageMeter(Meter):
    """Weighted mean. A value logged with weight 0 counts as the latest value only."""

    STATE = ("val", "sum", "count")

    def __init__(self, round: int | None = None) -> None:
        self.round = round
        self.reset()

    def reset(self) -> None:
        self.val: Any = None
        self.sum: Any = 0
        self.count: Any = 0

    def update(self, val: Any, n: Any = 1) -> None:
        if val is None:
            return
        self.val = val
        if hasattr(n, "item") or n > 0:  # a weight on a device is added untested: testing it would wait for the device
            self.sum = self.sum + val * n
            self.count = self.count + n

    @property
    def avg(self) -> Any:
        return self.sum / self.count if to_number(self.count) > 0 else self.val

    @property
    def smoothed_value(self) -> Any:
        return rounded(self.avg, self.round)


class SumMeter(Meter):
    """Sum."""

    STATE = ("sum",)

    def __init__(self, round: int | None = None) -> None:
        self.round = round
        self.reset()

    def reset(self) -> None:
        self.sum: Any = 0

    def update(self, val: Any) -> None:
        if val is not None:
            self.sum = self.sum + val

    @property
    def smoothed_value(self) -> Any:
        return rounded(self.sum, self.round)


class ConcatTensorMeter(Meter):
    """Concatenation along a dimension; its mean is what is printed."""

    STATE = ("tensor",)

    def __init__(self, dim: int = 0, round: int | None = None) -> None:
        self.dim, self.round = dim, round
        self.reset()

    def reset(self) -> None:
        self.tensor: Any = None

    def update(self, val: Any) -> None:
        import torch

        self.tensor = val if self.tensor is None else torch.cat([self.tensor, val], dim=self.dim)

    @property
    def smoothed_value(self) -> Any:
        return None if self.tensor is None else rounded(self.tensor.float().mean(), self.round)


class TimeMeter(Meter):
    """Events a second since the last reset."""

    STATE = ("init", "n")

    def __init__(self, init: float = 0, n: Any = 0, round: int | None = None) -> None:
        self.round = round
        self.reset(init, n)

    def reset(self, init: float = 0, n: Any = 0) -> None:
        self.init, self.n, self.start = init, n, time.perf_counter()

    def update(self, val: Any = 1) -> None:
        self.n = self.n + val

    @property
    def elapsed_time(self) -> float:
        return self.init + (time.perf_counter() - self.start)

    @property
    def avg(self) -> Any:
        return self.n / max(self.elapsed_time, 1e-9)

    @property
    def smoothed_value(self) -> Any:
        return rounded(self.avg, self.round)

    def state_dict(self) -> dict[str, Any]:
        return {"init": self.elapsed_time, "n": to_number(self.n), "round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reset(init=state.get("init", 0), n=state.get("n", 0))
        self.round = state.get("round")


class StopwatchMeter(Meter):
    """Seconds between ``start`` and ``stop``, summed."""

    STATE = ("sum", "n")

    def __init__(self, round: int | None = None) -> None:
        self.round = round
        self.reset()

    def reset(self) -> None:
        self.sum: float = 0
        self.n: Any = 0
        self.start_time: float | None = None

    def start(self) -> None:
        self.start_time = time.perf_counter()

    def stop(self, n: Any = 1) -> None:
        if self.start_time is not None:
            self.sum += time.perf_counter() - self.start_time
            self.n = self.n + n
            self.start_time = None

    @property
    def elapsed_time(self) -> float:
        return 0.0 if self.start_time is None else time.perf_counter() - self.start_time

    @property
    def smoothed_value(self) -> Any:
        return rounded(self.sum if self.sum > 0 else self.elapsed_time, self.round)


class DerivedMeter(Meter):
    """Computed from the other meters of its aggregator when it is read; not saved."""

    def __init__(self, fn: Callable[[MetersDict], Any]) -> None:
        self.fn, self.round = fn, None

    def reset(self) -> None:
        pass


METERS: dict[str, type[Meter]] = {
    cls.__name__: cls for cls in (AverageMeter, SumMeter, ConcatTensorMeter, TimeMeter, StopwatchMeter)
}


class MetersDict(OrderedDict[str, Meter]):
    """Meters ordered by priority (lowest first), then by the order in which they were added."""

    def __init__(self) -> None:
        super().__init__()
        self.priorities: list[tuple[int, int, str]] = []

    def add_meter(self, key: str, meter: Meter, priority: int) -> None:
        if key in self:
            raise KeyError(f"meter '{key}' exists already")
        self[key] = meter
        bisect.insort(self.priorities, (priority, len(self.priorities), key))
        for _, _, name in self.priorities:
            self.move_to_end(name)

    def get_smoothed_value(self, key: str) -> Any:
        meter = self[key]
        return meter.fn(self) if isinstance(meter, DerivedMeter) else meter.smoothed_value

    def get_smoothed_values(self) -> OrderedDict[str, Any]:
        """What is printed: every meter whose name does not begin with ``_``."""
        return OrderedDict((key, self.get_smoothed_value(key)) for key in self if not key.startswith("_"))

    def reset(self) -> None:
        for meter in self.values():
            meter.reset()

    def state_dict(self) -> list[tuple[int, str, str, dict[str, Any]]]:
        return [
            (priority, key, type(self[key]).__name__, self[key].state_dict())
            for priority, _, key in self.priorities
            if not isinstance(self[key], DerivedMeter)
        ]

    def load_state_dict(self, state: list[tuple[int, str, str, dict[str, Any]]]) -> None:
        self.clear()
        self.priorities.clear()
        for priority, key, class_name, meter_state in state:
            if class_name in METERS:
                meter = METERS[class_name]()
                meter.load_state_dict(meter_state)
                self.add_meter(key, meter, priority)
