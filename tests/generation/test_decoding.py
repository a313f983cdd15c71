"""The transformer's caches under beam search: what they hold must follow every reordering."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyseq.errors import ConfigError
from pyseq.generation import SequenceGenerator, SequenceGeneratorWithAlignment
from pyseq.models import build_model


@pytest.fixture(scope="session")
def make_transformer(make_dictionary) -> Callable[..., Any]:
    """Small transformers with weights large enough for sharp, varied predictions."""

    def make(seed: int = 0, vocab: int = 60, **options: Any) -> Any:
        dictionary = make_dictionary(vocab)
        task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
        torch.manual_seed(seed)
        model = build_model(argparse.Namespace(arch="transformer_tiny", **options), task).eval()
        with torch.no_grad():
            model.decoder.output_projection.weight.mul_(3)
            model.decoder.output_projection.weight[dictionary.eos()].mul_(2)
        return model

    return make


def assert_same(found: list[list[dict[str, Any]]], others: list[list[dict[str, Any]]]) -> None:
    for hypotheses, expected in zip(found, others, strict=True):
        assert [h["tokens"].tolist() for h in hypotheses] == [h["tokens"].tolist() for h in expected]
        for one, other in zip(hypotheses, expected):
            assert one["positional_scores"].tolist() == pytest.approx(other["positional_scores"].tolist(), abs=1e-4)


@pytest.mark.parametrize("beam", [1, 4])
@pytest.mark.parametrize("options", [{}, {"cross_self_attention": True, "no_cross_attention": True}])
def test_with_caches_as_without(beam, options, make_transformer, make_dictionary, make_sample):
    """Sentences end at different steps, so the batch shrinks again and again."""
    dictionary = make_dictionary(60)
    model = make_transformer(**options)
    batch = make_sample(dictionary, [7, 2, 9, 4, 4, 6, 3, 8])
    cached = SequenceGenerator([model], dictionary, beam, max_len_b=25)
    uncached = SequenceGenerator([model], dictionary, beam, max_len_b=25)
    uncached.model.incremental = False
    found = cached.generate([model], batch)
    assert_same(found, uncached.generate([model], batch))
    assert len({len(h["tokens"]) for hypotheses in found for h in hypotheses}) > 3


def test_a_sentence_that_ends_at_once_does_not_disturb_the_others(make_transformer, make_dictionary, make_sample):
    """The caches still hold one row for each sentence then."""
    dictionary = make_dictionary(60)
    model = make_transformer()
    pad, eos = dictionary.pad(), dictionary.eos()
    prefix_tokens = torch.tensor([[pad], [eos], [pad], [7]])
    batch = make_sample(dictionary, [7, 2, 9, 4])
    cached = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=9)
    uncached = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=9)
    uncached.model.incremental = False
    found = cached.generate([model], batch, prefix_tokens=prefix_tokens)
    assert_same(found, uncached.generate([model], batch, prefix_tokens=prefix_tokens))
    assert [h["tokens"].tolist() for h in found[1]] == [[eos]]


def test_a_sentence_alone_and_in_a_batch(make_transformer, make_dictionary, make_sample):
    dictionary = make_dictionary(60)
    models = [make_transformer(1), make_transformer(2)]
    batch = make_sample(dictionary, [9, 2, 7, 4])
    generator = SequenceGenerator(models, dictionary, beam_size=3, max_len_b=20)
    together = generator.generate(models, batch)
    for row, length in enumerate(batch["net_input"]["src_lengths"].tolist()):
        source = batch["net_input"]["src_tokens"][row : row + 1, -length:]
        assert_same(generator.generate(models, {"net_input": {"src_tokens": source}}), [together[row]])


def test_decoders_are_left_as_they_were(make_transformer, make_dictionary, make_sample):
    """Training goes on with the same modules after a validation that translates."""
    dictionary = make_dictionary(60)
    model = make_transformer()
    batch = make_sample(dictionary, [5, 3])
    net_input = {**batch["net_input"], "prev_output_tokens": batch["net_input"]["src_tokens"]}
    before = model(**net_input)[0]
    sizes = []
    model.decoder.layers[0].encoder_attn.set_beam_size = sizes.append
    SequenceGeneratorWithAlignment([model], dictionary, beam_size=4).generate([model], batch)
    assert sizes == [1, 4, 1]
    after, extra = model(**net_input)
    assert torch.equal(before, after)
    assert extra["attn"] == [None]


def test_alignment_is_where_the_attention_is_largest(make_transformer, make_dictionary, make_sample):
    dictionary = make_dictionary(60)
    model = make_transformer()
    batch = make_sample(dictionary, [7, 4])
    plain = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=12).generate([model], batch)
    hard = SequenceGeneratorWithAlignment([model], dictionary, beam_size=3, max_len_b=12).generate([model], batch)
    soft = SequenceGeneratorWithAlignment(
        [model], dictionary, beam_size=3, max_len_b=12, print_alignment="soft"
    ).generate([model], batch)
    assert_same(plain, hard)
    for row, (source, length) in enumerate(zip(batch["net_input"]["src_tokens"], (7, 4))):
        for one, other in zip(hard[row], soft[row]):
            previous = torch.cat([torch.tensor([dictionary.eos()]), one["tokens"][:-1]]).unsqueeze(0)
            encoded = model.encoder(source.unsqueeze(0))
            _, extra = model.decoder(previous, encoder_out=encoded, alignment_layer=1)
            attn = extra["attn"][0][0].detach()  # T x S
            assert torch.allclose(one["attention"].t(), attn, atol=1e-5)
            words = attn[:-1, -length:-1].argmax(dim=1).tolist()
            assert one["alignment"] == list(zip(words, range(len(words))))
            weights = [[float(weight) for weight in weights] for weights in other["alignment"]]
            assert torch.allclose(torch.tensor(weights), attn[:, -length:], atol=1e-5)


def test_a_model_without_attention_cannot_align(make_model, make_dictionary, make_sample):
    dictionary = make_dictionary(12)
    model = make_model(dictionary)
    with pytest.raises(ConfigError, match="attention"):
        SequenceGeneratorWithAlignment([model], dictionary).generate([model], make_sample(dictionary, [3]))
