"""Memory: the peak of a process, and what to say where it ran out."""

from __future__ import annotations

import re
import resource
import sys
from typing import Any

import torch

from pyseq.config.groups import DatasetConfig, OptimizationConfig
from pyseq.errors import TrainingError

# How torch and oneDNN say so on a CPU; on a GPU there is an exception of its own.
CPU_SIGNS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "std::bad_alloc")


class OutOfMemoryError(TrainingError):
    """There was no memory for a batch."""


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of tensors on a GPU, of the whole process (resident, loaders not counted) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with open("/proc/self/status") as status:
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    except OSError:
        found = None
    if found:  # getrusage also remembers what the process was before it became this program
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_text(device: torch.device) -> str:
    what = "tensors on the GPU" if device.type == "cuda" else "resident"
    return f"{peak_bytes(device) / 2**30:.2f} GiB ({what})"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there is no memory left on the CPU or a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in CPU_SIGNS)


def out_of_memory_message(
    error: BaseException, sample: Any, doing: str, dataset: DatasetConfig, optimization: OptimizationConfig | None
) -> str:
    """Which batch it was, how large, and which flags make it fit.

    Args:
        doing: "update 7", say.
        optimization: None where batches are not accumulated (validation).
    """
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"out of memory in {doing}, {describe(sample)}: {first}\n{advice(sample, dataset, optimization)}"


def describe(sample: Any) -> str:
    """A batch in words: sample ids, shapes, tokens."""
    if not isinstance(sample, dict) or not sample:
        return "between two batches"
    ids = sample["id"].flatten().tolist() if torch.is_tensor(sample.get("id")) else []
    shapes = [
        f"{name} {' x '.join(map(str, value.shape))}"
        for name, value in sample.get("net_input", {}).items()
        if torch.is_tensor(value)
    ]
    shown = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
    return (
        f"batch of {sample.get('nsentences', len(ids))} sentences (sample ids {shown}) with "
        f"{sample.get('ntokens', '?')} target tokens; {', '.join(shapes)}"
    )


def advice(sample: Any, dataset: DatasetConfig, optimization: OptimizationConfig | None) -> str:
    if isinstance(sample, dict) and sample.get("nsentences") == 1:
        return "One sentence alone is too much: lower --max-source-positions and --max-target-positions, or use --bf16."
    suffix = "-valid" if optimization is None else ""
    tokens = dataset.max_tokens if optimization else dataset.max_tokens_valid
    sentences = dataset.batch_size if optimization else dataset.batch_size_valid
    flags = []
    if tokens:
        flags.append(f"--max-tokens{suffix} {half(int(tokens))}")
    if sentences:
        flags.append(f"--batch-size{suffix} {max(1, sentences // 2)}")
    if optimization is None:
        return f"Try {' '.join(flags)}."
    frequency = ",".join(str(2 * n) for n in optimization.update_freq)
    return (
        f"Try {' '.join(flags)} --update-freq {frequency}, which makes the same updates of smaller batches; --bf16 "
        "also takes less. The last checkpoint is intact, and training goes on from there."
    )


def half(tokens: int) -> int:
    """Half of a token budget, as a multiple of 8 where it is large enough."""
    return tokens // 2 // 8 * 8 or max(1, tokens // 2)
