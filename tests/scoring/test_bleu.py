from __future__ import annotations

import gzip
import math
import random

import numpy as np
import pytest
import torch
from sacrebleu import corpus_bleu

from pyseq.errors import ConfigError
from pyseq.scoring.bleu import BleuConfig, BleuScorer

PAD, EOS, UNK = 1, 2, 3


def scored(pairs, **options):
    scorer = BleuScorer(BleuConfig())
    scorer.reset(**options)
    for ref, pred in pairs:
        scorer.add(ref, pred)
    return scorer


def random_pairs(n, vocabulary, seed=0):
    rng = random.Random(seed)

    def sentence():
        return [rng.randrange(4, 4 + vocabulary) for _ in range(rng.randrange(1, 20))]

    return [(sentence(), sentence()) for _ in range(n)]


def brute_force(pairs, one_init=0):
    """Matches and counts by crossing off: each n-gram of the reference serves one n-gram of the prediction."""
    matches, counts = [0] + [one_init] * 3, [0] + [one_init] * 3
    for ref, pred in pairs:
        for n in range(1, 5):
            left = [tuple(ref[i : i + n]) for i in range(len(ref) - n + 1)]
            for i in range(len(pred) - n + 1):
                counts[n - 1] += 1
                if tuple(pred[i : i + n]) in left:
                    left.remove(tuple(pred[i : i + n]))
                    matches[n - 1] += 1
    return matches, counts


@pytest.mark.parametrize("vocabulary", [1, 2, 5, 50])
def test_counts_against_brute_force(vocabulary):
    pairs = random_pairs(100, vocabulary)
    scorer = scored(pairs)
    assert (scorer.matches, scorer.counts) == brute_force(pairs)
    assert scorer.ref_len == sum(len(ref) for ref, _ in pairs)
    assert scorer.pred_len == sum(len(pred) for _, pred in pairs)


@pytest.mark.parametrize("vocabulary", [2, 4])  # so few that 4-grams match too
def test_score_against_sacrebleu(vocabulary):
    pairs = random_pairs(200, vocabulary)
    scorer = scored(pairs)
    texts = [[" ".join(f"w{i}" for i in side) for side in sides] for sides in zip(*pairs)]
    theirs = corpus_bleu(texts[1], [texts[0]], tokenize="none", force=True)
    assert scorer.score() == pytest.approx(theirs.score, rel=1e-12)
    assert [100 * p for p in scorer.precision()] == pytest.approx(theirs.precisions, rel=1e-12)
    assert scorer.brevity() == pytest.approx(theirs.bp, rel=1e-12)


def test_score_of_lower_orders_is_the_mean_over_them():
    scorer = scored([([4, 5, 6, 7, 8, 9], [4, 5, 6, 9])])
    p1, p2, p3 = 4 / 4, 2 / 3, 1 / 2
    brevity = math.exp(1 - 6 / 4)
    assert scorer.score(order=1) == pytest.approx(100 * brevity * p1)
    assert scorer.score(order=3) == pytest.approx(100 * brevity * (p1 * p2 * p3) ** (1 / 3))
    assert scorer.score() == 0.0  # no 4-gram matches
    expected = f"BLEU2 = {100 * brevity * (p1 * p2) ** 0.5:.2f}, 100.0/66.7 (BP=0.607, ratio=0.667, syslen=4, reflen=6)"
    assert scorer.result_string(order=2) == expected


def test_the_reference_line_of_real_output_from_its_text(reference):
    refs, preds, result = {}, {}, ""
    with gzip.open(reference / "generate" / "update372.beam5.txt.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            kind, _, rest = line.rstrip("\n").partition("-")
            if kind == "T":
                number, text = rest.split("\t")
                refs[number] = text
            elif kind == "H":
                number, _, text = rest.split("\t")
                preds[number] = text
            elif line.startswith("Generate"):
                result = line.strip()
    assert len(refs) == len(preds) == 1000
    scorer = BleuScorer(BleuConfig())
    for number, ref in refs.items():
        scorer.add_string(ref, preds[number])
    assert result == f"Generate test with beam=5: {scorer.result_string()}"
    assert "BLEU4 = 24.67, 62.1/34.6/21.3/13.1 (BP=0.887, ratio=0.893, syslen=10806, reflen=12103)" in result


def test_padding_and_ends_of_sentence_are_not_counted():
    plain = scored([([4, 5, 6], [4, 5])])
    padded = scored([([PAD, PAD, 4, 5, 6, EOS, PAD], [4, 5, EOS, EOS])])
    assert padded.result_string() == plain.result_string()
    assert (padded.ref_len, padded.pred_len) == (3, 2)
    inside = scored([([4, EOS, 5], [4, PAD, 5])])
    assert (inside.ref_len, inside.pred_len) == (3, 3)


def test_a_prediction_of_nothing_counts_one_token():
    scorer = scored([([4, 5, EOS], [EOS]), ([PAD, 4, EOS], [PAD, EOS, EOS])])
    assert (scorer.ref_len, scorer.pred_len, scorer.matches[0]) == (3, 2, 0)


def test_an_unknown_token_of_the_reference_matches_nothing():
    assert scored([([4, UNK, 5], [4, UNK, 5])]).matches == [2, 0, 0, 0]
    scorer = BleuScorer(BleuConfig())
    scorer.add_string("a <unk> b", "a <unk> b")
    scorer.add_string("a <<unk>> b", "a <unk> b")
    assert scorer.matches == [4, 0, 0, 0]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, tuple])
def test_ids_may_be_tensors_arrays_or_sequences(kind):
    ref, pred = [4, 5, 6, UNK, EOS], [4, 5, 6, 7, EOS]
    ids = kind(ref)
    assert scored([(ids, kind(pred))]).result_string() == scored([(ref, pred)]).result_string()
    assert list(ids) == ref


def test_text_is_split_at_any_white_space():
    scorer = BleuScorer(BleuConfig())
    scorer.add_string("a  b\tc d e\n", "a b c\u3000d e </s>")
    assert scorer.score() == 100.0 and scorer.pred_len == 5


def test_smoothing_of_a_single_sentence():
    scorer = scored([([4, 5, 6, 7], [4, 5, 7])], one_init=True)
    expected = ([3, 2, 1, 1], [3, 3, 2, 1])
    assert (scorer.matches, scorer.counts) == expected == brute_force([([4, 5, 6, 7], [4, 5, 7])], one_init=1)
    geometric_mean = (1 * 2 / 3 * 1 / 2 * 1) ** 0.25
    assert scorer.score() == pytest.approx(100 * math.exp(1 - 4 / 3) * geometric_mean)
    scorer.reset()
    assert scorer.matches == scorer.counts == [0, 0, 0, 0]


def test_no_sentence_or_an_empty_one_scores_zero():
    empty = "BLEU4 = 0.00, 0.0/0.0/0.0/0.0 (BP=0.000, ratio=0.000, syslen=0, reflen=0)"
    assert scored([]).result_string() == scored([([], [])]).result_string() == empty
    assert scored([([4, 5], [])]).score() == 0.0
    assert scored([([], [4, 5])]).result_string().endswith("(BP=1.000, ratio=0.000, syslen=2, reflen=0)")


@pytest.mark.parametrize("order", [0, 5])
def test_orders_that_there_are_not(order):
    with pytest.raises(ConfigError, match="between 1 and 4"):
        scored([([4], [4])]).score(order=order)
