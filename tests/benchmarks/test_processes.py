"""Processes as sides: what is read of them, and that nothing is left of one that fails."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import processes
from benchmarks.harness import Case, Sample, Side, Work, run_case


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_lines_are_stamped_when_they_come() -> None:
    code = "import sys, time; print('a', flush=True); time.sleep(0.3); print('b', file=sys.stderr); time.sleep(0.3)"
    done = processes.execute(python(code))
    (first, a), (second, b) = done.lines
    assert [a, b] == ["a", "b"]
    assert second - first > 0.25 and first > 0 and done.seconds >= second


def test_peak_memory_is_that_of_the_process_and_not_of_this_one() -> None:
    ballast = torch.ones(60_000_000)  # 240 MB here
    small = processes.execute(python("pass")).resident_bytes
    large = processes.execute(python("len(bytearray(b'x') * 100_000_000)")).resident_bytes
    assert small < 100e6 and 95e6 < large - small < 130e6, ballast.numel()


def test_processor_time_is_counted_and_sleep_is_not() -> None:
    done = processes.execute(python("import time; time.sleep(0.4)\nwhile time.process_time() < 0.3: pass"))
    assert 0.25 < done.cpu_seconds < 0.65 and done.seconds > 0.65


def test_a_command_that_fails_tells_its_last_lines() -> None:
    with pytest.raises(processes.CommandFailed, match=r"exit code 3: (.|\n)*the reason"):
        processes.execute(python("print('the reason'); raise SystemExit(3)"))


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    told = str(tmp_path / "pid")
    child = f"import time, pathlib, os; pathlib.Path({told!r}).write_text(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {child!r}])"
    with pytest.raises(processes.CommandFailed, match="not done after 2 s"):
        processes.execute(python(code), time_limit=2.0)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.1)
    os.kill(pid, 0)  # it is gone: this raises
    pytest.fail("the child still runs")


def test_figures_are_those_that_a_child_told_last() -> None:
    done = processes.Finished([(0.1, 'BENCHMARK {"a": 1}'), (0.2, "other")], 1.0, 1.0, 1)
    assert done.figures() == {"a": 1}
    with pytest.raises(processes.CommandFailed, match="no figures"):
        processes.Finished([(0.1, "other")], 1.0, 1.0, 1).figures()


def test_sides_that_measure_themselves_take_turns_and_count_units() -> None:
    log: list[str] = []

    def measured(name: str, seconds: float, amount: float) -> Side:
        def measure() -> Sample:
            log.append(name)
            return {"seconds": seconds, "amount": amount, "part:forward": seconds / 2}

        return Side(name, measure=measure)

    work = Work({}, [measured("a", 1.0, 10.0), measured("b", 3.0, 15.0)], 0.0, unit="tokens", turns=3, warm_up=False)
    result = run_case(Case("run/case", lambda device, quick: work), torch.device("cpu"), turns=15)
    assert log == ["b", "a", "a", "b", "b", "a"]
    assert result["unit"] == "tokens"
    assert [side["amount"] for side in result["sides"]] == [[10.0] * 3, [15.0] * 3]
    assert result["sides"][0]["part:forward"] == [0.5] * 3


def test_modules_import_each_other_by_relative_names() -> None:
    """Installed, the package has another name."""
    folder = Path(processes.__file__).parent
    wrong = [
        str(path)
        for path in folder.rglob("*.py")
        if any(
            line.strip().startswith(("from benchmarks", "import benchmarks")) for line in path.read_text().splitlines()
        )
    ]
    assert not wrong
