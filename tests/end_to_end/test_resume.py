"""A run that is stopped, killed or resumed is the run that would have been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pyseq.cli import train
from pyseq.errors import CheckpointError
from pyseq.training.checkpoint_file import load_checkpoint_file


def updates(save_dir: Path) -> dict[int, tuple[float, float]]:
    """Update number -> (loss, gradient norm), as logged; later lines win, as a resumed run repeats none or some."""
    records = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return {r["num_updates"]: (r["loss"], r["gnorm"]) for r in records if r["tag"] == "train_inner"}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint_file(path)["model"]


def assert_equal_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_data):
    folder = tmp_path_factory.mktemp("whole")
    train.main([*TRAIN(tiny_data), "--save-dir", str(folder), "--max-update", "40"])
    return folder


def TRAIN(tiny_data: Path) -> list[str]:
    return [
        str(tiny_data), "--cpu", "--arch", "transformer_tiny", "--encoder-layers", "1", "--decoder-layers", "1",
        "--optimizer", "adam", "--lr", "0.005", "--max-tokens", "300", "--dropout", "0.2", "--clip-norm", "1.0",
        "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "10", "--update-freq", "2", "--num-workers", "0",
        "--log-format", "json", "--log-interval", "1", "--seed", "3",
    ]  # fmt: skip


@pytest.mark.parametrize("stop_at", [3, 17, 30])
def test_resume_gives_the_run_that_would_have_been(tmp_path, tiny_data, uninterrupted, stop_at):
    argv = [*TRAIN(tiny_data), "--save-dir", str(tmp_path)]
    train.main([*argv, "--max-update", str(stop_at)])
    train.main([*argv, "--max-update", "40"])
    assert updates(tmp_path) == updates(uninterrupted)
    assert_equal_weights(tmp_path / "checkpoint_last.pt", uninterrupted / "checkpoint_last.pt")


def test_kill_9_in_mid_epoch_then_resume(tmp_path, tiny_data, uninterrupted):
    argv = [*TRAIN(tiny_data), "--save-dir", str(tmp_path), "--max-update", "40", "--save-interval-updates", "4",
            "--disable-validation"]  # fmt: skip
    command = [sys.executable, "-m", "pyseq.cli.train", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if '"num_updates": "9"' in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    last = load_checkpoint_file(tmp_path / "checkpoint_last.pt")
    assert last["extra_state"]["train_iterator"]["iterations_in_epoch"] > 0
    assert last["optimizer_history"][-1]["num_updates"] < 40
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert updates(tmp_path) == updates(uninterrupted)
    assert_equal_weights(tmp_path / "checkpoint_last.pt", uninterrupted / "checkpoint_last.pt")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_resuming_goes_on(tmp_path, tiny_data, uninterrupted, number):
    argv = [*TRAIN(tiny_data), "--save-dir", str(tmp_path)]
    command = [sys.executable, "-m", "pyseq.cli.train", *argv, "--max-update", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if '"num_updates": "3"' in line:
            break
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by signal {int(number)}" in output
    stopped = load_checkpoint_file(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]
    if stopped < 40:
        train.main([*argv, "--max-update", "40"])
        assert updates(tmp_path) == updates(uninterrupted)


def test_bf16_resumes_from_its_exact_master_weights(tmp_path, tiny_data):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    argv = [*TRAIN(tiny_data), "--bf16"]
    train.main([*argv, "--save-dir", str(whole), "--max-update", "8"])
    train.main([*argv, "--save-dir", str(parts), "--max-update", "3"])
    train.main([*argv, "--save-dir", str(parts), "--max-update", "8"])
    assert updates(parts) == updates(whole)
    assert_equal_weights(parts / "checkpoint_last.pt", whole / "checkpoint_last.pt")
    saved = weights(whole / "checkpoint_last.pt")["encoder.embed_tokens.weight"]
    assert saved.dtype == torch.float32 and not torch.equal(saved, saved.bfloat16().float())


def test_resuming_with_another_model_says_what_does_not_fit(tmp_path, tiny_data):
    argv = [*TRAIN(tiny_data), "--save-dir", str(tmp_path), "--max-update", "2"]
    train.main(argv)
    before = (tmp_path / "checkpoint_last.pt").read_bytes()
    with pytest.raises(CheckpointError, match="checkpoint_last.pt: the checkpoint does not fit .*encoder.layers.1"):
        train.main([*argv, "--encoder-layers", "2"])
    with pytest.raises(CheckpointError, match="checkpoint_last.pt: the checkpoint does not fit .*fc1"):
        train.main([*argv, "--encoder-ffn-embed-dim", "48"])
    with pytest.raises(CheckpointError, match="--reset-optimizer"):
        train.main([*argv, "--optimizer", "sgd"])
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == before


def test_finetune_takes_weights_and_starts_afresh(tmp_path, tiny_data, uninterrupted):
    argv = [*TRAIN(tiny_data), "--finetune-from-model", str(uninterrupted / "checkpoint_last.pt"),
            "--save-dir", str(tmp_path), "--lr", "1e-12"]  # fmt: skip
    train.main([*argv, "--max-update", "1"])
    state = load_checkpoint_file(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 1
    reference = weights(uninterrupted / "checkpoint_last.pt")
    for key, value in state["model"].items():
        torch.testing.assert_close(value, reference[key], atol=1e-8, rtol=0)


def test_stop_time_counts_earlier_runs(tmp_path, tiny_data):
    argv = [*TRAIN(tiny_data), "--save-dir", str(tmp_path), "--stop-time-hours", "0.0001"]
    start = time.perf_counter()
    train.main(argv)
    assert time.perf_counter() - start < 30
    first = load_checkpoint_file(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]
    train.main(argv)
    second = load_checkpoint_file(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]
    assert second - first <= 1


def test_a_finished_run_is_not_taken_further(tmp_path, tiny_data):
    argv = [*TRAIN(tiny_data), "--save-dir", str(tmp_path), "--max-update", "3"]
    train.main(argv)
    before = (tmp_path / "checkpoint_last.pt").read_bytes()
    train.main(argv)
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == before


def test_every_file_of_a_run_is_whole(uninterrupted):
    assert not [name for name in os.listdir(uninterrupted) if name.endswith(".tmp")]
