"""Scores of given targets against sums over the vocabulary in float64."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

from pyseq.errors import ConfigError
from pyseq.generation import SequenceGenerator, SequenceScorer
from pyseq.generation.sequence_scorer import output_layer
from pyseq.models import build_model

PAD, EOS = 1, 2


@pytest.fixture
def sample(make_sample, make_dictionary) -> dict[str, Any]:
    batch = make_sample(make_dictionary(12), [5, 3, 4])
    target = torch.tensor([[5, 6, 7, EOS], [8, EOS, PAD, PAD], [4, 11, EOS, PAD]])
    batch["net_input"]["prev_output_tokens"] = torch.cat([torch.full((3, 1), EOS), target[:, :-1]], 1)
    return {**batch, "target": target}


def brute_force(models: list[Any], sample: dict[str, Any]) -> torch.Tensor:
    probs = torch.stack([model(**sample["net_input"])[0].double().softmax(-1) for model in models])
    return probs.mean(0).gather(-1, sample["target"].unsqueeze(-1)).squeeze(-1).log()


@pytest.mark.parametrize("softmax_batch", [None, 1, 5, 12, 100])
@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_log_probability_of_each_token(count, softmax_batch, sample, make_dictionary, make_model):
    dictionary = make_dictionary(12)
    models = [make_model(dictionary, seed) for seed in range(count)]
    expected = brute_force(models, sample)
    scored = SequenceScorer(dictionary, softmax_batch).generate(models, sample)
    for row, target, (hypothesis,), length in zip(expected, sample["target"], scored, (4, 2, 3)):
        assert hypothesis["tokens"].tolist() == target[:length].tolist()
        assert hypothesis["positional_scores"].tolist() == pytest.approx(row[:length].tolist(), abs=1e-5)
        assert float(hypothesis["score"]) == pytest.approx(float(row[:length].mean()), abs=1e-5)


def test_positions_before_the_start_are_context(sample, make_dictionary, make_model):
    dictionary = make_dictionary(12)
    models = [make_model(dictionary)]
    whole = SequenceScorer(dictionary).generate(models, sample)
    later = SequenceScorer(dictionary).generate(models, {**sample, "start_indices": [2, 0, 1]})
    for (one,), (other,), start in zip(whole, later, (2, 0, 1)):
        assert other["tokens"].tolist() == one["tokens"][start:].tolist()
        assert other["positional_scores"].tolist() == one["positional_scores"][start:].tolist()


def test_gives_generated_text_the_score_it_was_generated_with(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(30)
    model = make_model(dictionary)
    batch = make_sample(dictionary, [5, 3, 7])
    best = [found[0] for found in SequenceGenerator([model], dictionary, beam_size=4).generate([model], batch)]
    target = torch.nn.utils.rnn.pad_sequence([h["tokens"] for h in best], batch_first=True, padding_value=PAD)
    batch["net_input"]["prev_output_tokens"] = torch.cat([torch.full((3, 1), EOS), target[:, :-1]], 1)
    scored = SequenceScorer(dictionary).generate([model], {**batch, "target": target})
    for hypothesis, (again,) in zip(best, scored):
        assert again["tokens"].tolist() == hypothesis["tokens"].tolist()
        assert float(again["score"]) == pytest.approx(float(hypothesis["score"]), abs=1e-5)


@torch.no_grad()
def test_transformer_logits_are_made_piece_by_piece(sample, make_dictionary, monkeypatch):
    dictionary = make_dictionary(12)
    task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = build_model(argparse.Namespace(arch="transformer_tiny"), task).eval()
    assert output_layer(model) is not None
    sizes = []
    model.decoder.output_projection.register_forward_hook(lambda _, args, out: sizes.append(out.shape[1]))
    monkeypatch.setattr("pyseq.generation.sequence_scorer.LOGITS_AT_ONCE", 5 * 12)
    scored = SequenceScorer(dictionary, compute_alignment=True).generate([model], sample)
    assert sizes == [5, 5, 2]
    expected = brute_force([model], sample)
    for (hypothesis,), row, length in zip(scored, expected, (4, 2, 3)):
        assert hypothesis["positional_scores"].tolist() == pytest.approx(row[:length].tolist(), abs=1e-5)
        assert len(hypothesis["alignment"]) == length - 1
    assert SequenceScorer(dictionary).generate([model], sample)[0][0]["attention"] is None


def test_a_model_with_probabilities_of_its_own_is_asked_for_them(sample, make_dictionary, make_model, monkeypatch):
    dictionary = make_dictionary(12)
    model = make_model(dictionary)

    def halves(net_output: Any, log_probs: bool, sample: Any = None) -> torch.Tensor:
        return torch.full_like(net_output[0], -2.0)

    monkeypatch.setattr(type(model), "get_normalized_probs", lambda self, *args, **kwargs: halves(*args, **kwargs))
    assert SequenceScorer(dictionary).generate([model], sample)[0][0]["positional_scores"].tolist() == [-2.0] * 4


def test_softmax_batch_must_be_positive(make_dictionary):
    with pytest.raises(ConfigError, match="--softmax-batch"):
        SequenceScorer(make_dictionary(12), softmax_batch=-1)
