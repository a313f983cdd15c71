"""The training command: options, files, logs, errors."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml

from pyseq.cli import train, validate
from pyseq.errors import ConfigError, DataError, TrainingError
from pyseq.training.checkpoint_file import load_checkpoint_file, save_checkpoint_file


def run(argv: list[str], folder: Path, *more: str) -> list[dict]:
    train.main([*argv, "--save-dir", str(folder), *more])
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_validation_agrees_with_the_validate_command(train_argv, tmp_path, capsys):
    records = run(train_argv, tmp_path, "--max-epoch", "3")
    losses = [r["loss"] for r in records if r["tag"] == "train"]
    assert len(losses) == 3 and losses[2] < losses[0] - 0.3
    valid = [r for r in records if r["tag"] == "valid"][-1]
    capsys.readouterr()
    validate.main([train_argv[0], "--path", str(tmp_path / "checkpoint_last.pt"), "--cpu", "--max-tokens", "300",
                   "--log-format", "simple"])  # fmt: skip
    shown = re.search(r"valid on 'valid' subset \| loss ([\d.]+) \| nll_loss ([\d.]+)", capsys.readouterr().out)
    assert shown and float(shown[1]) == pytest.approx(valid["loss"], abs=2e-3)


def test_update_freq_gives_the_update_of_the_larger_batch(train_argv, tmp_path):
    """Averaging is by sample size: two batches accumulated weigh as their tokens do."""
    argv = [*train_argv, "--dropout", "0", "--disable-validation", "--batch-size", "8", "--optimizer", "sgd",
            "--lr", "0.5", "--required-batch-size-multiple", "1"]  # fmt: skip
    run(argv, tmp_path / "two", "--update-freq", "2", "--max-update", "1")
    task, model, criterion, trainer = build(argv, tmp_path)
    samples = first_batches(trainer, 2)
    total, tokens = 0.0, 0
    for sample in samples:
        loss, size, _ = criterion(model, sample)
        total, tokens = total + loss, tokens + size
    (total / tokens).backward()
    expected = {n: p.detach() - 0.5 * p.grad for n, p in model.named_parameters()}
    saved = load_checkpoint_file(tmp_path / "two" / "checkpoint_last.pt")["model"]
    for name, value in expected.items():
        torch.testing.assert_close(saved[name], value, atol=1e-6, rtol=1e-5)


def build(argv, folder):
    from pyseq import utils
    from pyseq.cli.plugins import load_plugins
    from pyseq.config.config import config_from_args
    from pyseq.config.parser import get_training_parser, parse_args_and_arch

    load_plugins()
    cfg = config_from_args(parse_args_and_arch(get_training_parser(), [*argv, "--save-dir", str(folder)]))
    utils.set_all_seeds(cfg.common.seed)
    trainer = train.build(cfg)
    return trainer.task, trainer.model, trainer.criterion, trainer


def first_batches(trainer, count):
    from pyseq.training.epochs import Epochs

    batches = Epochs(trainer.cfg, trainer.task, trainer.model).iterator.next_epoch_itr(shuffle=True)
    return [next(batches) for _ in range(count)]


def test_clipping_bounds_the_step(train_argv, tmp_path):
    argv = [*train_argv, "--disable-validation", "--optimizer", "sgd", "--lr", "1", "--clip-norm", "0.01",
            "--dropout", "0"]  # fmt: skip
    _, model, _, _ = build(argv, tmp_path / "x")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run(argv, tmp_path, "--max-update", "1")
    after = load_checkpoint_file(tmp_path / "checkpoint_last.pt")["model"]
    step = math.sqrt(sum(float(((after[n] - before[n]).double() ** 2).sum()) for n in before))
    assert step == pytest.approx(0.01, rel=1e-3)


def test_bf16_trains_close_to_fp32(train_argv, tmp_path):
    argv = [*train_argv, "--dropout", "0"]
    full = run(argv, tmp_path / "fp32", "--max-epoch", "2")
    half = run(argv, tmp_path / "bf16", "--max-epoch", "2", "--bf16")
    a, b = ([r["loss"] for r in records if r["tag"] == "valid"] for records in (full, half))
    assert b == pytest.approx(a, rel=0.03)


def test_keep_rules(train_argv, tmp_path):
    run(train_argv, tmp_path, "--max-epoch", "4", "--keep-last-epochs", "2", "--keep-best-checkpoints", "2",
        "--save-interval-updates", "5", "--keep-interval-updates", "1")  # fmt: skip
    names = {p.name for p in tmp_path.glob("*.pt")}
    assert {"checkpoint3.pt", "checkpoint4.pt", "checkpoint_best.pt", "checkpoint_last.pt"} <= names
    assert not {"checkpoint1.pt", "checkpoint2.pt"} & names
    assert len([n for n in names if n.startswith("checkpoint.best_loss_")]) == 2
    assert len([n for n in names if re.fullmatch(r"checkpoint_\d+_\d+\.pt", n)]) == 1
    best = load_checkpoint_file(tmp_path / "checkpoint_best.pt")["extra_state"]
    assert best["val_loss"] == best["best"]


def test_patience_stops(train_argv, tmp_path, caplog):
    records = run(train_argv, tmp_path, "--lr", "0", "--patience", "2", "--max-epoch", "50", "--dropout", "0")
    assert [r["epoch"] for r in records if r["tag"] == "valid"] == [1, 2, 3]


def test_metrics_file_has_what_the_log_has(train_argv, tmp_path):
    records = run(train_argv, tmp_path, "--max-update", "2")
    inner = [r for r in records if r["tag"] == "train_inner"]
    assert [r["num_updates"] for r in inner] == [1, 2]
    expected = "loss nll_loss ppl wps ups wpb bsz lr gnorm train_wall wall tps pad data_wait"
    assert set(expected.split()) <= inner[0].keys()
    assert 0 <= inner[0]["pad"] < 60


def test_log_lines_are_fairseqs(train_argv, tmp_path, capsys):
    argv = [*train_argv, "--log-format", "simple"]
    run(argv, tmp_path, "--max-epoch", "1")
    shown = capsys.readouterr().out
    assert re.search(r"\| INFO \| train_inner \| epoch 001:\s+\d+ / \d+ loss=[\d.]+, nll_loss=[\d.]+, ppl=", shown)
    assert re.search(r"\| INFO \| valid \| epoch 001 \| valid on 'valid' subset \| loss [\d.]+ \| nll_loss", shown)
    assert re.search(r"\| INFO \| train \| epoch 001 \| loss [\d.]+ \| nll_loss", shown)
    assert re.search(r"Saved checkpoint .*checkpoint1.pt \(epoch 1 @ \d+ updates, score [\d.]+\) \(writing took", shown)
    assert "num. shared model params: " in shown and "done training in" in shown


def test_dry_run_leaves_nothing(train_argv, tmp_path, capsys):
    folder = tmp_path / "save"
    train.main([*train_argv, "--save-dir", str(folder), "--dry-run"])
    shown = capsys.readouterr().out
    assert "parameters; weights, gradients" in shown and "the largest has sources of shape" in shown
    assert list(folder.glob("*")) == []


def test_print_config_is_yaml_and_trains_the_same(train_argv, tmp_path, capsys):
    train.main([*train_argv, "--save-dir", str(tmp_path / "a"), "--max-update", "2", "--print-config"])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["optimization"]["max_update"] == 2
    (tmp_path / "run.yaml").write_text(printed)
    first = run(train_argv, tmp_path / "a", "--max-update", "2")
    train.main(["--config", str(tmp_path / "run.yaml"), "--save-dir", str(tmp_path / "b")])
    second = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert [r.get("loss") for r in first] == [r.get("loss") for r in second]


def test_eval_bleu_is_logged_and_can_choose_the_best(train_argv, tmp_path):
    records = run(train_argv, tmp_path, "--max-epoch", "1", "--eval-bleu", "--eval-bleu-args", '{"beam": 2}',
                  "--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric")  # fmt: skip
    valid = [r for r in records if r["tag"] == "valid"][-1]
    assert 0 <= valid["bleu"] <= 100 and valid["best_bleu"] == valid["bleu"]


def test_tensorboard(train_argv, tmp_path):
    pytest.importorskip("tensorboard")
    run(train_argv, tmp_path / "s", "--max-update", "2", "--tensorboard-logdir", str(tmp_path / "tb"))
    assert list((tmp_path / "tb").rglob("events*"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (["--arch", ""], ConfigError, "--arch is required"),
        (["--best-checkpoint-metric", "blue"], ConfigError, "best-checkpoint-metric blue"),
        (["--train-subset", "trian"], DataError, "no 'trian' data"),
        (["--valid-subset", "valid,more"], DataError, "no 'more' data"),
        (["--max-tokens", "4"], (DataError, ConfigError), "max"),
        (["--restore-file", "nothere.pt"], Exception, "nothere.pt"),
        (["--finetune-from-model", "nothere.pt"], Exception, "nothere.pt"),
        (["-s", "fr"], DataError, "dict.fr.txt"),
    ],
)
def test_mistakes_are_told(train_argv, tmp_path, change, error, message):
    with pytest.raises(error) as raised:
        train.main([*train_argv, "--save-dir", str(tmp_path), "--max-update", "1", *change])
    assert message in str(raised.value)


def test_no_batch_size_is_told_before_anything_is_loaded(train_argv, tmp_path):
    index = train_argv.index("--max-tokens")
    argv = train_argv[:index] + train_argv[index + 2 :]
    with pytest.raises(ConfigError, match="--max-tokens or --batch-size"):
        train.main([*argv, "--save-dir", str(tmp_path)])


def test_missing_data_folder(train_argv, tmp_path):
    with pytest.raises(DataError, match="no such data folder"):
        train.main([str(tmp_path / "nowhere"), *train_argv[1:], "--save-dir", str(tmp_path)])


def test_a_save_dir_that_cannot_be_written_is_told_at_once(train_argv, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        train.main([*train_argv, "--save-dir", str(tmp_path / "file" / "x")])


@pytest.mark.parametrize(
    "optimizer, last", [("adam", ["2"]), ("adam", ["2", "--no-save"]), ("adam", ["9"]), ("sgd", ["9"])], ids=str
)
def test_non_finite_gradients_stop_the_run_and_keep_the_checkpoint(train_argv, tmp_path, optimizer, last):
    # adam has left the parameters alone, and says so before it saves or ends (2), or when the next update begins (9).
    train_argv = [*train_argv, "--optimizer", optimizer]
    run(train_argv, tmp_path, "--max-update", "1")
    state = load_checkpoint_file(tmp_path / "checkpoint_last.pt")
    state["model"]["encoder.layers.0.fc1.weight"][0, 0] = math.nan
    save_checkpoint_file(state, tmp_path / "checkpoint_last.pt")
    before = (tmp_path / "checkpoint_last.pt").read_bytes()
    with pytest.raises(TrainingError, match="gradient norm is nan at update 2: non-finite gradients in 45 parameters"):
        run(train_argv, tmp_path, "--max-update", *last)
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == before


def test_training_without_padding_is_training(train_argv, tmp_path, monkeypatch):
    """The same batches give the same losses, whether their padding is computed or left out."""
    argv = [*train_argv, "--packed", "--dropout", "0", "--disable-validation", "--max-update", "4",
            "--log-interval", "1"]  # fmt: skip
    packed = [r["loss"] for r in run(argv, tmp_path / "packed") if r["tag"] == "train_inner"]
    monkeypatch.setattr("pyseq.models.transformer.transformer_model.packs", lambda *args: False)
    padded = [r["loss"] for r in run(argv, tmp_path / "padded") if r["tag"] == "train_inner"]
    assert len(packed) == 4 and packed == pytest.approx(padded, abs=2e-3)


def test_packed_is_refused_for_a_model_that_pads(train_argv, tmp_path, monkeypatch):
    monkeypatch.setattr("pyseq.models.transformer.TransformerModel.can_pack", lambda self: False)
    with pytest.raises(ConfigError, match="--packed counts real tokens, but the model TransformerModel .* Leave"):
        run([*train_argv, "--packed"], tmp_path)
