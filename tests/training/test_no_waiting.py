"""Between two log intervals the host reads nothing from the device.

There is a GPU in few places, so reads are counted on the CPU, where they are the same calls.
"""

from __future__ import annotations

import collections
import contextlib
import math
import traceback
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import pyseq
from pyseq.cli import train
from pyseq.errors import TrainingError
from pyseq.models.model import BaseModel
from pyseq.training import trainer as trainer_module
from pyseq.training.checkpoint_file import load_checkpoint_file, save_checkpoint_file
from pyseq.training.trainer import reciprocal

PACKAGE = f"{Path(pyseq.__file__).parent}/"
READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::item"}
# These look at tensors on the CPU only: at masks that hide nothing, and for targets out of range.
ON_THE_CPU_ONLY = {
    "models/transformer/common.py",
    "models/transformer/transformer_decoder.py",
    "ops/linear_cross_entropy/run.py",
    "ops/linear_cross_entropy/autograd.py",
}


class Scalars(TorchDispatchMode):
    """Counts reads of one number: item(), float(), bool(), comparisons in an ``if``."""

    def __init__(self, found: collections.Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket._qualified_op_name in READS:
            self.found[place()] += 1
        return func(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """Counts reads of whole tensors, which are no operators."""

    def __init__(self, found: collections.Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("tolist", "numpy", "cpu"):
            self.found[place()] += 1
        return func(*args, **(kwargs or {}))


def place() -> str:
    frame = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)][-1]
    return f"{frame.filename.removeprefix(PACKAGE)}:{frame.name}"


@contextlib.contextmanager
def counted(found: collections.Counter[str], when: bool = True):
    with Scalars(found) if when else contextlib.nullcontext(), Lists(found) if when else contextlib.nullcontext():
        yield


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Reading is taken to wait, and padding is computed: to leave it out is to wait for the places of the tokens."""

    def waits(self, *args):
        init(self, *args)
        self.reading_waits = True

    init = trainer_module.Trainer.__init__
    monkeypatch.setattr(trainer_module.Trainer, "__init__", waits)
    monkeypatch.setattr(BaseModel, "pack_sequences", False)


def reads(train_argv, folder, log_interval, monkeypatch) -> collections.Counter[str]:
    """Places that read, and how often, in updates 3 to 6 of a run that logs every ``log_interval`` updates."""
    found: collections.Counter[str] = collections.Counter()
    trainer, monitor = trainer_module.Trainer, train.Monitor
    update, after_update = trainer.update, monitor.after_update

    @contextlib.contextmanager
    def counted_update(self, samples):
        with counted(found, when=3 <= self.num_updates + 1 <= 6), update(self, samples) as result:
            yield result

    def counted_after(self, epoch):
        with counted(found, when=3 <= self.trainer.num_updates <= 6):
            after_update(self, epoch)

    monkeypatch.setattr(trainer, "update", counted_update)
    monkeypatch.setattr(monitor, "after_update", counted_after)
    train.main([*train_argv, "--save-dir", str(folder), "--max-update", "8", "--disable-validation", "--no-save",
                "--log-interval", str(log_interval), "--clip-norm", "0.1"])  # fmt: skip
    return found


def test_updates_between_log_intervals_read_nothing(train_argv, tmp_path, monkeypatch, as_on_a_gpu):
    found = reads(train_argv, tmp_path, 7, monkeypatch)
    assert found.pop("training/trainer.py:count_tokens") == 4  # of the batch, before it goes to the device
    assert {place.partition(":")[0] for place in found} <= ON_THE_CPU_ONLY, found


def test_the_counter_sees_the_log_interval(train_argv, tmp_path, monkeypatch, as_on_a_gpu):
    found = reads(train_argv, tmp_path, 2, monkeypatch)
    assert found["metrics/meters.py:to_number"] >= 4


def test_gradients_that_are_not_finite_are_found_at_the_log_interval(train_argv, tmp_path, as_on_a_gpu):
    argv = [*train_argv, "--save-dir", str(tmp_path), "--disable-validation"]
    train.main([*argv, "--max-update", "1"])
    state = load_checkpoint_file(tmp_path / "checkpoint_last.pt")
    state["model"]["encoder.layers.0.fc1.weight"][0, 0] = math.nan
    save_checkpoint_file(state, tmp_path / "checkpoint_last.pt")
    with pytest.raises(TrainingError, match="gradient norm is nan at update 2: non-finite gradients in 45 parameters"):
        train.main([*argv, "--max-update", "9", "--log-interval", "4"])
    with pytest.raises(TrainingError, match="gradient norm is nan at update 2: "):  # before it is saved
        train.main([*argv, "--max-update", "3", "--log-interval", "4"])


def test_a_sample_size_on_the_device_is_not_read():
    found: collections.Counter[str] = collections.Counter()
    with counted(found):
        halves = reciprocal(torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64))
    assert halves.tolist() == [1.0, 0.5, 0.25] and not found
    assert reciprocal(0) == 1.0 and reciprocal(4) == 0.25
