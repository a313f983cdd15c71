from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.harness import Case, Mismatch, Side, Unavailable, Work, check, run_case, select
from benchmarks.timing import CpuTimer

CPU = torch.device("cpu")


def side(name: str, value: Tensor, run: Callable[[], Any] = lambda: None, **options: Any) -> Side:
    return Side(name, run, outcome=lambda: {"sum": value}, **options)


def case_of(*sides: Side, **options: Any) -> Case:
    return Case("op/variant", lambda device, quick: Work({}, list(sides), bound=1e-3, cold=False, **options))


def test_sides_that_agree_are_compared_and_the_error_is_kept() -> None:
    work = Work({}, [side("a", torch.tensor([1.001])), side("b", torch.tensor([1.0]))], bound=1e-2)
    (row,) = check(work)
    assert row["side"] == "a" and row["reference"] == "b" and row["error"] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [torch.tensor([1.1, 1.0]), torch.tensor([float("nan"), 1.0]), torch.tensor([1.0])],
    ids=["over the bound", "nan", "shape"],
)
def test_a_mismatch_is_an_error_and_no_row(wrong: Tensor) -> None:
    timed = []
    sides = side("a", wrong, run=lambda: timed.append(1)), side("b", torch.ones(2))
    with pytest.raises(Mismatch, match="sum of 'a' differs from that of 'b'"):
        run_case(case_of(*sides), CPU, turns=2)
    assert not timed


def test_a_quantity_that_a_side_leaves_out_is_a_mismatch() -> None:
    short = Side("a", lambda: None, outcome=lambda: {})
    with pytest.raises(Mismatch, match="has no sum"):
        check(Work({}, [short, side("b", torch.ones(1))], bound=1.0))


def test_bounds_may_differ_by_quantity() -> None:
    found = {"loss": torch.ones(1), "gradient": torch.tensor([1.05])}
    sides = [Side("a", lambda: None, outcome=lambda: found)]
    sides.append(Side("b", lambda: None, outcome=lambda: dict.fromkeys(found, torch.ones(1))))
    check(Work({}, sides, bound={"loss": 1e-6, "gradient": 0.1}))
    with pytest.raises(Mismatch, match="gradient"):
        check(Work({}, sides, bound={"loss": 0.1, "gradient": 1e-6}))


def test_sides_take_turns_and_are_prepared_untimed() -> None:
    log: list[str] = []

    def logged(name: str) -> Side:
        return Side(name, lambda: log.append(name), lambda: (log.append(f"prepare {name}"), time.sleep(0.01))[0])

    result = run_case(case_of(logged("a"), logged("b")), CPU, turns=2)
    # The first turn warms up; the order alternates, so that no side always comes after the same one.
    ran = [name for name in log if not name.startswith("prepare")]
    assert ran == ["a", "b", "b", "a", "a", "b"]
    assert log[::2] == [f"prepare {name}" for name in ran]
    for one in result["sides"]:
        assert len(one["seconds"]) == 2 and max(one["seconds"]) < 0.01


def test_a_budget_of_seconds_ends_a_case_after_five_turns() -> None:
    result = run_case(case_of(Side("a", lambda: time.sleep(0.002))), CPU, turns=50, seconds=0.0)
    assert len(result["sides"][0]["seconds"]) == 5


def test_two_sides_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        run_case(case_of(side("a", torch.ones(1)), side("a", torch.ones(1))), CPU)


def test_a_side_that_is_not_installed_is_told() -> None:
    work = Work({}, [], bound=0.0)

    def missing() -> Side:
        raise ImportError("No module named 'liger_kernel'")

    work.add("Liger", missing)
    assert not work.sides and "liger_kernel" in work.skipped["Liger"]


def test_cases_are_selected_by_part_pattern_and_device() -> None:
    def build(device: torch.device, quick: bool) -> Work:
        raise Unavailable("not built here")

    cases = [Case(name, build, devices) for name, devices in (("adam/fp32", ("cpu",)), ("adam/big", ("cuda",)))]
    cases.append(Case("grad_norm/fp32", build))
    names = lambda patterns, device="cpu": [c.name for c in select(cases, patterns, device)]  # noqa: E731
    assert names([]) == ["adam/fp32", "grad_norm/fp32"]
    assert names(["adam"]) == ["adam/fp32"]
    assert names(["*/fp32"]) == ["adam/fp32", "grad_norm/fp32"]
    assert names(["grad*", "big"], "cuda") == ["adam/big", "grad_norm/fp32"]


def test_peak_memory_counts_what_is_live_at_once_and_not_the_result() -> None:
    def run() -> Tensor:
        first = torch.ones(4_000_000)  # 16 MB
        second = first * 2  # 32 MB are live
        del first
        return second.sum() + torch.ones(1_000_000)  # 20 MB, of which 4 are the result

    found = memory.peak(lambda: None, run, CPU)
    assert found["kept"] == 4_000_000
    assert 28e6 <= found["allocated"] < 28.1e6
    if "resident" in found:
        assert 26e6 < found["resident"] < 40e6


def test_peak_memory_sees_what_torch_did_not_allocate() -> None:
    found = memory.peak(lambda: None, lambda: len(bytearray(b"x" * 50_000_000)), CPU)
    assert found["allocated"] < 1e6
    if "resident" in found:
        assert found["resident"] > 45e6


def test_the_result_is_freed_untimed() -> None:
    class Slow:
        def __del__(self) -> None:
            time.sleep(0.05)

    assert CpuTimer(cold=False).measure("a", lambda: None, Slow)["seconds"] < 0.04


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_events_see_the_device_and_graphs_replay() -> None:
    left = torch.randn(4096, 4096, device="cuda")
    result = run_case(
        Case("op/product", lambda device, quick: Work({}, [Side("a", lambda: left @ left)], bound=0.0)),
        torch.device("cuda"),
        turns=5,
    )
    (one,) = result["sides"]
    seconds, replay, host = (sorted(one[key])[2] for key in ("seconds", "graph_seconds", "host_seconds"))
    assert replay == pytest.approx(seconds, rel=0.3)
    assert host < seconds  # the call returns before the device is done
