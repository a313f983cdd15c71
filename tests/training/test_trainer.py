"""The state that a run saves has the form that fairseq's loader asks for."""

from __future__ import annotations

from argparse import Namespace

import torch

from pyseq.cli import train
from pyseq.training.checkpoint_file import load_checkpoint_file

TOP_LEVEL = {
    "args", "cfg", "model", "criterion", "optimizer_history", "task_state", "extra_state", "last_optimizer_state",
}  # fmt: skip
SECTIONS = {
    "common", "common_eval", "distributed_training", "dataset", "optimization", "checkpoint", "generation", "eval_lm",
    "interactive", "model", "task", "criterion", "optimizer", "lr_scheduler", "scoring", "bpe", "tokenizer",
}  # fmt: skip


def test_checkpoint_has_fairseqs_form(train_argv, tmp_path):
    train.main([*train_argv, "--save-dir", str(tmp_path), "--max-update", "2", "--bf16"])
    state = load_checkpoint_file(tmp_path / "checkpoint_last.pt")
    assert set(state) == TOP_LEVEL and state["args"] is None and state["criterion"] is None
    assert set(state["cfg"]) >= SECTIONS
    assert isinstance(state["cfg"]["model"], Namespace) and state["cfg"]["model"]._name == "transformer_tiny"
    for section in ("task", "criterion", "optimizer", "lr_scheduler", "scoring"):
        assert isinstance(state["cfg"][section]["_name"], str)
    # Without these two, fairseq takes the model for an old one and drops its last layer norm.
    assert state["model"]["encoder.version"].item() == state["model"]["decoder.version"].item() == 3
    assert all(value.dtype == torch.float32 and value.device.type == "cpu" for value in state["model"].values())
    (history,) = state["optimizer_history"]
    assert history["criterion_name"] == "LabelSmoothedCrossEntropyCriterion"
    assert history["optimizer_name"] == "FairseqAdam" and history["num_updates"] == 2
    assert state["extra_state"]["train_iterator"].keys() >= {"version", "epoch", "iterations_in_epoch", "shuffle"}
    optimizer = state["last_optimizer_state"]
    shared_once = len({v.data_ptr() for v in state["model"].values()}) - 2  # less the two version buffers
    assert len(optimizer["state"]) == len(optimizer["param_groups"][0]["params"]) == shared_once
    assert list(optimizer["state"][0]) == ["step", "exp_avg", "exp_avg_sq"]
    for aggregator in state["extra_state"]["metrics"].values():
        for priority, key, meter, meter_state in aggregator:
            assert isinstance(priority, int) and isinstance(key, str)
            assert meter.endswith("Meter") and "round" in meter_state
