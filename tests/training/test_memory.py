"""Where memory runs out, a user is told which batch it was and what to type."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from pyseq.cli import train
from pyseq.errors import TrainingError
from pyseq.training import saving
from pyseq.training.checkpoint_file import load_checkpoint_file
from pyseq.training.memory import is_out_of_memory, peak_bytes

ALLOCATION = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."


def test_what_torch_says_is_understood():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_peak_is_that_of_this_process():
    before = peak_bytes(torch.device("cpu"))
    torch.ones(64 << 20, dtype=torch.uint8)
    assert 2**26 <= peak_bytes(torch.device("cpu")) < before + 2**27


def failing(step, number):
    """``step`` whose ``number``-th call runs out of memory."""
    calls = iter(range(1, 1000))

    def run(*args, **kwargs):
        if next(calls) == number:
            raise RuntimeError(ALLOCATION)
        return step(*args, **kwargs)

    return run


def test_training_names_the_batch_and_the_flags(train_argv, tmp_path, monkeypatch):
    from pyseq.tasks.translation import TranslationTask

    monkeypatch.setattr(TranslationTask, "train_step", failing(TranslationTask.train_step, 6))
    with pytest.raises(TrainingError) as raised:
        train.main([*train_argv, "--save-dir", str(tmp_path), "--update-freq", "2", "--save-interval-updates", "2",
                    "--disable-validation"])  # fmt: skip
    message = str(raised.value)
    assert "out of memory in update 3, batch of " in message and "can't allocate memory" in message
    assert "--max-tokens 144 --update-freq 4" in message
    ids = [int(i) for i in re.search(r"sample ids ([\d, ]+)", message)[1].split(",") if i.strip()]
    assert len(set(ids)) == 8 and max(ids) < 400
    rows, columns = map(int, re.search(r"src_tokens (\d+) x (\d+)", message).groups())
    assert 8 < rows * columns <= 300 and f"batch of {rows} sentences" in message
    assert load_checkpoint_file(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 2


def test_validation_names_its_own_flag(train_argv, tmp_path, monkeypatch):
    from pyseq.tasks.translation import TranslationTask

    monkeypatch.setattr(TranslationTask, "valid_step", failing(TranslationTask.valid_step, 1))
    with pytest.raises(TrainingError, match=r"(?s)out of memory in validation, batch of .*--max-tokens-valid 144\."):
        train.main([*train_argv, "--save-dir", str(tmp_path), "--max-update", "1"])


def test_a_checkpoint_that_cannot_be_copied_is_written_at_once(train_argv, tmp_path, monkeypatch, capsys):
    def snapshot(state, copied=True):
        if copied:
            raise RuntimeError(ALLOCATION)
        return whole(state, copied)

    whole = saving.snapshot
    monkeypatch.setattr(saving, "snapshot", snapshot)
    train.main([*train_argv, "--save-dir", str(tmp_path), "--max-update", "2", "--disable-validation"])
    assert "no memory for a copy" in capsys.readouterr().out
    assert load_checkpoint_file(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 2


def test_peak_memory_is_logged(train_argv, tmp_path, capsys):
    train.main([*train_argv, "--save-dir", str(tmp_path), "--max-update", "2", "--disable-validation"])
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0.05 < r["peak_gb"] < 1000 for r in records if r["tag"].startswith("train"))
    assert re.search(r"peak memory: \d+\.\d\d GiB \(resident\)", capsys.readouterr().out)


LIMITED = """
import re, resource
from pyseq.cli import train
from pyseq.training.monitor import Monitor
def limited(self, epoch, watch=Monitor.watch):
    size = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**27, size + 2**27))
    return watch(self, epoch)
Monitor.watch = limited
train.cli_main()
"""


@pytest.mark.slow
def test_a_limited_process_says_what_would_fit(train_argv, tmp_path):
    argv = [*train_argv, "--save-dir", str(tmp_path), "--encoder-ffn-embed-dim", "32768", "--disable-validation"]
    train.main([*argv, "--max-epoch", "1"])
    before = (tmp_path / "checkpoint_last.pt").read_bytes()
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, *argv, "--max-tokens", "20000"], capture_output=True, text=True
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert "out of memory in update 12, batch of 400 sentences" in result.stderr
    assert "--max-tokens 10000 --update-freq 2" in result.stderr
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == before
