"""Steps as one operation and shortlists of tokens, against the same generation by the layers and all logits."""

from __future__ import annotations

import argparse

import pytest
import torch

import pyseq.ops as ops
from pyseq.generation import BeamSearch, SequenceGenerator
from pyseq.generation.ensemble import EnsembleModel
from pyseq.models import build_model
from pyseq.ops import dispatch
from support.backends import using_isa
from support.generation import VOCAB, assert_as_by_layers, is_fast

pytestmark = pytest.mark.skipif(not dispatch.status("cpp").available, reason=dispatch.status("cpp").detail)
LENGTHS = [7, 2, 9, 4, 4, 6, 3, 8]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoder_normalize_before": True, "decoder_normalize_before": True},
        {"activation_fn": "gelu", "decoder_learned_pos": True, "layernorm_embedding": True},
        {"decoder_embed_dim": 48, "decoder_attention_heads": 3, "decoder_output_dim": 48, "decoder_ffn_embed_dim": 50},
        {"decoder_embed_dim": 32, "decoder_output_dim": 64, "decoder_input_dim": 64},
    ],
)
@pytest.mark.parametrize("beam", [1, 5])
def test_architectures(options, beam, make_transformer, make_dictionary, make_sample):
    model = make_transformer(**options)
    assert is_fast(model)
    generator = SequenceGenerator([model], make_dictionary(VOCAB), beam, max_len_b=25)
    assert_as_by_layers(generator, make_sample(make_dictionary(VOCAB), LENGTHS))


@pytest.mark.parametrize(
    "options",
    [
        {"min_len": 4},
        {"unk_penalty": 2.0},
        {"unk_penalty": -3.0},
        {"tokens_to_suppress": ("w3", "w40"), "unk_penalty": 1.0},
        {"no_repeat_ngram_size": 2},
        {"temperature": 1.7},
        {"match_source_len": True},
        {"len_penalty": 0.2, "normalize_scores": False},
        {"max_len_b": 2},
    ],
    ids=str,
)
def test_options(options, make_transformer, make_dictionary, make_sample):
    dictionary = make_dictionary(VOCAB)
    options = {"max_len_b": 20, **options}
    generator = SequenceGenerator([make_transformer(5)], dictionary, beam_size=4, **options)
    assert_as_by_layers(generator, make_sample(dictionary, LENGTHS))


def test_prefixes(make_transformer, make_dictionary, make_sample):
    """All logits while a prefix is forced, shortlists afterwards."""
    dictionary = make_dictionary(VOCAB)
    pad, eos = dictionary.pad(), dictionary.eos()
    generator = SequenceGenerator([make_transformer()], dictionary, beam_size=4, max_len_b=12)
    prefix_tokens = torch.tensor([[7, 9], [eos, pad], [pad, pad], [8, pad]])
    assert_as_by_layers(generator, make_sample(dictionary, [7, 2, 9, 4]), prefix_tokens=prefix_tokens)


def test_ensembles_and_language_models(make_transformer, make_dictionary, make_sample):
    dictionary = make_dictionary(VOCAB)
    lm = make_transformer(9, arch="transformer_lm", decoder_layers=2, decoder_embed_dim=32, decoder_attention_heads=4)
    assert is_fast(lm)
    models = [make_transformer(1), make_transformer(2, decoder_normalize_before=True)]
    generator = SequenceGenerator(models, dictionary, beam_size=3, max_len_b=15, lm_model=lm, lm_weight=0.3)
    assert_as_by_layers(generator, make_sample(dictionary, LENGTHS))
    alone = SequenceGenerator([lm], dictionary, beam_size=3, max_len_b=15)
    assert_as_by_layers(alone, make_sample(dictionary, [4, 4, 4]))


def test_a_vocabulary_smaller_than_the_beams(make_dictionary, make_sample):
    """Rows without a hypothesis fill the beam and hold padding, which later positions must not attend to."""
    dictionary = make_dictionary(6)
    task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    torch.manual_seed(0)
    model = build_model(argparse.Namespace(arch="transformer_tiny"), task).eval()
    generator = SequenceGenerator([model], dictionary, beam_size=5, max_len_b=6)
    assert_as_by_layers(generator, make_sample(dictionary, [4, 2, 3]))


