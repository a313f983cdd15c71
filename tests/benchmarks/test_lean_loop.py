"""The peer computes what pyseq computes, or a race against it would mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import lean_child, recipes
from benchmarks.flops import Counter, lengths_of
from benchmarks.lean_loop import Batch, Stopwatch, Transformer, train
from pyseq.cli import preprocess


@pytest.fixture(scope="module")
def stream_data(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream") / "bin"
    preprocess.main(["--only-source", "--trainpref", str(tiny_text / "train.en"), "--destdir", str(folder)])
    return folder


def pairs(data: Path) -> list[str]:
    return [str(data), *recipes.TINY, *recipes.SMALL_PAIRS, *recipes.CHECK, "--cpu", "--num-workers", "0"]


def stream(data: Path) -> list[str]:
    return [str(data), *recipes.LM, *recipes.SMALL_LM, *recipes.CHECK, "--cpu", "--num-workers", "0"]


def prepared(argv: list[str]) -> tuple[Any, Any, Any, list[dict[str, Any]], Transformer]:
    cfg, task, model = lean_child.build(argv)
    samples = lean_child.samples_of(cfg, task, model)
    own = lean_child.with_weights(Transformer(lean_child.sizes_of(cfg, task)), model.state_dict())
    return cfg, task, model, samples, own


def test_logits_are_those_of_pyseqs_model_on_padded_batches(joined_data: Path) -> None:
    _, task, model, samples, own = prepared(pairs(joined_data))
    real = None
    for sample in samples[:3]:
        inputs = sample["net_input"]
        real = sample["target"].ne(task.target_dictionary.pad())
        expected = model(**inputs)[0]
        found = own(inputs["src_tokens"], inputs["prev_output_tokens"])
        torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)
    assert any(not s["net_input"]["src_tokens"].ne(task.source_dictionary.pad()).all() for s in samples), real


def test_logits_of_the_language_model(stream_data: Path) -> None:
    _, _, model, samples, own = prepared(stream(stream_data))
    tokens = samples[0]["net_input"]["src_tokens"]
    torch.testing.assert_close(own(None, tokens), model(tokens)[0], rtol=1e-5, atol=1e-5)


def test_losses_are_those_of_pyseqs_own_training(joined_data: Path, tmp_path: Path) -> None:
    """Criterion, schedule, clipping and Adam: six updates that change the loss, from the same weights."""
    from benchmarks.train_child import Clock, watched
    from pyseq.training.epochs import Epochs
    from pyseq.training.loop import train as pyseq_train
    from pyseq.training.monitor import Monitor
    from pyseq.training.saving import Saver
    from pyseq.training.trainer import Trainer

    argv = [*pairs(joined_data), *recipes.QUIET, "--save-dir", str(tmp_path)]
    cfg, task, model, samples, own = prepared(argv)
    batches = [
        Batch(s["net_input"]["src_tokens"], s["net_input"]["prev_output_tokens"], s["target"], s["ntokens"])
        for s in samples
    ]
    training = lean_child.training_of(cfg, own.sizes.symbols, bf16=False)
    found = [float(loss) for loss in train(own, batches, training, Stopwatch(), lambda done: None)]

    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    epochs, clock = Epochs(cfg, task, model), Clock(warm_up=2)
    with Monitor(trainer, epochs, Saver(cfg.checkpoint)) as monitor, watched(clock, trainer, monitor):
        pyseq_train(trainer, epochs, monitor)
    figures = clock.figures()
    assert found == pytest.approx(figures["losses"], rel=2e-5)
    assert len(found) == recipes.CHECK_UPDATES and abs(found[-1] - found[0]) > 0.01
    assert figures["updates"] == recipes.CHECK_UPDATES - 2
    assert figures["tokens"] == sum(batch.tokens for batch in batches[2:])
    assert sum(figures["parts"].values()) == pytest.approx(figures["seconds"] / figures["updates"])
    assert all(figures["parts"][part] > 0 for part in ("forward", "criterion", "backward", "tail"))


def test_operations_are_counted_as_by_hand() -> None:
    from types import SimpleNamespace

    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            attention = {"k_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 4), "q_proj": nn.Linear(4, 4)}
            self.encoder = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"fc1": nn.Linear(4, 8)})])})
            self.encoder.embed_tokens = nn.Embedding(10, 4)
            layer = nn.ModuleDict({"encoder_attn": nn.ModuleDict(attention)})
            self.decoder = nn.ModuleDict({"layers": nn.ModuleList([layer])})
            self.decoder.embed_tokens = nn.Embedding(10, 4)
            self.decoder.embed_dim = 4

    for module in (model := Model()).decoder, model.encoder:
        module.__dict__["layers"] = [None]
    s, t = [3, 2], [2, 5]
    weights = 6 * (32 * sum(s) + (16 + 16) * sum(s) + (16 + 40) * sum(t))
    attention = 6 * 4 * sum(n * (n + 1) for n in t) + 12 * 4 * (
        sum(n * n for n in s) + sum(a * b for a, b in zip(s, t))
    )
    assert Counter(model).of(s, t) == weights + attention
    once = 2 * (32 + 16 + 16) * sum(s) + 4 * 4 * sum(n * n for n in s)
    for_each = 2 * (16 + 40) * sum(t) + 2 * 4 * sum(n * (n + 1) for n in t) + 4 * 4 * sum(a * b for a, b in zip(s, t))
    assert Counter(model).forward(s, t, beam=3) == once + 3 * for_each
    sample = {"target": torch.tensor([[4, 5, 1], [4, 5, 6]]), "net_input": SimpleNamespace()}
    assert lengths_of(sample, 1, pairs=False)[1].tolist() == [2, 3]
