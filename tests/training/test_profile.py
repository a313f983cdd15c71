"""``--profile`` says where the time went, and leaves the run as it would have been."""

from __future__ import annotations

import json
import re
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pyseq.cli import train
from pyseq.errors import ConfigError
from pyseq.tasks.translation import TranslationTask
from pyseq.training.checkpoint_file import load_checkpoint_file
from pyseq.training.profile import parse_updates
from pyseq.training.update_clock import AFTERWARDS, PARTS, wrapped_parts


def test_the_table_finds_what_is_slow_and_the_trace_has_the_updates(train_argv, tmp_path, monkeypatch, capsys):
    def slow(self, *args):
        time.sleep(0.05)
        step(self, *args)

    step = TranslationTask.optimizer_step
    argv = [*train_argv, "--max-update", "7", "--disable-validation"]
    train.main([*argv, "--save-dir", str(tmp_path / "plain")])
    monkeypatch.setattr(TranslationTask, "optimizer_step", slow)
    capsys.readouterr()
    train.main([*argv, "--save-dir", str(tmp_path / "profiled"), "--profile", "--profile-updates", "4-5"])
    shown = capsys.readouterr().out
    parts = (*PARTS, "other", AFTERWARDS)
    times = {part: float(re.search(rf"  {part} +([\d.]+)  +[\d.]+ %", shown)[1]) for part in parts}
    assert 50 <= times["tail"] < 200 and min(times["forward"], times["backward"]) > 0.1
    assert times[AFTERWARDS] < 40  # without the updates that are traced, of 50 ms each
    assert all(time >= 0 for time in times.values())
    assert re.search(r"  aten::\w+ +[\d.]+ +[\d.]+ %  [\d.]+ calls", shown)
    events = json.loads((tmp_path / "profiled" / "profile_4-5.json").read_text())["traceEvents"]
    marks = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert [marks.count(f"update: {part}") for part in ("forward", "backward", "criterion", "tail")] == [2, 2, 2, 4]
    weights = [load_checkpoint_file(tmp_path / n / "checkpoint_last.pt")["model"] for n in ("plain", "profiled")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_run_that_ends_early_says_so(train_argv, tmp_path, capsys):
    argv = [*train_argv, "--save-dir", str(tmp_path), "--disable-validation", "--profile", "--max-update"]
    train.main([*argv, "2"])
    assert "before the first to trace (10): nothing written" in capsys.readouterr().out
    train.main([*argv, "4", "--profile-updates", "2-9"])
    assert "trace of updates 2-2" in capsys.readouterr().out


def test_a_clock_around_a_compiled_model_does_not_break_its_graph():
    def nothing():
        pass

    def wrap(part, method):
        def run(*args):
            torch._dynamo.graph_break()  # as a look at the time is one: an error within a whole graph
            called.append(part)
            return method(*args)

        return run

    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    called, model = [], Doubled()
    model.compile(backend="eager", fullgraph=True)
    task = SimpleNamespace(train_step=nothing, optimizer_step=nothing)
    optimizer = SimpleNamespace(backward=nothing)
    trainer = SimpleNamespace(model=model, task=task, optimizer=optimizer, average_and_clip_gradients=nothing)
    with wrapped_parts(trainer, wrap):
        model(torch.ones(1, 2))
    assert called == ["forward"]


@pytest.mark.parametrize("text", ["10", "5-4", "1-3", "a-b"])
def test_ranges_that_make_no_sense(text):
    with pytest.raises(ConfigError, match="like 10-14"):
        parse_updates(text)
