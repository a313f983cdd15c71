"""Commands as sides of a case: a process is run, its lines are stamped as they come, and what it took is read.

A child of ours prints one line that begins with MARK and goes on with a JSON object of figures (:func:`tell`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .harness import Sample, Side
from .machine import ROOT

PACKAGE = __name__.rpartition(".")[0]  # "benchmarks" in a checkout, "pyseq_benchmarks" where it is installed
LAUNCHER = Path(__file__).with_name("launcher.py")
MARK = "BENCHMARK "
TIME_LIMIT = 3600.0
LINES_TOLD = 12  # of the output of a command that failed


class CommandFailed(Exception):
    """A command ended with an exit code that is not 0, or did not end in time."""


@dataclass(frozen=True)
class Finished:
    """A process that has ended well."""

    lines: list[tuple[float, str]]  # seconds after the start, and a line of its output and errors
    seconds: float
    cpu_seconds: float  # user and system, of the process and its children
    resident_bytes: int  # the peak

    def figures(self) -> dict[str, Any]:
        """What a child of ours told. Raises CommandFailed if it told nothing."""
        for _, line in reversed(self.lines):
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return found
        raise CommandFailed("the command printed no figures:\n" + _last(self.lines))

    def sample(self, **more: float) -> Sample:
        usage = {"cpu_seconds": self.cpu_seconds, "resident_bytes": float(self.resident_bytes)}
        return {"seconds": self.seconds, **usage, **more}


def tell(figures: Mapping[str, Any]) -> None:
    print(MARK + json.dumps(figures), flush=True)


def pyseq_command(name: str) -> list[str]:
    """``pyseq-NAME`` of this interpreter's pyseq."""
    return [sys.executable, "-m", f"pyseq.cli.{name}"]


def child_command(module: str) -> list[str]:
    """A module of this package."""
    return [sys.executable, "-m", f"{PACKAGE}.{module}"]


def environment(more: Mapping[str, str] | None = None, own: bool = True) -> dict[str, str]:
    """Of a process: this one's, as many threads as torch has here, and ``more``. ``own``: it imports this package."""
    found = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONUNBUFFERED": "1"}
    if own and PACKAGE == "benchmarks":
        found["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return found | dict(more or {})


def execute(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None, time_limit: float = TIME_LIMIT
) -> Finished:
    """Run a command in an empty folder.

    Args:
        env: its whole environment (default: :func:`environment`).

    Raises:
        CommandFailed: its exit code is not 0, or it takes longer than ``time_limit`` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        usage = Path(folder) / "usage.json"
        launch = [sys.executable, "-I", "-S", str(LAUNCHER), str(usage), *map(str, command)]
        (Path(folder) / "work").mkdir()
        lines, in_time, code = _follow(launch, env or environment(), Path(folder) / "work", time_limit)
        ended = f"{code} of the process that started it"
        found: dict[str, Any] = json.loads(usage.read_text()) if usage.is_file() else {"code": ended}
    if not in_time:
        raise CommandFailed(f"not done after {time_limit:.0f} s: {_shown(command)}\n{_last(lines)}")
    if found["code"] != 0:
        raise CommandFailed(f"exit code {found['code']}: {_shown(command)}\n{_last(lines)}")
    begin = found["begin"]
    stamped = [(stamp - begin, line) for stamp, line in lines]
    return Finished(stamped, found["end"] - begin, found["cpu_seconds"], found["resident_bytes"])


def _follow(
    launch: list[str], env: Mapping[str, str], folder: Path, time_limit: float
) -> tuple[list[tuple[float, str]], bool, int]:
    """Lines with the time they came, whether the process ended in time, and its exit code. It does not outlive this."""
    process = subprocess.Popen(
        launch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=env, cwd=folder,
        start_new_session=True,
    )  # fmt: skip
    late = threading.Event()

    def stop() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(time_limit, stop)
    timer.start()
    try:
        assert process.stdout is not None
        lines = [(time.monotonic(), line.rstrip("\n")) for line in process.stdout]
        process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            _kill(process)
            process.wait()
    return lines, not late.is_set(), process.returncode


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _shown(command: Sequence[str | Path]) -> str:
    return " ".join(str(word) for word in command)


def _last(lines: list[tuple[float, str]]) -> str:
    return "\n".join(line for _, line in lines[-LINES_TOLD:])


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what a run writes."""
    with tempfile.TemporaryDirectory(prefix="pyseq-bench-") as folder:
        yield Path(folder)


def timed_command(
    name: str, command: Callable[[Path], Sequence[str | Path]], env: Mapping[str, str] | None = None
) -> Side:
    """A side whose figure is how long a command takes; it is given an empty folder to write to."""

    def measure() -> Sample:
        with scratch() as folder:
            return execute(command(folder), env).sample()

    return Side(name, measure=measure)
