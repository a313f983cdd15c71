"""The generator against a beam search written with lists, and against the enumeration of all sequences."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyseq.errors import ConfigError, UserError
from pyseq.generation import BeamSearch, EnsembleModel, Search, SequenceGenerator, going_on

LENGTHS = [5, 3, 7, 4, 2, 6]
PAD, EOS, UNK = 1, 2, 3


@pytest.fixture(params=[0, 2, 50], ids=["", "ends known 2 steps later", "ends never known"])
def lag(request, monkeypatch):
    """How many steps later the host knows that a sentence has ended; on a GPU that is 2."""
    monkeypatch.setitem(going_on.LAG, "cpu", request.param)


def next_lprobs(models: list[Any], source: Tensor, prefixes: list[list[int]]) -> list[list[float]]:
    """Log of the models' mean probability of each token after each prefix: in float64, from whole prefixes."""
    probs = []
    for model in models:
        tokens = torch.tensor(prefixes)
        if hasattr(model, "encoder"):
            logits = model.decoder(tokens, encoder_out=model.encoder(source.expand(len(prefixes), -1)))[0]
        else:
            logits = model.decoder(tokens)[0]
        probs.append(logits[:, -1].double().softmax(-1))
    return torch.stack(probs).mean(0).log().tolist()


def listed_beam_search(
    models: list[Any],
    source: Tensor,
    beam: int,
    max_len: int,
    min_len: int = 1,
    lenpen: float = 1.0,
    normalize: bool = True,
    unkpen: float = 0.0,
    ngram: int = 0,
    prefix: tuple[int, ...] = (),
    start: int = EOS,
) -> list[dict[str, Any]]:
    """Beam search for one sentence, as its description reads, with lists."""
    live: list[tuple[float, list[int], list[float]]] = [(0.0, [start], [])]
    ended: list[dict[str, Any]] = []
    for step in range(max_len + 1):
        candidates = []
        next_of_each = next_lprobs(models, source, [tokens for _, tokens, _ in live])
        for (total, tokens, parts), lprobs in zip(live, next_of_each):
            lprobs[UNK] -= unkpen
            allowed = {token for token in range(len(lprobs)) if token != PAD}
            if step == max_len:
                allowed = {EOS}
            elif step < len(prefix):
                allowed = {prefix[step]}
            else:
                if step < min_len:
                    allowed -= {EOS}
                if ngram:
                    grams = [tokens[i : i + ngram] for i in range(len(tokens) - ngram + 1)]
                    last = tokens[len(tokens) - ngram + 1 :]
                    allowed -= {gram[-1] for gram in grams if gram[:-1] == last and gram[-1] != EOS}
            candidates += [(total + lprobs[t], [*tokens, t], [*parts, lprobs[t]]) for t in allowed]
        candidates.sort(key=lambda c: -c[0])
        for total, tokens, parts in candidates[:beam]:
            if tokens[-1] == EOS and len(ended) < beam:
                score = total / (step + 1) ** lenpen if normalize else total
                ended.append({"tokens": tokens[1:], "score": score, "positional_scores": parts})
        live = [c for c in candidates[: 2 * beam] if c[1][-1] != EOS][:beam]
        if len(ended) == beam or not live:
            break
    return sorted(ended, key=lambda h: -h["score"])


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [h["tokens"].tolist() for h in found] == [h["tokens"] for h in expected]
    for hypothesis, wanted in zip(found, expected):
        assert float(hypothesis["score"]) == pytest.approx(wanted["score"], abs=1e-4)
        assert hypothesis["positional_scores"].tolist() == pytest.approx(wanted["positional_scores"], abs=1e-4)


SETTINGS = {
    "beam 1": {"beam": 1},
    "beam 4": {"beam": 4},
    "beam wider than the vocabulary allows": {"beam": 50},
    "min length": {"beam": 3, "min_len": 4},
    "no min length": {"beam": 3, "min_len": 0},
    "fixed length": {"beam": 3, "min_len": 6, "max_len": 6},
    "one token": {"beam": 3, "max_len": 1},
    "length penalty": {"beam": 4, "lenpen": 0.3},
    "unnormalized": {"beam": 4, "normalize": False},
    "unknown penalty": {"beam": 4, "unkpen": 2.0},
    "unknown bonus": {"beam": 4, "unkpen": -2.0},
    "no unigram twice": {"beam": 4, "ngram": 1},
    "no bigram twice": {"beam": 4, "ngram": 2},
    "no trigram twice": {"beam": 4, "ngram": 3},
}


