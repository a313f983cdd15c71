"""Dropout and what a transformer does around it, forward and backward: pyseq, torch, torch.compile; and a copy.

    python -m benchmarks.ops.dropout [--repeats 9] [--threads 2] [--compile] [--cases WORD ...] [--json FILE]

All contenders of a case run in turn, so that a busy machine slows them alike; a speed-up is the median of the ratios
within a turn. The sizes are those of 4,000 tokens in transformer_iwslt, _base and _big (C 512, 512, 1024; F 1024, 2048,
4096) and in the tiny recipe (C 128, F 256). Cases without "dropout" in their name say what is left to gain by fusing
more than dropout: they run torch on both sides.
"""

from __future__ import annotations

import argparse
import json
import math
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
from pyseq.training.allocator import keep_freed_memory

TOKENS, VOCABULARY, LENGTH, P = 4000, 10_000, 200, 0.1
SIZES = [
    ("tiny", 128, 256, torch.float32),
    ("iwslt", 512, 1024, torch.float32),
    ("base", 512, 2048, torch.float32),
    ("base", 512, 2048, torch.bfloat16),
    ("big", 1024, 4096, torch.float32),
]


@dataclass(frozen=True)
class Case:
    name: str
    arguments: tuple[Tensor, ...]  # those that require a gradient get one
    torch: Callable[..., Tensor]
    pyseq: Callable[..., Tensor]


@dataclass(frozen=True)
class Figure:
    model: str
    dtype: str
    case: str
    work: str
    milliseconds: float  # median
    fastest: float  # milliseconds
    speedup: float  # of pyseq over this: median of the ratios within a turn