def test_a_search_of_ones_own_sees_all_tokens(make_transformer, make_dictionary, make_sample):
    dictionary = make_dictionary(VOCAB)

    class Odd(BeamSearch):
        """Only tokens with an odd number."""

        def step(self, step, lprobs, scores, *others):
            assert lprobs.size(-1) == VOCAB
            lprobs = lprobs.clone()
            lprobs[:, :, 4::2] = -torch.inf
            return super().step(step, lprobs, scores, *others)

        def step_unnormalized(self, step, logits, log_normalizer, scores, *others):
            return self.step(step, logits - log_normalizer.unsqueeze(-1), scores, *others)

    generator = SequenceGenerator(
        [make_transformer()], dictionary, beam_size=3, max_len_b=9, search_strategy=Odd(dictionary)
    )
    found = generator.generate(None, make_sample(dictionary, [5, 3]))
    assert all(token < 4 or token % 2 for hypotheses in found for h in hypotheses for token in h["tokens"].tolist())


def test_what_is_unusual_goes_through_the_layers(make_transformer, make_dictionary):
    model = make_transformer()
    assert is_fast(model)
    assert not model.decoder.new_incremental_state()  # gradients may be asked for
    handle = model.decoder.layers[0].fc1.register_forward_hook(lambda *args: None)
    assert not is_fast(model)
    handle.remove()
    model.decoder.need_attn = True
    assert not is_fast(model)
    model.decoder.need_attn = False
    model.train()
    assert not is_fast(model)
    model.eval()
    model.decoder.layers[1].dropout_module.apply_during_inference = True
    assert not is_fast(model)
    model.decoder.layers[1].dropout_module.apply_during_inference = False
    assert is_fast(model)
    assert not is_fast(make_transformer(scale_fc=True))
    assert not is_fast(make_transformer(cross_self_attention=True, no_cross_attention=True))
    assert is_fast(make_transformer().to(torch.bfloat16))
    assert not is_fast(make_transformer().to(torch.float16))
    with ops.backend("torch"):
        assert not is_fast(model)
        assert EnsembleModel([model]).output_weights() is None


def test_weights_that_change_are_read_again(make_transformer, make_dictionary, make_sample):
    """Training goes on between two validations that translate."""
    dictionary = make_dictionary(VOCAB)
    model = make_transformer()
    generator = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=12)
    sample = make_sample(dictionary, [5, 7])
    before = generator.generate(None, sample)
    other = make_transformer(4)
    model.load_state_dict(other.state_dict())
    assert_as_by_layers(generator, sample)
    with torch.no_grad():
        model.decoder.layers[0].fc1.bias.add_(1.0)
        model.decoder.output_projection.weight.mul_(-1)
    assert_as_by_layers(generator, sample)
    after = generator.generate(None, sample)
    assert [h["tokens"].tolist() for h in before[0]] != [h["tokens"].tolist() for h in after[0]]


@pytest.mark.parametrize("isa", ["", "avx2"])
def test_bfloat16(isa, make_transformer, make_dictionary, make_sample):
    """Generation in bfloat16 finds hypotheses whose exact scores are near those that it gives them."""
    dictionary = make_dictionary(VOCAB)
    model = make_transformer(3)
    sample = make_sample(dictionary, [5, 7, 3])
    exact = make_transformer(3)
    with using_isa(isa):
        generator = SequenceGenerator([model.to(torch.bfloat16)], dictionary, beam_size=3, max_len_b=10)
        assert generator.model.output_weights().bf16 is dispatch.multiplies_bf16()
        found = generator.generate(None, sample)
    for source, hypotheses in zip(sample["net_input"]["src_tokens"], found, strict=True):
        tokens = hypotheses[0]["tokens"]
        previous = torch.cat([torch.tensor([dictionary.eos()]), tokens[:-1]]).unsqueeze(0)
        with torch.no_grad():
            logits = exact(source.unsqueeze(0), None, previous)[0][0]
        lprobs = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        assert float(lprobs.mean()) == pytest.approx(float(hypotheses[0]["score"]), abs=0.15)
