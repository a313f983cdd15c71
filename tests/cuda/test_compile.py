"""The CUDA sources compile without a warning and without a spill for every GPU that is supported. Nothing is run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90", "100")
# ptxas says what it used of the GPU for each kernel, and warns where registers do not suffice.
FLAGS = "-std=c++17 -O3 --Werror all-warnings -Xcompiler -Wall,-Wextra,-Werror -Xptxas -v,-warn-spills".split()


def test_there_are_sources() -> None:
    assert SOURCES


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_warnings_and_spills(source: Path, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on the PATH: CUDA sources were not compiled")
    targets = [flag for sm in ARCHITECTURES for flag in ("-gencode", f"arch=compute_{sm},code=sm_{sm}")]
    command = [nvcc, *FLAGS, *targets, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    assert "warning" not in report, report
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", report)
    assert {sm for _, sm in kernels} == set(ARCHITECTURES)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) >= len(kernels) and all(pair == ("0", "0") for pair in spills), report
