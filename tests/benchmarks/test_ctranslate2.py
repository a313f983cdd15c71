"""The model that CTranslate2 is given is pyseq's: it gives the same sentences the same probabilities."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ctranslate2_child, ctranslate2_model, lean_child, machine, recipes
from benchmarks.harness import Unavailable
from benchmarks.runs import generation

installed = pytest.mark.skipif(importlib.util.find_spec("ctranslate2") is None, reason="ctranslate2 is not installed")
PRE_NORM = ("--encoder-normalize-before", "--decoder-normalize-before")
LEARNED = ("--encoder-learned-pos", "--decoder-learned-pos", "--max-source-positions", "64", "--layernorm-embedding")
UNSHARED = ("--activation-fn", "gelu", "--no-scale-embedding", "--decoder-attention-heads", "4")


def build(data: Path, *flags: str, shared: bool = True) -> tuple[Any, Any]:
    """Task and model, with biases and norms that are not those of a new model: 0 and 1 would hide mistakes."""
    recipe = [flag for flag in recipes.TINY if shared or flag != "--share-all-embeddings"]
    argv = [str(data), *recipe, *recipes.SMALL_PAIRS, "--encoder-layers", "2", "--decoder-layers", "3", "--cpu"]
    _, task, model = lean_child.build([*argv, *flags])
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return task, model.eval()


def log_probs(task: Any, model: Any, source: list[str], target: list[str]) -> torch.Tensor:
    """Of each symbol of the target and of its end."""
    source_ids, target_ids = (
        torch.tensor([*map(dictionary.index, symbols), dictionary.eos()])
        for dictionary, symbols in ((task.source_dictionary, source), (task.target_dictionary, target))
    )
    previous = target_ids.roll(1).unsqueeze(0)
    with torch.no_grad():
        logits, _ = model(source_ids.unsqueeze(0), torch.tensor([len(source_ids)]), previous)
    return logits[0].log_softmax(dim=-1).gather(1, target_ids.unsqueeze(1)).squeeze(1)


@installed
@pytest.mark.parametrize(
    ("flags", "shared"),
    [((), True), (PRE_NORM, True), ((*PRE_NORM, "--no-decoder-final-norm"), True), (LEARNED, True), (UNSHARED, False)],
    ids=["post-norm", "pre-norm", "no final norm", "learned positions", "nothing shared"],
)  # fmt: skip
def test_the_converted_model_gives_the_same_probabilities(
    joined_data: Path, flags: tuple[str, ...], shared: bool
) -> None:
    task, model = build(joined_data, *flags, shared=shared)
    symbols = task.source_dictionary.symbols[3:]  # <unk> and the words
    pairs = [(symbols[2:9], symbols[5:17]), (symbols[:1], symbols[:3]), (symbols[7:12] * 4, symbols[1:2])]
    found = ctranslate2_child.load(model, task, "float32").score_batch(*map(list, zip(*pairs)))
    for (source, target), score in zip(pairs, found):
        expected = log_probs(task, model, source, target)
        torch.testing.assert_close(torch.tensor(score.log_probs), expected, rtol=0, atol=5e-6)


@installed
def test_shared_tables_are_written_once(joined_data: Path, tmp_path: Path) -> None:
    task, model = build(joined_data)
    ctranslate2_model.convert(model, task, tmp_path / "model")
    stored = sum(parameter.numel() for parameter in model.parameters())
    positions = model.encoder.embed_positions.weights.numel()
    assert (tmp_path / "model" / "model.bin").stat().st_size < 4 * (stored + positions) * 1.1 + 20_000


def test_what_it_has_no_place_for_is_told(joined_data: Path) -> None:
    _, model = build(joined_data, "--scale-attn", "--no-token-positional-embeddings")
    with pytest.raises(Unavailable, match="no no_token_positional_embeddings, no scale_attn"):
        ctranslate2_model.check(model)


def test_where_it_cannot_run_the_side_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="ctranslate2"):
        generation.ctranslate2("CTranslate2, fp32", "float32", [], 0.1)
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx2"})
    with pytest.raises(Unavailable, match="VNNI"):
        generation.ctranslate2("CTranslate2, int8", "int8", [], 0.1)
    assert generation.ctranslate2("CTranslate2, fp32", "float32", [], 0.1).name == "CTranslate2, fp32"
