"""The cases of benchmarks.ops, at sizes for a smoke run: they build, agree with their peers, and are timed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import command, report
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.harness import Case, Unavailable, run_case, select
from benchmarks.ops import cross_entropy
from benchmarks.ops.cases import CASES
from pyseq import ops


def cases() -> Iterator[Any]:
    """torch takes long to compile the chunked peers; one of their cases is enough for every day."""
    for case in select(CASES, [], "cpu"):
        slow = case.name.startswith("linear_cross_entropy/") and case.name != "linear_cross_entropy/4096x128x10000"
        yield pytest.param(case, id=case.name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("case", list(cases()))
def test_case(case: Case) -> None:
    try:
        result = run_case(case, torch.device("cpu"), quick=True, turns=1)
    except Unavailable as why:
        pytest.skip(str(why))
    assert result["checks"], "nothing was compared"
    assert all(len(side["seconds"]) == 1 for side in result["sides"])
    assert result["sides"][0]["name"].startswith("pyseq")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", select(CASES, [], "cuda"), ids=lambda case: case.name)
def test_case_on_cuda(case: Case) -> None:
    try:
        result = run_case(case, torch.device("cuda"), quick=True, turns=1)
    except Unavailable as why:
        pytest.skip(str(why))
    assert all(len(side["seconds"]) == 1 for side in result["sides"])


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.fixture
def own_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command sets torch's thread count, and malloc, which cannot be set back."""
    before = torch.get_num_threads()
    monkeypatch.setattr(command, "keep_freed_memory", lambda: True)
    yield
    torch.set_num_threads(before)


def arguments(folder: Path, *more: str) -> list[str]:
    only = ["cross_entropy/3000x9737", "--device", "cpu"]
    return [*only, "--json", str(folder / "run.json"), *more]


@pytest.mark.usefixtures("own_settings")
def test_the_command_writes_a_run_that_can_be_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(CASES, arguments(tmp_path, "--quick", "--threads", "1")) == 0
    printed = capsys.readouterr()
    assert "F.cross_entropy" in printed.out and "all sides agree" in printed.out
    assert "turn 0 of 2" in printed.err
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["settings"]["quick"] and run["settings"]["threads"] == 1
    assert run["versions"]["torch"] == torch.__version__ and run["machine"]["cores"]
    assert all(len(side["seconds"]) == 2 for side in run["cases"][0]["sides"])
    assert "a smoke run" in report.run_text(run)


@pytest.mark.usefixtures("own_settings")
def test_a_side_that_computes_something_else_is_an_error_and_has_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(smoothing: float, **options: str) -> object:
        return lambda logits, target: 1.001 * ops.cross_entropy(logits, target, reduction="sum", ignore_index=1)

    monkeypatch.setattr(cross_entropy, "pyseq_loss", wrong)
    assert command.main(CASES, arguments(tmp_path, "--quick")) == 2
    assert "cross_entropy/3000x9737: Mismatch: loss of 'pyseq' differs" in capsys.readouterr().err
    run = json.loads((tmp_path / "run.json").read_text())
    assert not run["cases"] and "cross_entropy/3000x9737" in run["errors"]


def test_a_pattern_that_matches_nothing_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(CASES, ["absent", "--device", "cpu"]) == 2
    assert "no case matches absent" in capsys.readouterr().err
    assert benchmarks_main(["list", "grad_norm", "--device", "cpu"]) == 0
    assert "grad_norm/fp32-200" in capsys.readouterr().out.splitlines()
