"""Two processes do what one does with twice the micro-batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyseq.cli import train
from pyseq.training.checkpoint_file import load_checkpoint_file

pytestmark = pytest.mark.slow


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in records if r["tag"] in ("train_inner", "valid")]


def test_two_processes_train_as_one_with_update_freq_two(train_argv, tmp_path):
    # 11 batches an epoch: in each epoch's last update the second process has none.
    # sgd, not adam, which turns the rounding error of a gradient that is zero (the key bias's) into full steps.
    argv = [*train_argv, "--dropout", "0", "--max-epoch", "2", "--clip-norm", "0.5", "--optimizer", "sgd", "--lr", "1"]
    train.main([*argv, "--update-freq", "2", "--save-dir", str(tmp_path / "one")])
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611",
         "-m", "pyseq.cli.train", *argv, "--save-dir", str(tmp_path / "two")],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-3)
    one, two = (load_checkpoint_file(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=1e-5, rtol=1e-4)
