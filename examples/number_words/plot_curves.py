"""Draw the training curves of a run from its ``metrics.jsonl``.

python plot_curves.py checkpoints/metrics.jsonl curves.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - the back end comes first

# Losses are recorded to three digits; on a logarithmic axis, zero stands for "less than half of the last one".
LEAST = 0.0005


def series(records: list[dict[str, Any]], tag: str, key: str, least: float = 0.0) -> tuple[list[float], list[float]]:
    """Updates and values of ``key`` in the records of ``tag``, none below ``least``."""
    found = [r for r in records if r["tag"] == tag and key in r]
    return [r["num_updates"] for r in found], [max(float(r[key]), least) for r in found]


def plot_curves(metrics: Path, image: Path) -> None:
    """Loss of training and validation (bits a token), learning rate and gradient norm, over updates."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure, (loss, rate, norm) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    loss.plot(*series(records, "train_inner", "loss", LEAST), label="training")
    loss.plot(*series(records, "valid", "loss", LEAST), marker="o", label="validation")
    loss.set(title="loss (bits a token)", yscale="log")
    loss.legend()
    rate.plot(*series(records, "train_inner", "lr"))
    rate.set(title="learning rate")
    norm.plot(*series(records, "train_inner", "gnorm"))
    norm.set(title="gradient norm, before clipping", yscale="log")
    for axes in (loss, rate, norm):
        axes.set_xlabel("update")
        axes.grid(alpha=0.3)
    figure.savefig(image, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the training curves of a run.")
    parser.add_argument("metrics", type=Path, help="metrics.jsonl in the run's --save-dir")
    parser.add_argument("image", type=Path, help="PNG, SVG or PDF to write")
    args = parser.parse_args()
    plot_curves(args.metrics, args.image)


if __name__ == "__main__":
    main()
