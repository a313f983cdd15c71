"""``--max-tokens auto`` finds a number, and the run is the one that is given that number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pyseq.cli import generate, train
from pyseq.errors import ConfigError, TrainingError
from pyseq.training import auto_budget
from pyseq.training.auto_budget import Trial, choose, expected_peak, has_levelled_off
from pyseq.training.checkpoint_file import load_checkpoint_file


@pytest.fixture
def argv(train_argv, monkeypatch):
    """Trials begin at 64 tokens: the data are small."""
    monkeypatch.setattr(auto_budget, "FIRST", 64)
    at = train_argv.index("--max-tokens")
    return [*train_argv[:at], *train_argv[at + 2 :], "--disable-validation"]


def budget_of(folder: Path) -> int:
    return load_checkpoint_file(folder / "checkpoint_last.pt")["cfg"]["dataset"]["max_tokens"]


def assert_same_run(a: Path, b: Path) -> None:
    first, second = (load_checkpoint_file(folder / "checkpoint_last.pt") for folder in (a, b))
    assert all(torch.equal(first["model"][key], second["model"][key]) for key in second["model"])
    for i, state in second["last_optimizer_state"]["state"].items():
        assert first["last_optimizer_state"]["state"][i]["step"] == state["step"]
        assert torch.equal(first["last_optimizer_state"]["state"][i]["exp_avg"], state["exp_avg"])


def test_the_search_leaves_no_trace_and_resuming_keeps_the_number(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(auto_budget, "has_levelled_off", lambda trials: len(trials) == 3)
    train.main([*argv, "--max-tokens", "auto", "--save-dir", str(tmp_path / "auto"), "--max-update", "3"])
    shown = capsys.readouterr().out
    budget = budget_of(tmp_path / "auto")
    tried = list(map(int, re.findall(r"--max-tokens (\d+): \d+ target tokens/s", shown)))
    assert budget in tried and tried == [64, 88, 128]
    assert re.search(rf"{budget} +\d+ +[\d.]+ GiB +#+  <- taken", shown)
    train.main([*argv, "--max-tokens", str(budget), "--save-dir", str(tmp_path / "given"), "--max-update", "3"])
    assert_same_run(tmp_path / "auto", tmp_path / "given")
    capsys.readouterr()
    train.main([*argv, "--max-tokens", "auto", "--save-dir", str(tmp_path / "auto"), "--max-update", "6"])
    assert f"--max-tokens auto: {budget}, as in the checkpoint" in capsys.readouterr().out
    train.main([*argv, "--max-tokens", str(budget), "--save-dir", str(tmp_path / "given"), "--max-update", "6"])
    assert_same_run(tmp_path / "auto", tmp_path / "given")


def test_trials_stop_before_memory_ends(argv, tmp_path, monkeypatch, capsys):
    peaks = iter(range(100, 10000, 10))  # MiB; each step takes 10 more
    monkeypatch.setattr(auto_budget, "peak_of", lambda device: next(peaks) * 2**20)
    monkeypatch.setattr(auto_budget, "memory_limit", lambda device: 150 * 2**20 / auto_budget.SHARE)
    monkeypatch.setattr(auto_budget, "has_levelled_off", lambda trials: False)
    train.main([*argv, "--max-tokens", "auto", "--save-dir", str(tmp_path), "--max-update", "1"])
    shown = capsys.readouterr().out
    assert re.findall(r"--max-tokens (\d+): \d+ target", shown) == ["64", "88", "128", "176"]
    assert "256 would take about 0.2 GiB" in shown  # 140 and 10 for every 48


def test_running_out_of_memory_ends_the_search_and_not_the_run(argv, tmp_path, monkeypatch, capsys):
    from pyseq.tasks.translation import TranslationTask

    def limited(self, sample, *args, **kwargs):
        if sample["target"].numel() > 128:
            raise MemoryError
        return step(self, sample, *args, **kwargs)

    step = TranslationTask.train_step
    monkeypatch.setattr(TranslationTask, "train_step", limited)
    monkeypatch.setattr(auto_budget, "has_levelled_off", lambda trials: False)
    train.main([*argv, "--max-tokens", "auto", "--save-dir", str(tmp_path), "--max-update", "2"])
    assert "176 does not fit in memory" in capsys.readouterr().out
    assert budget_of(tmp_path) <= 128
    monkeypatch.setattr(auto_budget, "FIRST", 256)
    with pytest.raises(TrainingError, match="out of memory"):
        train.main([*argv, "--max-tokens", "auto", "--save-dir", str(tmp_path / "b"), "--max-update", "2"])


def trials(*rates: float) -> list[Trial]:
    return [Trial(1024 * 2**i, rate, 2**20, 10) for i, rate in enumerate(rates)]


def test_what_is_chosen():
    assert not has_levelled_off(trials(100, 150, 151))  # 50 % over two steps
    assert not has_levelled_off(trials(100, 100, 110))
    assert has_levelled_off(trials(100, 150, 149, 153))
    assert choose(trials(100, 150, 149, 153)).budget == 2048
    assert choose(trials(100, 120, 140)).budget == 4096
    assert expected_peak([(0, 90), (1024, 150), (2048, 200)], 4096) == 300


def test_worst_batches_are_the_longest_and_the_fullest():
    class Lengths:
        def num_tokens_vec(self, batch):
            return batch

    batches = [[9], [7, 7], [3, 3, 3], [2, 2, 2, 2], [30]]
    assert auto_budget.telling_batches(Lengths(), batches) == [[30], [2, 2, 2, 2], [7, 7]]


def test_other_commands_want_a_number(tiny_data):
    with pytest.raises(ConfigError, match="auto is for training"):
        generate.main([str(tiny_data), "--path", "x.pt", "--max-tokens", "auto"])
    with pytest.raises(ConfigError, match="--max-tokens"):
        train.main([str(tiny_data), "--arch", "transformer_tiny", "--max-tokens", "many"])
