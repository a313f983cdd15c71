"""The example plug-ins, run as a user runs them: through the commands, on a few sentences of a made-up language."""

from __future__ import annotations

import json
import logging
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyseq.cli import generate, preprocess, train
from pyseq.config.config import config_from_args
from pyseq.config.parser import get_training_parser, parse_args_and_arch
from pyseq.errors import ConfigError
from pyseq.user_dir import import_user_dir

PLUGINS = Path(__file__).parents[2] / "examples" / "plugins"
PRE_NORM = ["--encoder-normalize-before", "--decoder-normalize-before"]
TINY_TRANSFORMER = ["--arch", "transformer_tiny", "--dropout", "0", *PRE_NORM]
ADAM = ["--optimizer", "adam", "--lr", "0.002"]


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """The commands log to the standard output of the test, which is gone after it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language of ten words and its translation, word for word."""
    folder = tmp_path_factory.mktemp("plugins")
    rng = random.Random(0)
    for split, size in (("train", 800), ("valid", 30), ("test", 20)):
        sentences = [[rng.randrange(10) for _ in range(rng.randint(2, 5))] for _ in range(size)]
        for language, letter in (("xx", "x"), ("yy", "y")):
            text = "".join(" ".join(f"{letter}{word}" for word in sentence) + "\n" for sentence in sentences)
            (folder / f"{split}.{language}").write_text(text)
    prefixes = [part for split in ("train", "valid", "test") for part in (f"--{split}pref", str(folder / split))]
    preprocess.main(["-s", "xx", "-t", "yy", *prefixes, "--destdir", str(folder / "bin"), "--padding-factor", "1"])
    return folder / "bin"


def run(data: Path, plugin: str, save_dir: Path, *options: str, epochs: int = 4) -> list[dict[str, Any]]:
    """Train with the plug-in; returns the records of ``metrics.jsonl``."""
    train.main([
        str(data), "--user-dir", str(PLUGINS / plugin), "--save-dir", str(save_dir), "--max-epoch", str(epochs),
        "--max-tokens", "200", "--num-workers", "0", "--cpu", "--log-interval", "5", "--no-epoch-checkpoints",
        "--no-progress-bar", *options,
    ])  # fmt: skip
    return [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]


def values(records: list[dict[str, Any]], key: str, tag: str = "valid") -> list[float]:
    return [record[key] for record in records if record["tag"] == tag]


