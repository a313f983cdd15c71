"""Peak extra memory of a run: what it needs beyond what was there before and what it leaves behind as results.

On CUDA the caching allocator knows. On the CPU two figures are taken in runs that are not timed. ``allocated`` sums
up the allocations and frees of torch's allocator as its profiler records them: exact, but blind to what compiled code
allocates by itself. ``resident`` is the growth of the process's peak resident set, which Linux resets on request:
it sees everything, in pages, and therefore coarsely (a freed page that malloc keeps is handed back first). It is the
lesser of two runs: what is set up once, as a thread's own memory, is no need of each run.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], Any]
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(prepare: Run, run: Run, device: torch.device) -> dict[str, int]:
    """Bytes: ``allocated`` and, where Linux tells, ``resident``, both beyond ``kept``, which the run leaves behind."""
    if device.type == "cuda":
        return _cuda_peak(prepare, run, device)
    highest, kept = _allocated_peak(prepare, run)
    found = {"allocated": highest - kept, "kept": kept}
    residents = [size for size in (_resident_peak(prepare, run), _resident_peak(prepare, run)) if size is not None]
    if residents:
        found["resident"] = max(0, min(residents) - kept)
    return found


def _cuda_peak(prepare: Run, run: Run, device: torch.device) -> dict[str, int]:
    prepare()
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = run()
    torch.cuda.synchronize(device)
    highest = torch.cuda.max_memory_allocated(device) - before
    kept = torch.cuda.memory_allocated(device) - before
    del result
    return {"allocated": highest - kept, "kept": kept}


def _allocated_peak(prepare: Run, run: Run) -> tuple[int, int]:
    """The highest sum of live bytes during a run, and the sum after it; what ``prepare`` frees does not count."""
    prepare()
    gc.collect()
    with _quiet(), torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as log:
        result = run()
    del result
    recorded = log.profiler.kineto_results.events()
    events = sorted((e for e in recorded if e.name() == "[memory]"), key=lambda e: e.start_ns())
    live = highest = 0
    for event in events:
        live += event.nbytes()
        highest = max(highest, live)
    return highest, live


def _resident_peak(prepare: Run, run: Run) -> int | None:
    if not (sys.platform.startswith("linux") and os.access(CLEAR_REFS, os.W_OK)):
        return None
    prepare()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return None
    trim(0)
    CLEAR_REFS.write_text("5")  # resets the peak, proc(5)
    before = _status("VmRSS")
    result = run()
    highest = _status("VmHWM")
    del result
    return highest - before


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The profiler announces its start and stop on file descriptor 2, past sys.stderr."""
    sys.stderr.flush()
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
