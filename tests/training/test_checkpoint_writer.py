"""A checkpoint is what the run was when it was saved, however long the writing takes; no error is lost."""

from __future__ import annotations

import errno
import json
import threading
import time

import pytest
import torch

from pyseq.cli import train
from pyseq.errors import CheckpointError
from pyseq.training import checkpoint_file, saving
from pyseq.training.checkpoint_file import load_checkpoint_file, save_checkpoint_file
from pyseq.training.checkpoint_writer import CheckpointWriter, snapshot


def test_a_snapshot_does_not_change_with_the_run():
    weight = torch.arange(6.0)
    state = {"model": {"a": weight[:3], "tied": weight[:3], "b": weight[3:]}, "meters": [{"n": 1}]}
    copy = snapshot(state)
    weight.zero_()
    state["meters"][0]["n"] = 2
    assert copy["model"]["b"].tolist() == [3, 4, 5] and copy["meters"] == [{"n": 1}]
    assert copy["model"]["a"].data_ptr() == copy["model"]["tied"].data_ptr()
    assert copy["model"]["b"].untyped_storage().nbytes() == 12  # not the whole it is a part of


def test_the_next_job_waits_and_an_error_is_raised_once():
    writer, gate, order = CheckpointWriter(), threading.Event(), []

    def first() -> None:
        gate.wait()
        order.append(1)
        raise CheckpointError("the disk is full")

    writer.start(first)
    writer.check()  # runs yet: nothing to raise
    threading.Timer(0.05, gate.set).start()
    with pytest.raises(CheckpointError, match="disk is full"):
        writer.start(lambda: order.append(2))
    assert order == [1]
    writer.start(lambda: order.append(3))
    writer.wait()
    assert order == [1, 3]


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing takes until long after the next updates."""

    def slowly(state, path):
        time.sleep(0.3)
        save_checkpoint_file(state, path)

    monkeypatch.setattr(saving, "save_checkpoint_file", slowly)


def test_slow_writing_saves_the_same_and_stalls_less(train_argv, tmp_path, slow_disk):
    argv = [*train_argv, "--max-update", "6", "--save-interval-updates", "2", "--disable-validation"]
    records = {}
    for mode, flags in (("while", []), ("wait", ["--save-sync"])):
        train.main([*argv, "--save-dir", str(tmp_path / mode), *flags])
        lines = (tmp_path / mode / "metrics.jsonl").read_text().splitlines()
        records[mode] = [r for r in map(json.loads, lines) if "save_stall" in r]
    for update in (2, 4, 6):
        name = f"checkpoint_1_{update}.pt"
        a, b = (load_checkpoint_file(tmp_path / mode / name) for mode in ("while", "wait"))
        assert a["optimizer_history"][-1]["num_updates"] == update
        assert all(torch.equal(a["model"][key], b["model"][key]) for key in b["model"])
        for i, moments in b["last_optimizer_state"]["state"].items():
            assert torch.equal(a["last_optimizer_state"]["state"][i]["exp_avg"], moments["exp_avg"])
    for mode, found in records.items():
        assert sum(r["save_seconds"] for r in found) >= 0.9, mode  # the last one is told of, too
    assert records["while"][0]["save_stall"] < 0.2 < 0.3 <= records["while"][0]["save_seconds"]
    assert all(r["save_stall"] == r["save_seconds"] >= 0.3 for r in records["wait"])


def test_a_full_disk_ends_the_run_with_the_previous_checkpoint(train_argv, tmp_path, monkeypatch):
    def full(state, file):
        if state["optimizer_history"][-1]["num_updates"] > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(state, file)

    write = torch.save
    monkeypatch.setattr(checkpoint_file.torch, "save", full)
    with pytest.raises(CheckpointError, match="could not write .*checkpoint_1_4.pt .*No space left"):
        train.main([*train_argv, "--max-update", "2000", "--save-interval-updates", "2", "--disable-validation",
                    "--save-dir", str(tmp_path), "--keep-interval-updates", "1"])  # fmt: skip
    last = load_checkpoint_file(tmp_path / "checkpoint_last.pt")
    assert last["optimizer_history"][-1]["num_updates"] == 2
    assert sorted(p.name for p in tmp_path.glob("*.pt*")) == ["checkpoint_1_2.pt", "checkpoint_last.pt"]


def test_an_error_of_the_run_waits_for_the_file(train_argv, tmp_path, slow_disk, monkeypatch):
    def save_then_fail(self, epoch):
        save(self, epoch)
        if self.trainer.num_updates == 2:
            raise RuntimeError("a defect of a plug-in")

    save = train.Monitor.validate_and_save
    monkeypatch.setattr(train.Monitor, "validate_and_save", save_then_fail)
    with pytest.raises(RuntimeError, match="a defect"):
        train.main([*train_argv, "--save-dir", str(tmp_path), "--save-interval-updates", "2", "--disable-validation"])
    assert load_checkpoint_file(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 2
