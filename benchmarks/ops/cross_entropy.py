"""Label-smoothed cross-entropy, forward and backward: pyseq, fairseq's formulation, torch's own; and a copy.

    python -m benchmarks.ops.cross_entropy [--repeats 9] [--threads 2] [--keep-memory] [--json FILE]

All contenders of a case run in turn, so that a busy machine slows them alike; a speed-up is the median of the ratios
within a turn. GB/s counts the bytes that the work cannot do without: the logits read once forward and once backward,
the gradient written once. ``--keep-memory`` runs with a malloc that keeps large blocks; otherwise every matrix of this
size is mapped anew, and its page faults are part of the time of whoever makes one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq import ops

CASES = [
    (4096, 10_000, torch.float32),
    (512, 32_000, torch.float32),
    (4096, 10_000, torch.bfloat16),
    (3000, 9_737, torch.float32),
]
EPSILON, PADDING = 0.1, 1
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 30),
}


@dataclass(frozen=True)
class Figure:
    rows: int
    classes: int
    dtype: str
    work: str
    milliseconds: float  # median
    gigabytes_per_second: float | None
    speedup: float  # of pyseq's forward and backward over this, median of the ratios within a turn


def fairseq_loss(logits: Tensor, target: Tensor) -> Tensor:
    """log_softmax in fp32, a gather and a sum over all of it."""
    lprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    y = target.unsqueeze(-1)
    nll = -lprobs.gather(dim=-1, index=y)
    smooth = -lprobs.sum(dim=-1, keepdim=True)
    ignored = y.eq(PADDING)
    nll, smooth = nll.masked_fill(ignored, 0.0).sum(), smooth.masked_fill(ignored, 0.0).sum()
    each = EPSILON / (lprobs.size(-1) - 1)
    return (1.0 - EPSILON - each) * nll + each * smooth


def torch_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, label_smoothing=EPSILON, ignore_index=PADDING, reduction="sum")


def pyseq_loss(logits: Tensor, target: Tensor) -> Tensor:
    return ops.cross_entropy_sums(logits, target, label_smoothing=EPSILON, ignore_index=PADDING).loss


def forward_and_backward(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> None:
    loss(logits, target).backward()
    logits.grad = None


def contenders(logits: Tensor, target: Tensor) -> dict[str, Callable[[], object]]:
    leaf, copied = logits.detach().requires_grad_(), torch.empty_like(logits)
    return {
        "pyseq": lambda: forward_and_backward(pyseq_loss, leaf, target),
        "pyseq, forward only": lambda: pyseq_loss(logits, target),
        "fairseq's formulation": lambda: forward_and_backward(fairseq_loss, leaf, target),
        "F.cross_entropy": lambda: forward_and_backward(torch_loss, leaf, target),
        "copy of the logits": lambda: copied.copy_(logits),
    }


# Matrices read or written. The other two make more passes than the work needs: a rate would flatter them.
PASSES = {"pyseq": 3, "pyseq, forward only": 1, "copy of the logits": 2}


def measure(rows: int, classes: int, dtype: torch.dtype, repeats: int) -> list[Figure]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, classes, generator=generator).mul_(2).to(dtype)
    target = torch.randint(classes, (rows,), generator=generator)
    work = contenders(logits, target)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    matrix = logits.numel() * logits.element_size()
    figures = []
    for name, times in seconds.items():
        median = statistics.median(times)
        rate = matrix * PASSES[name] / median / 1e9 if name in PASSES else None
        speedup = statistics.median(theirs / ours for theirs, ours in zip(times, seconds["pyseq"]))
        figures.append(Figure(rows, classes, str(dtype).removeprefix("torch."), name, median * 1e3, rate, speedup))
    return figures


def table(figures: list[Figure]) -> str:
    lines = [f"{'logits':<24}{'work':<24}{'ms':>8}{'GB/s':>8}{'pyseq is faster by':>20}"]
    for figure in figures:
        case = f"{figure.rows} x {figure.classes} {figure.dtype}"
        rate = "" if figure.gigabytes_per_second is None else f"{figure.gigabytes_per_second:.1f}"
        lines.append(f"{case:<24}{figure.work:<24}{figure.milliseconds:>8.1f}{rate:>8}{figure.speedup:>20.2f}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.keep_memory and not KEEP_MEMORY.items() <= os.environ.items():
        # glibc reads these when a process starts.
        arguments = sys.argv[1:] if argv is None else argv
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.ops.cross_entropy", *arguments], os.environ | KEEP_MEMORY
        )
    torch.set_num_threads(args.threads)
    figures = [figure for case in CASES for figure in measure(*case, args.repeats)]
    print(ops.report())
    print(f"large blocks are {'kept' if args.keep_memory else 'mapped anew'} by malloc\n")
    print(table(figures))
    if args.json:
        machine = {"machine": platform.processor() or platform.machine(), "threads": args.threads}
        settings = machine | {"torch": torch.__version__, "keep_memory": args.keep_memory}
        args.json.write_text(
            json.dumps(settings | {"figures": [asdict(figure) for figure in figures]}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
