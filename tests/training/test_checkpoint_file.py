"""Checkpoint files: whole or not at all, and safe to read."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch

from pyseq.errors import CheckpointError
from pyseq.training.checkpoint_file import copy_checkpoint_file, load_checkpoint_file, save_checkpoint_file

STATE = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "cfg": {"model": Namespace(a=1)}, "best": np.float64(1.5)}


def test_round_trip_needs_no_pickle(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint_file(STATE, path)
    state = load_checkpoint_file(path)
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert state["cfg"]["model"].a == 1 and state["best"] == 1.5
    assert os.listdir(tmp_path) == ["a.pt"]


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def test_code_in_a_checkpoint_is_refused_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "x": Evil()}, "evil.pt")
    with pytest.raises(CheckpointError, match="--unsafe-load"):
        load_checkpoint_file("evil.pt")
    assert not os.path.exists("pwned")
    load_checkpoint_file("evil.pt", unsafe=True)
    assert os.path.exists("pwned")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "a.pt"
    save_checkpoint_file(STATE, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 and keep else int(keep)])
    with pytest.raises(CheckpointError, match="a.pt is damaged"):
        load_checkpoint_file(path)


def test_missing_checkpoint_names_its_neighbours(tmp_path):
    save_checkpoint_file(STATE, tmp_path / "checkpoint7.pt")
    with pytest.raises(CheckpointError, match="checkpoint7.pt"):
        load_checkpoint_file(tmp_path / "checkpoint8.pt")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint_file(tmp_path / "nowhere" / "a.pt")


def test_something_else_is_not_a_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint_file(tmp_path / "list.pt")


FULL_DISK = """
import resource, signal, sys, torch
from pyseq.errors import CheckpointError
from pyseq.training.checkpoint_file import save_checkpoint_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # writes beyond fail, as on a full disk
try:
    save_checkpoint_file({"model": {"w": torch.zeros(1_000_000)}}, sys.argv[1])
except CheckpointError as error:
    print(error)
    sys.exit(3)
"""


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "checkpoint_last.pt"
    save_checkpoint_file(STATE, path)
    before = path.read_bytes()
    result = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True)
    assert result.returncode == 3, result.stderr
    assert "could not write" in result.stdout and "File too large" in result.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["checkpoint_last.pt"]


def test_a_copy_survives_its_source(tmp_path):
    save_checkpoint_file(STATE, tmp_path / "a.pt")
    copy_checkpoint_file(tmp_path / "a.pt", tmp_path / "b.pt")
    save_checkpoint_file({"model": {}}, tmp_path / "a.pt")
    assert torch.equal(load_checkpoint_file(tmp_path / "b.pt")["model"]["w"], STATE["model"]["w"])
