"""Cases of whole runs, at sizes for a smoke run, on a small corpus of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import settings
from benchmarks.cases import all_cases, cases_of
from benchmarks.harness import Case, Unavailable, run_case, select

CASES = select(cases_of("runs"), [], "cpu")
IN_PROCESS = ("data/", "checkpoint/")


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (settings.REFERENCE, settings.DATA, settings.FAIRSEQ):
        monkeypatch.delenv(variable, raising=False)


def check(case: Case) -> None:
    try:
        result = run_case(case, torch.device("cpu"), quick=True, turns=1)
    except Unavailable as why:
        pytest.skip(str(why))
    assert result["sides"][0]["name"].startswith("pyseq")
    assert result["checks"] or case.name.startswith(("startup/", "growth/")), "nothing was compared"
    for side in result["sides"]:
        assert len(side["seconds"]) == 1 and side["seconds"][0] > 0
    if case.name.startswith("generate/"):
        assert all(side["flops"][0] > 0 for side in result["sides"] if side["name"].startswith("pyseq"))
    if case.name.startswith(("train/", "switches/")):
        ours = result["sides"][0]
        assert ours["amount"][0] > 0 and ours["flops"][0] > 0 and ours["resident_bytes"][0] > 5e7
        assert ours["part:forward"][0] > 0 and ours["part:backward"][0] > 0


@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith(IN_PROCESS)], ids=lambda case: case.name)
def test_case_in_this_process(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if not c.name.startswith(IN_PROCESS)], ids=lambda case: case.name)
def test_case_of_processes(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("name", ["train/tiny-multi30k", "train/lm-wikitext2", "generate/tiny", "preprocess/multi30k"])
def test_without_its_data_a_case_says_what_to_give(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    with pytest.raises(Unavailable, match="give --(reference|data)"):
        case.build(torch.device("cpu"), False)


def test_names_are_unique() -> None:
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)


def test_the_gpu_script_is_a_shell_script() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "gpu_session.sh"
    subprocess.run(["bash", "-n", script], check=True)
