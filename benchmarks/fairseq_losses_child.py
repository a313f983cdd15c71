"""Losses and gradient norms of a fairseq training run, as fairseq computes them, before its log rounds them.

    FAIRSEQ_PYTHON benchmarks/fairseq_losses_child.py OUT.json [options of fairseq-train]

Runs in an interpreter that has fairseq and need not have pyseq. Writes {"loss": [bits a token], "gnorm": [before
clipping]}, a number for each update.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    here = Path(__file__).resolve().parent
    sys.path = [place for place in sys.path if Path(place).resolve() != here]  # its fairseq.py is another one
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion as Criterion
    from fairseq.trainer import Trainer
    from fairseq_cli.train import cli_main

    out = sys.argv.pop(1)
    forward, clip = Criterion.forward, Trainer.clip_grad_norm
    parts: list[tuple[float, float]] = []  # loss sum and sample size of each batch of the update
    found: dict[str, list[float]] = {"loss": [], "gnorm": []}

    def recorded_forward(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss, sample_size, log = forward(self, model, *args, **kwargs)
        if model.training:
            parts.append((float(log["loss"]), float(sample_size)))
        return loss, sample_size, log

    def recorded_clip(self: Any, max_norm: float) -> Any:
        norm = clip(self, max_norm)
        sums, sizes = zip(*parts)
        parts.clear()
        found["loss"].append(sum(sums) / sum(sizes) / math.log(2))
        found["gnorm"].append(float(norm))
        return norm

    Criterion.forward, Trainer.clip_grad_norm = recorded_forward, recorded_clip
    cli_main()
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