@pytest.mark.usefixtures("lag")
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("incremental", [True, False], ids=["incremental", "full prefix"])
@torch.no_grad()
def test_equals_a_beam_search_with_lists(setting, incremental, make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(12)
    options = {"max_len": 9, **setting}
    names = {"lenpen": "len_penalty", "normalize": "normalize_scores", "unkpen": "unk_penalty", "beam": "beam_size"}
    names |= {"ngram": "no_repeat_ngram_size", "max_len": "max_len_b"}
    for seed in range(2):
        model = make_model(dictionary, seed, incremental=incremental)
        sample = make_sample(dictionary, LENGTHS, seed)
        generator = SequenceGenerator([model], dictionary, **{names.get(k, k): v for k, v in options.items()})
        found = generator.generate([model], sample)
        options["beam"] = min(options["beam"], len(dictionary) - 1)
        for row, source in enumerate(sample["net_input"]["src_tokens"]):
            assert_same(found[row], listed_beam_search([model], source, **options))


@pytest.mark.usefixtures("lag")
@torch.no_grad()
def test_a_beam_that_the_first_step_cannot_fill(make_dictionary, make_model, make_sample):
    """Eleven candidates, one of which ends: the eleventh row must stay empty, not continue the one that ended."""
    dictionary = make_dictionary(12)
    for seed in range(3):
        model = make_model(dictionary, seed)
        logits, bonus = model.decoder.logits, 3.0 * torch.eye(12)[EOS]
        model.decoder.logits = lambda state, logits=logits, bonus=bonus: logits(state) + bonus
        sample = make_sample(dictionary, LENGTHS, seed)
        found = SequenceGenerator([model], dictionary, beam_size=11, min_len=0, max_len_b=5).generate([model], sample)
        for row, source in enumerate(sample["net_input"]["src_tokens"]):
            assert_same(found[row], listed_beam_search([model], source, 11, 5, min_len=0))


@torch.no_grad()
def test_the_best_of_all_sequences_is_found_with_a_beam_that_holds_them_all(make_dictionary, make_model, make_sample):
    """Only three words have any probability to speak of: 3 + 9 + 27 prefixes, a beam of 99."""
    dictionary = make_dictionary(100)
    words, max_len = (5, 17, 60), 3
    for seed in range(2):
        model = make_model(dictionary, seed)
        hidden = torch.full((100,), 1e4)
        hidden[[EOS, *words]] = 0
        logits = model.decoder.logits
        model.decoder.logits = lambda state, logits=logits, hidden=hidden: logits(state) - hidden
        sample = make_sample(dictionary, [4, 6], seed)
        found = SequenceGenerator([model], dictionary, beam_size=99, max_len_b=max_len).generate([model], sample)
        for row, source in enumerate(sample["net_input"]["src_tokens"]):
            scores = {}
            for length in range(1, max_len + 1):
                for sequence in itertools.product(words, repeat=length):
                    tokens, total = [EOS, *sequence, EOS], 0.0
                    for i in range(1, len(tokens)):
                        total += next_lprobs([model], source, [tokens[:i]])[0][tokens[i]]
                    scores[tuple(tokens[1:])] = total / (length + 1)
            best = sorted(scores, key=lambda s: -scores[s])[:39]
            assert [tuple(h["tokens"].tolist()) for h in found[row][:39]] == best
            for hypothesis, sequence in zip(found[row], best):
                assert float(hypothesis["score"]) == pytest.approx(scores[sequence], abs=1e-4)


def test_max_len_grows_with_the_longest_source(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(30)
    model = make_model(dictionary)
    model.decoder.out.data[EOS] = 0
    model.decoder.logits = lambda state: state @ model.decoder.out.t() - 50 * torch.eye(30)[EOS]
    sample = make_sample(dictionary, LENGTHS)
    generator = SequenceGenerator([model], dictionary, beam_size=2, max_len_a=1.5, max_len_b=1)
    lengths = {len(h["tokens"]) for found in generator.generate([model], sample) for h in found}
    assert lengths == {int(1.5 * 7 + 1) + 1}
    model.decoder.max_positions = lambda: 6
    generator = SequenceGenerator([model], dictionary, beam_size=2)
    assert {len(h["tokens"]) for found in generator.generate([model], sample) for h in found} == {6}


@pytest.mark.usefixtures("lag")
def test_prefix_tokens_of_different_lengths(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(12)
    prefixes = [(5, 6, 7), (8,), (), (9, 9, 9), (UNK, 5), (10, 11)]
    prefix_tokens = torch.tensor([[*p, *[PAD] * (3 - len(p))] for p in prefixes])
    for beam, ngram in ((1, 0), (3, 0), (3, 2)):
        model = make_model(dictionary, seed=beam)
        sample = make_sample(dictionary, LENGTHS, seed=beam)
        generator = SequenceGenerator([model], dictionary, beam, max_len_b=8, no_repeat_ngram_size=ngram, min_len=0)
        found = generator.generate([model], sample, prefix_tokens=prefix_tokens)
        for row, source in enumerate(sample["net_input"]["src_tokens"]):
            expected = listed_beam_search(
                [model], source, beam, max_len=8, min_len=0, ngram=ngram, prefix=prefixes[row]
            )
            if ngram and row in (1, 2, 4, 5):
                continue  # blocking begins for a batch when its longest prefix is through
            assert_same(found[row], expected)


@pytest.mark.usefixtures("lag")
def test_a_prefix_that_ends_the_sentence_ends_every_hypothesis(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(12)
    model = make_model(dictionary)
    sample = make_sample(dictionary, [5, 3])
    prefix_tokens = torch.tensor([[5, 6, EOS], [7, PAD, PAD]])
    generator = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=6)
    found = generator.generate([model], sample, prefix_tokens=prefix_tokens)
    assert [h["tokens"].tolist() for h in found[0]] == [[5, 6, EOS]] * 3
    assert len({float(h["score"]) for h in found[0]}) == 1
    sources = sample["net_input"]["src_tokens"]
    assert_same(found[1], listed_beam_search([model], sources[1], 3, 6, prefix=(7,)))


def test_language_model_continues_a_prefix_from_its_own_start_symbol(make_dictionary, make_model):
    dictionary = make_dictionary(12)
    model = make_model(dictionary, source=False)
    sample = {"net_input": {"src_tokens": torch.tensor([[5, 6], [7, PAD]])}}
    generator = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=6)
    found = generator.generate(
        [model], sample, prefix_tokens=sample["net_input"]["src_tokens"], bos_token=dictionary.bos()
    )
    for row, prefix in enumerate(((5, 6), (7,))):
        # The minimum length does not apply while a prefix is forced.
        expected = listed_beam_search([model], torch.tensor([]), 3, 6, prefix=prefix, start=dictionary.bos())
        assert_same(found[row], expected)


def test_ensemble_averages_probabilities(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(12)
    models = [make_model(dictionary, seed) for seed in (1, 2, 3)]
    sample = make_sample(dictionary, LENGTHS)
    found = SequenceGenerator(models, dictionary, beam_size=4, max_len_b=8).generate(models, sample)
    for row, source in enumerate(sample["net_input"]["src_tokens"]):
        assert_same(found[row], listed_beam_search(models, source, 4, 8))


def test_ensemble_of_one_model_twice_is_the_model(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(12)
    model = make_model(dictionary)
    sample = make_sample(dictionary, LENGTHS)
    single = SequenceGenerator([model], dictionary, beam_size=4).generate([model], sample)
    double = SequenceGenerator(EnsembleModel([model, model]), dictionary, beam_size=4).generate(None, sample)
    for one, two in zip(single, double):
        assert [h["tokens"].tolist() for h in one] == [h["tokens"].tolist() for h in two]
        assert [float(h["score"]) for h in one] == pytest.approx([float(h["score"]) for h in two], abs=1e-5)


def test_temperature_divides_the_logits(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(12)
    cool, warm = make_model(dictionary, seed=4), make_model(dictionary, seed=4)
    warm.decoder.out.data.div_(1.7)
    sample = make_sample(dictionary, LENGTHS)
    found = SequenceGenerator([cool], dictionary, beam_size=3, temperature=1.7, max_len_b=8).generate([cool], sample)
    for row, source in enumerate(sample["net_input"]["src_tokens"]):
        assert_same(found[row], listed_beam_search([warm], source, 3, 8))


@pytest.mark.usefixtures("lag")
def test_language_model_is_fused_in(make_dictionary, make_model, make_sample):
    """A weight of -1 on the model itself leaves nothing: all tokens are equal at every step."""
    dictionary = make_dictionary(12)
    model, lm = make_model(dictionary, source=False), make_model(dictionary, source=False)
    sample = make_sample(dictionary, [3, 4])
    generator = SequenceGenerator([model], dictionary, beam_size=2, max_len_b=5, lm_model=lm, lm_weight=-1.0)
    for found in generator.generate([model], sample):
        for hypothesis in found:
            assert hypothesis["positional_scores"].tolist() == pytest.approx([0] * len(hypothesis["tokens"]), abs=1e-5)


@pytest.mark.usefixtures("lag")
def test_a_sentence_does_not_depend_on_its_batch(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(40)
    model = make_model(dictionary, sharpness=0.7)
    sample = make_sample(dictionary, [9, 3, 12, 2, 6, 4, 8, 5] * 4)
    generator = SequenceGenerator([model], dictionary, beam_size=5, max_len_b=30)
    together = generator.generate([model], sample)
    for row, length in enumerate(sample["net_input"]["src_lengths"].tolist()):
        source = sample["net_input"]["src_tokens"][row : row + 1, -length:]
        (alone,) = generator.generate([model], {"net_input": {"src_tokens": source}})
        assert [h["tokens"].tolist() for h in alone] == [h["tokens"].tolist() for h in together[row]]
        for one, other in zip(alone, together[row]):
            assert one["positional_scores"].tolist() == pytest.approx(other["positional_scores"].tolist(), abs=1e-4)


def test_suppressed_tokens_never_come(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(8)
    model = make_model(dictionary)
    sample = make_sample(dictionary, LENGTHS)
    generator = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=9, tokens_to_suppress=["w0", "w2"])
    tokens = {t for found in generator.generate([model], sample) for h in found for t in h["tokens"].tolist()}
    assert tokens.isdisjoint({dictionary.index("w0"), dictionary.index("w2")})
    with pytest.raises(ConfigError, match="w77"):
        SequenceGenerator([model], dictionary, tokens_to_suppress=["w77"])


def test_scores_are_those_of_the_tokens(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(12)
    model = make_model(dictionary)
    sample = make_sample(dictionary, LENGTHS)
    for found in SequenceGenerator([model], dictionary, beam_size=4, len_penalty=0.6).generate([model], sample):
        scores = [float(h["score"]) for h in found]
        assert scores == sorted(scores, reverse=True)
        for h in found:
            total = float(h["positional_scores"].sum())
            assert float(h["score"]) == pytest.approx(total / len(h["tokens"]) ** 0.6, abs=1e-4)
            assert h["attention"].numel() == 0


class BestOfLastHalf(Search):
    """Candidates from the tokens of the upper half of the vocabulary and the end of sentence; counts its calls."""

    def __init__(self, tgt_dict: Any) -> None:
        super().__init__(tgt_dict)
        self.inner = BeamSearch(tgt_dict)
        self.shapes: list[tuple[int, ...]] = []
        self.ids: list[list[int]] = []
        self.begun = 0

    def init_constraints(self, batch_constraints: Tensor | None, beam_size: int) -> None:
        self.begun += 1

    def step(self, step, lprobs, scores, prev_output_tokens=None, original_batch_idxs=None):  # type: ignore[no-untyped-def]
        bsz, beam, vocab = lprobs.shape
        assert scores.shape == (bsz, beam, step)
        assert prev_output_tokens.shape == (bsz * beam, step + 1)
        self.shapes.append((bsz, beam, vocab))
        self.ids.append(original_batch_idxs.tolist())
        lprobs = lprobs.clone()
        lprobs[:, :, [t for t in range(vocab // 2) if t != EOS]] = -math.inf
        best, tokens, beams = self.inner.step(step, lprobs, scores, prev_output_tokens, original_batch_idxs)
        return best, tokens, tokens % beam if step == 0 else beams  # all are the same at first


@pytest.mark.usefixtures("lag")
def test_another_search_fits_in(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(40)
    model = make_model(dictionary)
    sample = make_sample(dictionary, LENGTHS)
    sample["id"] = torch.tensor([10, 20, 30, 40, 50, 60])
    search = BestOfLastHalf(dictionary)
    generator = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=9, search_strategy=search)
    found = generator.generate([model], sample)
    assert min(t for hs in found for h in hs for t in h["tokens"].tolist() if t != EOS) >= 20
    assert search.begun == 1
    assert {shape[1:] for shape in search.shapes} == {(3, 40)}
    assert search.ids[0] == [10, 20, 30, 40, 50, 60]
    assert all(set(later) <= set(earlier) for earlier, later in zip(search.ids, search.ids[1:]))
    with pytest.raises(ConfigError, match="BestOfLastHalf does not support constraints"):
        generator.generate([model], sample, constraints=torch.zeros(6, 1))


@pytest.mark.usefixtures("lag")
def test_weights_that_are_not_finite_are_told(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(12)
    model = make_model(dictionary)
    model.decoder.mix.data.fill_(math.nan)
    with pytest.raises(UserError, match="finite"):
        SequenceGenerator([model], dictionary, beam_size=3).generate([model], make_sample(dictionary, LENGTHS))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beam_size": 0}, "--beam"),
        ({"temperature": 0.0}, "--temperature"),
        ({"min_len": 11, "max_len_b": 10}, "--min-len 11"),
    ],
)
def test_settings_that_cannot_be(options, message, make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(12)
    model = make_model(dictionary)
    with pytest.raises(ConfigError, match=message):
        SequenceGenerator([model], dictionary, **options).generate([model], make_sample(dictionary, [3]))
