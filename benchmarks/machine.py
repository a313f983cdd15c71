"""What a run was made on, and the yardsticks of what that machine can do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from .harness import Side, Unavailable

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch", "triton", "numpy", "liger-kernel", "flash-attn", "quack-kernels", "bitsandbytes", "apex", "ctranslate2",
)  # fmt: skip
COPY_BYTES = {"cpu": 400 * 10**6, "cuda": 4 * 10**9}  # moved by a copy yardstick at most, reads plus writes
PRODUCTS = 20  # for the yardstick of whole runs
MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}


def work_folder() -> Path:
    """Where runs and prepared data are kept: build/benchmarks of a checkout, else the user's cache folder."""
    if (ROOT / "pyproject.toml").is_file():
        return ROOT / "build" / "benchmarks"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pyseq-benchmarks"


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, device, versions and commit: what is needed to read the figures of a run."""
    versions = {"python": platform.python_version(), "pyseq": _commit()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 2),  # of the minute before: work beside which the run was made
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return {"machine": machine, "versions": versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of this checkout, with ``+changes`` where files differ from it."""
    try:
        run = {"cwd": ROOT, "capture_output": True, "text": True, "check": True}
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit


def available_memory(device: torch.device) -> int:
    """Bytes that a case may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def need_memory(amount: int, device: torch.device) -> None:
    """Raises Unavailable if a case that takes ``amount`` bytes would take most of what is free."""
    free = available_memory(device)
    if amount > 0.7 * free:
        raise Unavailable(f"needs {amount / 1e9:.1f} GB on {device.type}, {free / 1e9:.1f} GB are free")


def need_bf16(device: torch.device) -> None:
    """Raises Unavailable on a CPU without products of bf16 numbers, where bf16 only costs."""
    if device.type == "cpu" and not has_bf16_products():
        raise Unavailable("this CPU has no bf16 products (avx512_bf16, amx_bf16)")


def has_bf16_products() -> bool:
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def need_int8() -> None:
    """Raises Unavailable on a CPU without VNNI, where libraries add int8 products in 16 bits, which may saturate."""
    if not {"avx512_vnni", "avx_vnni"} & cpu_flags():
        raise Unavailable("this CPU has no VNNI (avx512_vnni, avx_vnni): sums of int8 products may saturate at 16 bits")


def cpu_flags() -> set[str]:
    """What Linux says that the CPU can do; nothing elsewhere."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return set()
    return set(flags.split())


def copy_yardstick(device: torch.device, moved: int, name: str = "copy") -> Side:
    """A copy that moves ``moved`` bytes, reads plus writes; at most COPY_BYTES, where rates have settled."""
    count = max(1, min(moved, COPY_BYTES[device.type]) // 8)
    source, target = torch.ones(count, device=device), torch.zeros(count, device=device)
    return Side(name, lambda: target.copy_(source), bytes=8 * count, ceiling="bandwidth")


def matrix_yardstick(device: torch.device, dtype: torch.dtype, quick: bool, times: int = 1) -> Side:
    """A square product of random matrices: zeros would run faster than data does.

    Args:
        times: products of one measurement. Where seconds pass between two of these, threads have gone to sleep, and one
            product alone tells of that.
    """
    size = 64 if quick else MATRIX_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)

    def multiply() -> None:
        for _ in range(times):
            torch.mm(left, right, out=out)

    name = f"product {size}" if times == 1 else f"{times} products {size}"
    return Side(name, multiply, flops=times * 2 * size**3, ceiling="matrix")
