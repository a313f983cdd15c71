"""Timers: how long one run of a side takes, on the CPU and on a CUDA device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

Run = Callable[[], Any]
CPU_CACHE_BYTES = 128 * 2**20  # several times the last-level cache of a socket
BACKLOG_SECONDS = 0.5e-3


class Timer(Protocol):
    def capture(self, name: str, prepare: Run, run: Run) -> str | None:
        """Get ready to replay a run from a graph. Returns why that cannot be, if it cannot and should."""

    def measure(self, name: str, prepare: Run, run: Run) -> dict[str, float]:
        """Time one run. ``seconds`` is the figure; other keys depend on the device."""


def make_timer(device: torch.device, cold: bool = True) -> Timer:
    return CudaTimer(device, cold) if device.type == "cuda" else CpuTimer(cold)


class CpuTimer:
    """Wall-clock seconds of a run, which on the CPU is the work itself."""

    def __init__(self, cold: bool = True) -> None:
        self._flush = torch.ones(CPU_CACHE_BYTES // 4) if cold else None

    def capture(self, name: str, prepare: Run, run: Run) -> str | None:
        return None

    def measure(self, name: str, prepare: Run, run: Run) -> dict[str, float]:
        prepare()
        if self._flush is not None:
            self._flush.sum()
        begin = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - begin
        del result  # freeing what was returned is not the work
        return {"seconds": seconds}


class CudaTimer:
    """Device time between two events, host time of the call, and device time of a graph's replay.

    A kernel that spins keeps the device busy while the host launches the work: without this backlog the events of
    short work would time the gaps that the host leaves. The L2 cache is emptied by reading a buffer several times its
    size: reading, because lines that were written would have to be written back during the run.
    """

    def __init__(self, device: torch.device, cold: bool = True) -> None:
        properties = torch.cuda.get_device_properties(device)
        self._flush = torch.ones(4 * properties.L2_cache_size // 4, device=device) if cold else None
        # The spin is counted in clocks; 2 GHz is about where the clocks of these devices end.
        self._clocks_per_second = 2e9
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self._host: dict[str, float] = {}
        self._begin, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def capture(self, name: str, prepare: Run, run: Run) -> str | None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(3):
                    prepare()
                    run()
            torch.cuda.synchronize()
            prepare()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            torch.cuda.synchronize()
        except Exception as error:
            torch.cuda.synchronize()
            return f"not capturable: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        self._graphs[name] = graph
        return None

    def measure(self, name: str, prepare: Run, run: Run) -> dict[str, float]:
        sample = self._events(prepare, run, self._host.get(name, 0.0))
        self._host[name] = sample["host_seconds"]
        if name in self._graphs:
            sample["graph_seconds"] = self._events(prepare, self._graphs[name].replay, 0.0)["seconds"]
        return sample

    def _events(self, prepare: Run, run: Run, host_seconds: float) -> dict[str, float]:
        prepare()
        if self._flush is not None:
            self._flush.sum()
        torch.cuda.synchronize()
        backlog = max(BACKLOG_SECONDS, 2 * host_seconds)  # longer than the host takes to launch the run
        torch.cuda._sleep(int(backlog * self._clocks_per_second))
        self._begin.record()
        begin = time.perf_counter()
        result = run()
        host = time.perf_counter() - begin
        self._end.record()
        torch.cuda.synchronize()
        del result
        return {"seconds": self._begin.elapsed_time(self._end) / 1e3, "host_seconds": host}
