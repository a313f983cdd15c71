"""Reading fairseq's log. The lines have the form of its trainer at --log-format json."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from benchmarks import fairseq, processes, recipes, settings
from benchmarks.harness import Unavailable

INNER = (
    '2026-01-01 10:00:{second:02d} | INFO | train_inner | {{"epoch": 1, "update": 0.04, "loss": "{loss}", '
    '"nll_loss": "13.9", "ppl": "15284.4", "wps": "4012.3", "ups": "1.16", "wpb": "{wpb}", "bsz": "258.4", '
    '"num_updates": "{updates}", "lr": "1.2475e-05", "gnorm": "4.1", "clip": "0", "train_wall": "4", "gb_free": "20", '
    '"wall": "6"}}'
)
LOG = [
    (0.5, "2026-01-01 10:00:00 | INFO | fairseq_cli.train | task: TranslationTask"),
    (6.0, INNER.format(second=6, loss="14.078", wpb="3400.2", updates=5)),
    (10.5, INNER.format(second=10, loss="13.9", wpb="3500", updates=10)),
    (11.0, "2026-01-01 10:00:11 | WARNING | fairseq.trainer | something {else}"),
    (14.0, INNER.format(second=14, loss="13.5", wpb="3300.5", updates=14)),
    (14.1, '2026-01-01 10:00:14 | INFO | train | {"epoch": 1, "train_loss": "13.8", "train_wpb": "3410"}'),
    (14.2, "2026-01-01 10:00:14 | INFO | fairseq_cli.train | done training in 8.9 seconds"),
]


def test_tokens_and_time_lie_between_two_lines() -> None:
    sample = fairseq.training_sample(LOG, warm_up=5)
    assert sample == pytest.approx({"seconds": 14.0 - 6.0, "amount": 5 * 3500 + 4 * 3300.5})


def test_a_log_without_the_lines_is_an_error() -> None:
    with pytest.raises(processes.CommandFailed, match="ends of the counted updates"):
        fairseq.training_sample(LOG, warm_up=4)
    with pytest.raises(processes.CommandFailed):
        fairseq.training_sample(LOG[:2], warm_up=5)


def test_losses_come_in_nats() -> None:
    assert fairseq.losses(LOG)["losses"].tolist() == pytest.approx([b * math.log(2) for b in (14.078, 13.9, 13.5)])


def test_translation_speed_is_read_of_either_toolkit() -> None:
    line = (
        "2026-01-01 10:00:20 | INFO | fairseq_cli.generate | Translated 1,000 sentences (12,345 tokens) in 9.5s "
        "(105.26 sentences/s, 1299.47 tokens/s)"
    )
    assert fairseq.translation_figures([(1.0, line)]) == pytest.approx({"amount": 1000, "seconds": 1000 / 105.26})


def test_without_a_fairseq_the_side_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.FAIRSEQ, raising=False)
    with pytest.raises(Unavailable, match="--fairseq PYTHON"):
        fairseq.command("train")
    monkeypatch.setenv(settings.FAIRSEQ, "/nowhere/python")
    with pytest.raises(Unavailable, match="no interpreter"):
        fairseq.command("train")


@pytest.mark.slow
def test_the_driver_trains_by_the_commands_of_the_interpreter(
    joined_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter is a script that has pyseq-train, whose flags and log are fairseq's, in place of fairseq's."""
    interpreter = tmp_path / "python"
    only_training = '[ "$1 $2" = "-m fairseq_cli.train" ] || exit 9\nshift 2'
    interpreter.write_text(f'#!/bin/sh\n{only_training}\nexec {sys.executable} -m pyseq.cli.train "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setenv(settings.FAIRSEQ, str(interpreter))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    arguments = [str(joined_data), *recipes.TINY, *recipes.SMALL_PAIRS, "--cpu"]
    side = fairseq.training_side("fairseq", arguments, recipes.CHECK, updates=6, warm_up=2, more={})
    assert side.measure is not None and side.outcome is not None
    sample = side.measure()
    assert 0 < sample["seconds"] < 60 and 4 * 50 < sample["amount"] < 4 * 200
    assert sample["resident_bytes"] > 5e7
    assert len(side.outcome()["losses"]) == recipes.CHECK_UPDATES


STAND_IN = {
    "fairseq/criterions/label_smoothed_cross_entropy.py": """
class LabelSmoothedCrossEntropyCriterion:
    def forward(self, model, sample, reduce=True):
        return sample, 2, {"loss": sample}
""",
    "fairseq/trainer.py": """
class Trainer:
    def clip_grad_norm(self, max_norm):
        return 0.1234567
""",
    "fairseq_cli/train.py": """
import sys, types
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.trainer import Trainer

def cli_main():
    assert sys.argv[1:] == ["data", "--max-update", "2"]
    train, valid = types.SimpleNamespace(training=True), types.SimpleNamespace(training=False)
    for losses in ((1.5, 2.5), (5.0, 7.0)):
        for loss in losses:
            LabelSmoothedCrossEntropyCriterion().forward(train, loss)
        LabelSmoothedCrossEntropyCriterion().forward(valid, 100.0)
        Trainer().clip_grad_norm(1.0)
""",
}


def test_losses_of_a_fairseq_run_are_written_before_they_are_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in STAND_IN.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (path.parent, *path.parent.relative_to(tmp_path).parents):
            (tmp_path / folder / "__init__.py").touch()
        path.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child, out = Path(fairseq.__file__).with_name("fairseq_losses_child.py"), tmp_path / "run.json"
    processes.execute([sys.executable, child, out, "data", "--max-update", "2"], fairseq.environment())
    found = json.loads(out.read_text())
    assert found["loss"] == pytest.approx([1 / math.log(2), 3 / math.log(2)])  # two batches of 2 tokens an update
    assert found["gnorm"] == [0.1234567, 0.1234567]
