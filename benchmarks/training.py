"""Training speed of the tiny recipe and where its time goes: ``python -m benchmarks.training --reference DIR``.

DIR is the reference folder, whose ``data-bin/`` is trained on. Every case is a process of its own: the allocator as it
is, with glibc's thresholds raised by the environment (which spares large temporaries their page faults), and as
pyseq-train sets it up. Cases are interleaved and repeated; medians are printed. ``--json FILE`` keeps every sample.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECIPE = shlex.split(
    "--source-lang en --target-lang de --arch transformer_iwslt_de_en --encoder-layers 4 --decoder-layers 4 "
    "--encoder-embed-dim 128 --decoder-embed-dim 128 --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256 "
    "--encoder-attention-heads 4 --decoder-attention-heads 4 --dropout 0.3 --share-all-embeddings "
    "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --optimizer adam --adam-betas '(0.9,0.98)' "
    "--lr-scheduler inverse_sqrt --lr 0.005 --warmup-updates 2000 --max-tokens 4096 --clip-norm 25 --cpu --seed 1 "
    "--no-save --disable-validation --log-format none"
)
# Environment of each case. glibc as it comes, glibc told by its own variables, and what pyseq-train does by itself.
CASES = {
    "default allocator": {},
    "tuned by environment": {
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "4294967296",
        "MALLOC_TOP_PAD_": "67108864",
    },
    "as pyseq-train": {"PYSEQ_BENCH_ALLOCATOR": "as pyseq-train"},
}
PARTS = ("data wait", "forward", "criterion", "backward", "tail")
WARM_UP = 5


class Clock:
    """Seconds by part, and per update."""

    def __init__(self) -> None:
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.updates: list[dict[str, float]] = []

    def timed(self, part: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return fn(*args, **kwargs)
            finally:
                self.parts[part] += time.perf_counter() - start

        return run


def child(argv: list[str]) -> None:
    """Train in this process; print one JSON object."""
    from pyseq import metrics, utils
    from pyseq.cli.plugins import load_plugins
    from pyseq.cli.train import build
    from pyseq.config.config import config_from_args
    from pyseq.config.parser import get_training_parser, parse_args_and_arch
    from pyseq.training.allocator import keep_freed_memory
    from pyseq.training.epochs import Epochs
    from pyseq.training.loop import train
    from pyseq.training.monitor import Monitor
    from pyseq.training.saving import Saver

    load_plugins()
    if os.environ.get("PYSEQ_BENCH_ALLOCATOR") == "as pyseq-train":
        keep_freed_memory()
    cfg = config_from_args(parse_args_and_arch(get_training_parser(), argv))
    utils.set_all_seeds(1)
    metrics.reset()
    trainer = build(cfg)
    epochs = Epochs(cfg, trainer.task, trainer.model)
    clock = Clock()
    trainer.model.forward = clock.timed("forward", trainer.model.forward)
    trainer.task.train_step = clock.timed("criterion", trainer.task.train_step)
    trainer.optimizer.backward = clock.timed("backward", trainer.optimizer.backward)  # type: ignore[method-assign]
    trainer.average_and_clip_gradients = clock.timed("tail", trainer.average_and_clip_gradients)  # type: ignore[method-assign]
    trainer.task.optimizer_step = clock.timed("tail", trainer.task.optimizer_step)
    with Monitor(trainer, epochs, Saver(cfg.checkpoint)) as monitor:
        record_updates(monitor, clock)
        train(trainer, epochs, monitor)
    print(json.dumps(clock.updates))


def record_updates(monitor: Any, clock: Clock) -> None:
    """Cut the clock's sums at the end of each update."""
    after_update, add = monitor.after_update, monitor.trainer._log_update
    state = {"tokens": 0, "last": time.perf_counter(), "waited": 0.0}

    def with_tokens(update: Any, norm: Any) -> None:
        state["tokens"] = sum(int(log["ntokens"]) for log in update.logging_outputs)
        add(update, norm)

    def at_end(epoch: Any) -> None:
        now = time.perf_counter()
        parts = dict(clock.parts)
        # What was measured around the whole step contains the others.
        parts["criterion"] -= parts["forward"] + parts["backward"]
        parts["data wait"] = epoch.updates.wait_seconds - state["waited"]
        state["waited"] = epoch.updates.wait_seconds
        clock.updates.append({"seconds": now - state["last"], "tokens": state["tokens"], **parts})
        clock.parts = dict.fromkeys(PARTS, 0.0)
        after_update(epoch)
        state["last"] = time.perf_counter()

    monitor.trainer._log_update = with_tokens
    monitor.after_update = at_end


def measure(reference: Path, updates: int, case: dict[str, str], extra: list[str]) -> list[dict[str, float]]:
    environment = os.environ | case
    with tempfile.TemporaryDirectory() as folder:
        argv = [str(reference / "data-bin"), *RECIPE, "--save-dir", folder, "--max-update", str(updates), *extra]
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.training", "--child", *argv],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if result.returncode != 0:
        raise SystemExit(result.stderr[-2000:])
    samples: list[dict[str, float]] = json.loads(result.stdout.splitlines()[-1])[WARM_UP:]
    return samples


def summary(runs: list[list[dict[str, float]]]) -> dict[str, float]:
    """Tokens a second (median of runs), and milliseconds by part (mean over all updates)."""
    rates = [sum(u["tokens"] for u in run) / sum(u["seconds"] for u in run) for run in runs]
    updates = [u for run in runs for u in run]
    result = {"tokens_per_second": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}
    result["update"] = 1000 * statistics.mean(u["seconds"] for u in updates)
    for part in PARTS:
        result[part] = 1000 * statistics.mean(u[part] for u in updates)
    result["other"] = result["update"] - sum(result[part] for part in PARTS)
    return result


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description="Training speed of the tiny recipe, and where its time goes.")
    parser.add_argument("--reference", type=Path, required=True, help="folder with data-bin/")
    parser.add_argument("--updates", type=int, default=45, help="updates of each run; the first five are not counted")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each case")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    args, extra = parser.parse_known_args()
    cases: dict[str, list[Any]] = {name: [] for name in CASES}
    for _ in range(args.repeat):
        for name, runs in cases.items():
            runs.append(measure(args.reference, args.updates, CASES[name], extra))
            print(f"  {name}: {summary(runs[-1:])['tokens_per_second']:.0f} target tokens/s", file=sys.stderr)
    results = {name: summary(runs) for name, runs in cases.items()}
    columns = ("tokens_per_second", "lowest", "highest", "update", *PARTS, "other")
    print("| case | tokens/s | lowest | highest | update ms | " + " | ".join(PARTS) + " | other |")
    print("|" + "---|" * (len(columns) + 1))
    for name, result in results.items():
        print(f"| {name} | " + " | ".join(f"{result[c]:.0f}" for c in columns) + " |")
    if args.json:
        import torch

        machine = {"cpu": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        args.json.write_text(json.dumps({"machine": machine, "argv": extra, "summary": results, "runs": cases}))


if __name__ == "__main__":
    main()
