"""The GPU kernels compile without a warning and without a spill for every GPU that is supported. Nothing is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90", "100")
WITHOUT_KERNELS = {"adam"}  # chooses between those of adam_*.cu


def assert_no_spills(report: str, kernels: int) -> None:
    """``report`` is what ptxas -v says: registers, stack and spills of each kernel."""
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) >= kernels > 0 and all(pair == ("0", "0") for pair in spills), report


def test_there_are_sources() -> None:
    assert SOURCES


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_cuda_compiles_without_warnings_and_spills(source: Path, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on the PATH: CUDA sources were not compiled")
    command = [nvcc, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(tmp_path / "out.o")]
    command += ["--Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror", "-Xptxas", "-v,-warn-spills"]
    for sm in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{sm},code=sm_{sm}"]
    done = subprocess.run(command, capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0 and "warning" not in report, report
    kernels = re.findall(r"Compiling entry function '\w+' for 'sm_(\d+)'", report)
    if source.stem in WITHOUT_KERNELS:
        assert not kernels
        return
    assert set(kernels) == set(ARCHITECTURES)
    assert_no_spills(report, len(kernels))


@pytest.mark.slow
def test_triton_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton", reason="triton is not installed: its kernels were not compiled")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_triton.py")), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cubins = list(tmp_path.glob("*.cubin"))
    compiled = {cubin.name.split(".")[2] for cubin in cubins}
    assert {"adam", "attention", "cross_entropy", "decode_attention", "grad_norm"} <= compiled
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for cubin in cubins:
        command = [cuobjdump, "--dump-resource-usage", cubin]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert re.search(r"STACK:0 .*LOCAL:0 ", usage), f"{cubin.name} spills registers: {usage}"
        if "cross_entropy._rows" in cubin.name or "cross_entropy._gradient" in cubin.name:
            ptx = cubin.with_suffix(".ptx").read_text()
            wide = re.search(r"ld\.global\S*\.v4\.b32", ptx) and re.search(r"st\.global\S*\.v4\.b32", ptx)
            assert wide, f"{cubin.name} does not read and write 16 bytes at a time"