def cases(width: int, inner: int, dtype: torch.dtype) -> list[Case]:
    generator = torch.Generator().manual_seed(1)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    x, residual, weight, bias = leaf(TOKENS, width), leaf(TOKENS, width), leaf(width), leaf(width)
    hidden, hidden_bias, table = leaf(TOKENS, inner), leaf(inner), leaf(VOCABULARY, width)
    tokens = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    places, positions = torch.arange(TOKENS) % LENGTH, torch.randn(LENGTH, width, generator=generator).to(dtype)

    def norm(z: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(z, (width,), w, b)

    def embedded(t: Tensor) -> Tensor:
        return math.sqrt(width) * F.embedding(tokens, t, 1) + F.embedding(places, positions)

    def relu(h: Tensor, b: Tensor) -> Tensor:
        return F.relu(h + b)

    def gelu(h: Tensor, b: Tensor) -> Tensor:
        return F.gelu(h + b)

    return [
        Case("dropout", (x,), lambda x: F.dropout(x, P), lambda x: ops.dropout(x, P)),
        Case(
            "residual + dropout",
            (x, residual),
            lambda x, r: r + F.dropout(x, P),
            lambda x, r: ops.dropout(x, P, residual=r),
        ),
        Case(
            "norm(residual + dropout)",
            (x, residual, weight, bias),
            lambda x, r, w, b: norm(r + F.dropout(x, P), w, b),
            lambda x, r, w, b: ops.layer_norm(x, w, b, residual=r, p=P),
        ),
        Case(
            "norm(residual + dropout), norm apart",
            (x, residual, weight, bias),
            lambda x, r, w, b: norm(r + F.dropout(x, P), w, b),
            lambda x, r, w, b: norm(ops.dropout(x, P, residual=r), w, b),
        ),
        Case(
            "norm(residual + x)",
            (x, residual, weight, bias),
            lambda x, r, w, b: norm(r + x, w, b),
            lambda x, r, w, b: ops.layer_norm(x, w, b, residual=r),
        ),
        Case("norm", (x, weight, bias), norm, lambda x, w, b: ops.layer_norm(x, w, b)),
        Case(
            "bias + relu + dropout",
            (hidden, hidden_bias),
            lambda h, b: F.dropout(relu(h, b), P),
            lambda h, b: ops.dropout(relu(h, b), P),
        ),
        Case(
            "bias + gelu + dropout",
            (hidden, hidden_bias),
            lambda h, b: F.dropout(gelu(h, b), P),
            lambda h, b: ops.dropout(gelu(h, b), P),
        ),
        Case("bias + relu", (hidden, hidden_bias), relu, relu),
        Case(
            "embedding + position + dropout",
            (table,),
            lambda t: F.dropout(embedded(t), P),
            lambda t: ops.dropout(embedded(t), P),
        ),
        Case("embedding + position", (table,), embedded, embedded),
    ]


def attention_cases(width: int, dtype: torch.dtype, heads: int, length: int = 32) -> list[Case]:
    """Dropout of attention weights, which stays torch's: both sides run torch, the right one without dropout."""
    sentences = TOKENS // length
    q, k, v = (torch.randn(sentences, heads, length, width // heads).to(dtype).requires_grad_() for _ in range(3))
    attention = F.scaled_dot_product_attention
    return [
        Case(
            "attention, torch's dropout against none",
            (q, k, v),
            lambda q, k, v: attention(q, k, v, dropout_p=P),
            lambda q, k, v: attention(q, k, v),
        )
    ]


def forward_and_backward(fn: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> Callable[[], None]:
    grad = torch.randn_like(fn(*arguments))

    def run() -> None:
        fn(*arguments).backward(grad)
        for argument in arguments:
            argument.grad = None

    return run


def measure(
    model: str, dtype: torch.dtype, case: Case, repeats: int, with_compile: bool, clock: Callable[[], float]
) -> list[Figure]:
    first = case.arguments[0].detach()
    copied = torch.empty_like(first)
    work = {"pyseq": case.pyseq, "torch": case.torch}
    runs: dict[str, Callable[[], object]] = {
        name: forward_and_backward(fn, case.arguments) for name, fn in work.items()
    }
    if with_compile:
        torch.compiler.reset()
        runs["torch.compile"] = forward_and_backward(torch.compile(case.torch), case.arguments)
    runs["copy of the first argument"] = lambda: copied.copy_(first)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn > 0:
                seconds[name].append(clock() - start)
    return [
        Figure(
            model,
            str(dtype).removeprefix("torch."),
            case.name,
            name,
            statistics.median(times) * 1e3,
            min(times) * 1e3,
            statistics.median(theirs / ours for theirs, ours in zip(times, seconds["pyseq"])),
        )
        for name, times in seconds.items()
    ]


HEAD = f"{'model':<17}{'case':<42}{'work':<28}{'ms':>8}{'fastest':>9}{'pyseq is faster by':>20}"


def line(figure: Figure) -> str:
    times = f"{figure.milliseconds:>8.2f}{figure.fastest:>9.2f}{figure.speedup:>20.2f}"
    return f"{f'{figure.model} {figure.dtype}':<17}{figure.case:<42}{figure.work:<28}{times}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--cpu-time", action="store_true", help="processor time: with one thread, on a busy machine")
    parser.add_argument("--models", nargs="+", default=[model for model, *_ in SIZES])
    parser.add_argument("--cases", nargs="+", default=[""], help="cases whose names contain one of these")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    keep_freed_memory()  # as pyseq-train does: large tensors are not mapped anew each time
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    print(ops.report(), HEAD, sep="\n\n")
    figures = []
    for model, width, inner, dtype in SIZES:
        if model not in args.models:
            continue
        every = cases(width, inner, dtype) + attention_cases(width, dtype, heads=width // 64 if width > 128 else 4)
        for case in every:
            if any(word in case.name for word in args.cases):
                measured = measure(model, dtype, case, args.repeats, args.compile, clock)
                print("\n".join(map(line, measured)), flush=True)
                figures += measured
    if args.json:
        settings = {"machine": platform.processor() or platform.machine(), "threads": args.threads}
        settings["clock"] = "processor time" if args.cpu_time else "wall"
        settings |= {"torch": torch.__version__, "tokens": TOKENS, "p": P, "isa": ops.dispatch.status("cpp").detail}
        args.json.write_text(json.dumps(settings | {"figures": [asdict(f) for f in figures]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
