"""Choosing, forcing and reporting back ends."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

import pyseq.ops as ops
from pyseq.errors import ConfigError
from pyseq.ops import dispatch


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No choice has been made yet; what the test chooses is forgotten."""
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    dispatch._decide.cache_clear()
    yield monkeypatch
    dispatch._decide.cache_clear()


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    known = {name: dispatch.status(name) for name in dispatch.BACKENDS}
    for name in names:
        known[name] = dispatch.Status(False, f"{name} was taken away")
    monkeypatch.setattr(dispatch, "status", known.__getitem__)


def test_the_core_is_used_on_the_cpu_and_torch_where_it_has_no_kernel(undecided: pytest.MonkeyPatch) -> None:
    if not dispatch.status("cpp").available:
        pytest.skip(dispatch.status("cpp").detail)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert dispatch.choose("cross_entropy", "cpu", dtype) == "cpp"
    assert dispatch.choose("cross_entropy", "cpu", torch.float64) == "torch"
    assert dispatch.choose("cross_entropy", "mps", torch.float32) == "torch"


def test_without_the_core_the_reference_runs(undecided: pytest.MonkeyPatch) -> None:
    absent(undecided, "cpp")
    assert dispatch.choose("cross_entropy", "cpu", torch.float32) == "torch"


def test_a_choice_is_told_once(undecided: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    logits, target = torch.randn(2, 3), torch.tensor([0, 2])
    with caplog.at_level(logging.INFO, logger="pyseq.ops.dispatch"):
        for _ in range(3):
            ops.cross_entropy(logits, target)
    assert len(caplog.records) == 1
    assert "cross_entropy (cpu, float32)" in caplog.text and dispatch.status("cpp").detail in caplog.text


def test_forcing_for_a_while(undecided: pytest.MonkeyPatch) -> None:
    default = dispatch.choose("cross_entropy", "cpu", torch.float32)
    with ops.backend("torch"):
        assert dispatch.choose("cross_entropy", "cpu", torch.float32) == "torch"
        if dispatch.status("cpp").available:
            with ops.backend("cpp"):
                assert dispatch.choose("cross_entropy", "cpu", torch.float32) == "cpp"
        assert dispatch.choose("cross_entropy", "cpu", torch.float32) == "torch"
    with pytest.raises(ZeroDivisionError), ops.backend("torch"):
        raise ZeroDivisionError
    assert dispatch.choose("cross_entropy", "cpu", torch.float32) == default


def test_forcing_by_the_environment(undecided: pytest.MonkeyPatch) -> None:
    undecided.setenv(dispatch.ENVIRONMENT_VARIABLE, "torch")
    assert dispatch.choose("cross_entropy", "cpu", torch.float32) == "torch"


@pytest.mark.parametrize("name", ["cpp", "triton", "cuda"])
def test_forcing_one_that_is_absent_is_an_error(undecided: pytest.MonkeyPatch, name: str) -> None:
    absent(undecided, name)
    with pytest.raises(ConfigError, match=f"{name} was taken away"), ops.backend(name):
        pass
    undecided.setenv(dispatch.ENVIRONMENT_VARIABLE, name)
    with pytest.raises(ConfigError, match=f"PYSEQ_BACKEND={name}.*{name} was taken away"):
        ops.cross_entropy(torch.randn(2, 3), torch.tensor([0, 2]))


def test_forcing_one_that_does_not_exist_names_the_nearest(undecided: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'triton'"), ops.backend("tritn"):
        pass
    undecided.setenv(dispatch.ENVIRONMENT_VARIABLE, "tritn")
    with pytest.raises(ConfigError, match="PYSEQ_BACKEND=tritn.*Did you mean 'triton'"):
        dispatch.choose("cross_entropy", "cpu", torch.float32)


def test_forcing_one_without_a_kernel_for_the_dtype_is_an_error(undecided: pytest.MonkeyPatch) -> None:
    if not dispatch.status("cpp").available:
        pytest.skip(dispatch.status("cpp").detail)
    with ops.backend("cpp"), pytest.raises(ConfigError, match="'cpp' has no cross_entropy for .cpu, float64."):
        ops.cross_entropy(torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 2]))


def test_instruction_sets_that_the_processor_lacks_are_refused() -> None:
    if not dispatch.status("cpp").available:
        pytest.skip(dispatch.status("cpp").detail)
    core = dispatch.required_core()
    assert core.isas()[-1] == "portable" and core.isa() in core.isas()
    with pytest.raises(ValueError, match="cannot run 'mmx'"):
        core.use_isa("mmx")


def test_the_core_refuses_what_would_read_outside() -> None:
    if not dispatch.status("cpp").available:
        pytest.skip(dispatch.status("cpp").detail)
    core = dispatch.required_core()
    logits, target, out = torch.randn(2, 3), torch.zeros(2, dtype=torch.long), torch.empty(8)

    def call(**changes: object) -> None:
        arguments = {"logits": logits.data_ptr(), "dtype": 0, "target": target.data_ptr(), "rows": 2, "cols": 3}
        arguments |= {"row_stride": 3, "ignore_index": -1, "nll_weight": 1.0, "smooth_weight": 0.0, "threads": 1}
        arguments |= {name: out.data_ptr() for name in ("loss", "nll", "correct", "stats")}
        core.cross_entropy_forward(**(arguments | changes))

    call()
    wrong = [("logits", 0), ("logits", logits.data_ptr() + 1), ("target", 0), ("target", target.data_ptr() + 4)]
    for name, value in [*wrong, ("loss", 0), ("dtype", 3), ("rows", -1), ("cols", -1), ("row_stride", 2)]:
        with pytest.raises(ValueError):
            call(**{name: value})


def test_the_command_tells_what_is_there_and_why_the_rest_is_not(undecided: pytest.MonkeyPatch) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYSEQ_BACKEND", "TRITON_INTERPRET")}
    command = [sys.executable, "-m", "pyseq.ops"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert "available" in lines["torch"] and "cross_entropy" in lines
    cuda = dispatch.status("cuda")
    assert ("available" if cuda.available else "absent") in lines["cuda"] and cuda.detail in lines["cuda"]
    if cuda.available:
        return
    assert "not built" in cuda.detail or "no CUDA device" in cuda.detail

    undecided.setenv("PYSEQ_BACKEND", "cuda")
    assert "PYSEQ_BACKEND: cuda" in ops.report() and "back end 'cuda' cannot be used here" in ops.report()