def generated(
    data: Path, save_dir: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[list[str], list[str]]:
    """References and best hypotheses of the test set."""
    capsys.readouterr()
    generate.main([
        str(data), "-s", "xx", "-t", "yy", "--path", str(save_dir / "checkpoint_last.pt"), "--beam", "2",
        "--max-tokens", "400", "--max-len-b", "10", "--num-workers", "0", "--cpu", *options,
    ])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    references = {int(m[1]): m[2] for line in lines if (m := re.match(r"T-(\d+)\t(.*)", line))}
    outputs = {int(m[1]): m[2] for line in lines if (m := re.match(r"H-(\d+)\t\S+\t(.*)", line))}
    assert sorted(references) == sorted(outputs) == list(range(20))
    return [references[i] for i in range(20)], [outputs[i] for i in range(20)]


def test_model_trains_and_generates(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--arch", "gru", "--embed-dim", "32", "--hidden-dim", "64", "--dropout", "0", *ADAM, "--lr", "0.004"]
    losses = values(run(data, "gru_model", tmp_path, *options, epochs=8), "loss")
    assert losses[-1] < 0.2 * losses[0]
    plugin = ["--user-dir", str(PLUGINS / "gru_model")]
    references, outputs = generated(data, tmp_path, capsys, *plugin)
    assert sum(r == o for r, o in zip(references, outputs)) >= 18


def test_model_decodes_a_token_at_a_time_as_it_does_at_once() -> None:
    module = import_user_dir(PLUGINS / "gru_model")
    assert module is not None
    from pyseq.data import Dictionary

    dictionary = Dictionary()
    for word in "abcdefgh":
        dictionary.add_symbol(word)
    torch.manual_seed(0)
    gru = module.models.gru
    cfg = gru.GRUConfig(embed_dim=8, hidden_dim=12, dropout=0.0)
    model = gru.GRUModel(gru.GRUEncoder(cfg, dictionary), gru.GRUDecoder(cfg, dictionary)).eval()
    pad = dictionary.pad()
    source = torch.tensor([[4, 5, 6, 7, 2], [pad, pad, 8, 9, 2]])
    encoder_out = model.encoder(source, torch.tensor([5, 3]))
    tokens = torch.tensor([[2, 4, 5, 6], [2, 7, 8, 9]])
    at_once, _ = model.decoder(tokens, encoder_out)
    state: dict[str, Any] = {}
    for length in range(1, 5):
        step, _ = model.decoder(tokens[:, :length], encoder_out, incremental_state=state)
        torch.testing.assert_close(step[:, 0], at_once[:, length - 1])
    # A reordered state continues the other row; padding to the left changes nothing.
    model.decoder.reorder_incremental_state_scripting(state, torch.tensor([1, 0]))
    swapped = model.encoder.reorder_encoder_out(encoder_out, torch.tensor([1, 0]))
    more = torch.tensor([[2, 7, 8, 9, 4], [2, 4, 5, 6, 4]])
    step, _ = model.decoder(more, swapped, incremental_state=state)
    expected, _ = model.decoder(more, swapped)
    torch.testing.assert_close(step[:, 0], expected[:, -1])
    alone, _ = model(source[1:, 2:], torch.tensor([3]), tokens[1:])
    torch.testing.assert_close(alone, at_once[1:])


def test_architecture_of_the_model_fills_in(data: Path) -> None:
    def hidden_dim(*options: str) -> int:
        argv = [str(data), "--user-dir", str(PLUGINS / "gru_model"), *ADAM, *options]
        return config_from_args(parse_args_and_arch(get_training_parser(), argv)).model.hidden_dim

    assert hidden_dim("--arch", "gru") == 256
    assert hidden_dim("--arch", "gru_wide") == 1024
    assert hidden_dim("--arch", "gru_wide", "--hidden-dim", "64") == 64


def test_criterion_trains(data: Path, tmp_path: Path) -> None:
    options = ["--criterion", "focal_loss", "--focal-gamma", "2", *TINY_TRANSFORMER, *ADAM]
    records = run(data, "focal_loss", tmp_path, *options)
    for key in ("loss", "nll_loss"):
        assert values(records, key)[-1] < 0.5 * values(records, key)[0], key
    last = records[-1]
    assert 0 < last["loss"] < last["nll_loss"] and last["ppl"] == pytest.approx(2 ** last["nll_loss"], rel=0.01)


def test_criterion_computes_its_formula(data: Path) -> None:
    module = import_user_dir(PLUGINS / "focal_loss")
    assert module is not None

    class Task:
        class target_dictionary:
            pad = staticmethod(lambda: 1)

    class Model(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return logits

        get_normalized_probs = staticmethod(lambda output, log_probs: output.log_softmax(-1))
        get_targets = staticmethod(lambda sample, output: sample["target"])

    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.tensor([[4, 2, 1], [3, 1, 1]])
    sample = {"net_input": {"logits": logits}, "target": target, "ntokens": 3}
    p = np.exp(logits.detach().numpy())
    p /= p.sum(-1, keepdims=True)
    rows = [p[0, 0, 4], p[0, 1, 2], p[1, 0, 3]]
    for gamma in (0.0, 0.5, 1.0, 2.0):
        loss, size, log = module.FocalLoss(Task(), gamma, sentence_avg=False)(Model(), sample)
        assert loss.item() == pytest.approx(sum((1 - q) ** gamma * -math.log(q) for q in rows), rel=1e-12)
        assert size == 3 and float(log["nll_loss"]) == pytest.approx(-sum(map(math.log, rows)), rel=1e-12)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all() and not gradient[target.eq(1)].any()
    certain = {**sample, "net_input": {"logits": torch.nn.functional.one_hot(target, 5) * 1e4}}
    certain["net_input"]["logits"].requires_grad_()
    loss, _, _ = module.FocalLoss(Task(), 0.5, sentence_avg=False)(Model(), certain)
    loss.backward()
    assert torch.isfinite(certain["net_input"]["logits"].grad).all()


def test_task_trains_and_generates(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--task", "noisy_translation", "--word-dropout", "0.15", *TINY_TRANSFORMER, *ADAM]
    losses = values(run(data, "noisy_translation", tmp_path, *options, epochs=8), "loss")
    assert losses[-1] < 0.4 * losses[0]
    plugin = ["--user-dir", str(PLUGINS / "noisy_translation"), "--task", "noisy_translation"]
    references, outputs = generated(data, tmp_path, capsys, *plugin)
    assert sum(r == o for r, o in zip(references, outputs)) >= 15


def test_task_drops_words_of_training_sources_alone(data: Path) -> None:
    module = import_user_dir(PLUGINS / "noisy_translation")
    assert module is not None
    noisy = module.tasks.noisy_translation
    cfg = noisy.NoisyTranslationConfig(data=str(data), word_dropout=0.3, seed=1, train_subset="train")
    cfg.dataset_impl, cfg.required_seq_len_multiple = None, 1
    task = noisy.NoisyTranslationTask.setup_task(cfg)
    task.load_dataset("train")
    task.load_dataset("valid")
    train_set, unk, eos = task.datasets["train"], task.src_dict.unk(), task.src_dict.eos()
    assert type(task.datasets["valid"]).__name__ == "LanguagePairDataset"

    def sources() -> list[list[int]]:
        return [train_set[i]["source"].tolist() for i in range(len(train_set))]

    first = sources()
    words = [word for source in first for word in source if word != eos]
    assert 0.25 < words.count(unk) / len(words) < 0.35
    assert all(source[-1] == eos for source in first) and first == sources()
    clean = [train_set.dataset[i]["source"].tolist() for i in range(len(train_set))]
    assert unk not in [word for source in clean for word in source]
    train_set.set_epoch(2)
    assert sources() != first
    train_set.set_epoch(1)
    assert sources() == first
    batch = train_set.collate_indices(list(range(8)))["net_input"]
    in_batch = [tokens[-length:].tolist() for tokens, length in zip(batch["src_tokens"], batch["src_lengths"])]
    assert sorted(in_batch) == sorted(first[:8])


def test_optimizer_trains_and_resumes(data: Path, tmp_path: Path) -> None:
    options = ["--optimizer", "lion", "--lr", "0.001", "--weight-decay", "0.01", *TINY_TRANSFORMER]
    losses = values(run(data, "lion_optimizer", tmp_path / "whole", *options, epochs=4), "loss")
    assert losses[-1] < 0.5 * losses[0]
    run(data, "lion_optimizer", tmp_path / "parts", *options, epochs=2)
    resumed = values(run(data, "lion_optimizer", tmp_path / "parts", *options, epochs=4), "loss")
    assert resumed == losses


def test_optimizer_computes_its_formula() -> None:
    module = import_user_dir(PLUGINS / "lion_optimizer")
    assert module is not None
    rng = np.random.default_rng(0)
    p, m = rng.standard_normal(50), np.zeros(50)
    parameter = torch.nn.Parameter(torch.tensor(p))
    cfg = module.LionConfig(lion_betas=(0.9, 0.99), weight_decay=0.1, lr=[0.01])
    optimizer = module.LionOptimizer(cfg, [parameter])
    for _ in range(5):
        g = rng.standard_normal(50)
        parameter.grad = torch.tensor(g)
        optimizer.step()
        p = p - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * p)
        m = 0.99 * m + 0.01 * g
        np.testing.assert_allclose(parameter.detach().numpy(), p, rtol=1e-12)


def test_schedule_trains(data: Path, tmp_path: Path) -> None:
    options = ["--lr-scheduler", "wsd", "--warmup-updates", "5", "--cooldown-updates", "10", "--max-update", "90"]
    records = run(data, "wsd_schedule", tmp_path, *options, *TINY_TRANSFORMER, *ADAM, "--log-interval", "1", epochs=9)
    rates = dict(zip(values(records, "num_updates", "train_inner"), values(records, "lr", "train_inner")))
    assert max(rates) == 90 and values(records, "loss")[-1] < 0.5 * values(records, "loss")[0]
    # What is logged after update n is the rate of update n + 1.
    expected = {n: 0.002 * min(1, (n + 1) / 5, (90 - n) / 10) for n in rates}
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("plugin", "options", "message"),
    [
        ("focal_loss", ["--criterion", "focal_los"], "unknown criterion 'focal_los'. Did you mean 'focal_loss'?"),
        ("focal_loss", ["--criterion", "focal_loss", "--focal-gamma", "-1"], "--focal-gamma -1: cannot be negative"),
        ("gru_model", ["--arch", "gru_wid"], "unknown architecture 'gru_wid'. Did you mean 'gru_wide'"),
        ("gru_model", ["--arch", "gru", "--hiden-dim", "8"], "unknown flag --hiden-dim. Did you mean '--hidden-dim'"),
        ("lion_optimizer", ["--optimizer", "lion", "--lion-betas", "0.9"], "--lion-betas .*: give two numbers"),
        ("noisy_translation", ["--task", "noisy_translation", "--word-dropout", "1"], "--word-dropout 1: must be"),
        ("wsd_schedule", ["--lr-scheduler", "wsd", "--max-update", "9"], "must fit into --max-update, which is 9"),
    ],
)  # fmt: skip
def test_mistakes_get_one_message(data: Path, tmp_path: Path, plugin: str, options: list[str], message: str) -> None:
    defaults = [] if "--arch" in options else ["--arch", "transformer_tiny"]
    optimizer = [] if "--optimizer" in options else ["--optimizer", "adam"]
    with pytest.raises(ConfigError, match=message):
        run(data, plugin, tmp_path, *defaults, *optimizer, "--lr", "0.01", *options)


def test_help_lists_the_plugins_options(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        train.main([str(data), "--user-dir", str(PLUGINS / "focal_loss"), "--criterion", "focal_loss", "--help"])
    assert exit.value.code in (0, None)
    assert "--focal-gamma" in capsys.readouterr().out
