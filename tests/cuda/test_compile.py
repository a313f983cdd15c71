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

TRITON_COMPILE = """
import sys, pathlib, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pyseq.kernels import cross_entropy as kernels

types = dict(target="*i64", class_weight="*fp32", weight_total="*fp64", grad_loss="*fp32", loss="*fp32", nll="*fp32",
             correct="*i8", stats="*fp32", factor="*fp32", cols="i32", row_stride="i64", grad_stride="i64",
             grad_loss_stride="i32", uniform_grad_loss="fp32", ignore_index="i32", nll_weight="fp32",
             smooth_weight="fp32", z_loss="fp32", soft_cap="fp32")

def compile(name, kernel, dtype, capability, num_warps, **constants):
    signature = {a: types.get(a, "*" + dtype) for a in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    aligned = {(kernel.arg_names.index(a),): [["tt.divisibility", 16]] for a in ("logits", "grad") if a in signature}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
    pathlib.Path(sys.argv[1], f"{name}-{dtype}-sm_{capability}.cubin").write_bytes(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    assert "v4.b32" in ptx.split("ld.global", 1)[1] and "st.global.v4.b32" in ptx, "no 16-byte accesses"

plain = dict(class_weight=None, weight_total=None, WEIGHT=False, CAP=False)
full = dict(WEIGHT=True, CAP=True)
for capability, dtype, size in ((80, "bf16", 2), (90, "fp32", 4), (90, "fp16", 2), (100, "bf16", 2)):
    group = 16 // size
    for cols in (1000, 8000, 32000, 50257):
        block, num_warps, whole = kernels.launch(cols + group - 1, size)
        for name, options in (("plain", plain | {"SMOOTH": False}), ("full", full | {"SMOOTH": True})):
            compile(f"rows-{cols}-{name}", kernels._rows_kernel, dtype, capability, num_warps, BLOCK=block, WHOLE=whole,
                    GROUP=group, GRADIENT=True, BY_ROW=True, **options)
    block, num_warps, _ = kernels.gradient_launch(32000)
    for name, options in (("plain", plain), ("full", full)):
        compile(f"gradient-{name}", kernels._gradient_kernel, dtype, capability, num_warps, BLOCK=block, GROUP=group,
                **options)
    compile("scale", kernels._scale_kernel, dtype, capability, num_warps, BLOCK=block, GROUP=group)
"""


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
    assert set(kernels) == set(ARCHITECTURES)
    assert_no_spills(report, len(kernels))


@pytest.mark.slow
def test_triton_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton", reason="triton is not installed: its kernels were not compiled")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRITON_COMPILE, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cubins = list(tmp_path.glob("*.cubin"))
    assert len(cubins) == 4 * (4 * 2 + 2 + 1)
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for cubin in cubins:
        command = [cuobjdump, "--dump-resource-usage", cubin]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert re.search(r"STACK:0 .*LOCAL:0 ", usage), f"{cubin.name} spills registers: {usage}"
