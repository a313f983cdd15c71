"""Where the host waits for the GPU in training: ``python -m benchmarks.host_syncs TRACE.json DATA [options]``.

Runs pyseq-train with the options, and torch's profiler over UPDATES of its updates after WARM_UP. Writes the trace, and
prints how many calls an update wait for the device or copy from it to the host, and which of torch's operations make
them. Those at the log interval are none of these: the log is off.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import recipes

UPDATES, WARM_UP = 5, 10
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")
CALLERS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")


def main(argv: list[str]) -> None:
    from pyseq.cli import train as command

    path, loop, counts = argv[0], command.train, {"updates": 0}
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities)

    def train(trainer: Any, epochs: Any, monitor: Any) -> None:
        update = trainer.update

        @contextmanager
        def watched(samples: Any) -> Iterator[Any]:
            """The profiler starts and ends at the beginning of an update: what is between two of them is in it."""
            if counts["updates"] == WARM_UP:
                profiler.start()
            elif counts["updates"] == WARM_UP + UPDATES:
                profiler.stop()
            counts["updates"] += 1
            with update(samples) as made:
                yield made

        trainer.update = watched
        loop(trainer, epochs, monitor)

    command.train = train
    limit = ["--max-update", str(WARM_UP + UPDATES + 1)]
    arguments = [*argv[1:], *recipes.QUIET, *limit]
    sys.argv = ["pyseq-train", *arguments]
    command.main(arguments)
    if counts["updates"] <= WARM_UP + UPDATES:
        raise SystemExit("the training ended before the profiler did")
    profiler.export_chrome_trace(path)
    tell(profiler)


def tell(profiler: Any) -> None:
    names = Counter(event.name() for event in profiler.profiler.kineto_results.events())
    found = {name: sum(n for key, n in names.items() if key.startswith(name)) for name in (*WAITS, *CALLERS)}
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))
    # The profiler itself waits once for the device when it stops.
    waits = sum(found[name] for name in WAITS)
    print(", ".join(f"{name} {n / UPDATES:g}" for name, n in found.items() if n) or "none of them")
    print(f"waits for the device an update: {max(waits - 1, 0) / UPDATES:g}")


if __name__ == "__main__":
    main(sys.argv[1:])
