from __future__ import annotations

from collections import Counter

import pytest

from pyseq.errors import DataError
from pyseq.scoring import build_scorer


def chrf2(ref, pred):
    """chrF with beta 2 over character 1- to 6-grams without white space, of one sentence."""
    ref, pred = ref.replace(" ", ""), pred.replace(" ", "")
    precisions, recalls = [], []
    for n in range(1, 7):
        r = Counter(ref[i : i + n] for i in range(len(ref) - n + 1))
        p = Counter(pred[i : i + n] for i in range(len(pred) - n + 1))
        match = sum((r & p).values())
        precisions.append(match / sum(p.values()))
        recalls.append(match / sum(r.values()))
    precision, recall = sum(precisions) / 6, sum(recalls) / 6
    return 100 * 5 * precision * recall / (4 * precision + recall)


def test_score_against_the_definition():
    ref, pred = "the cat sat on the mat", "the hat sat at the mat"
    scorer = build_scorer("chrf")
    scorer.add_string(ref, pred)
    assert scorer.score() == pytest.approx(chrf2(ref, pred), rel=1e-6)
    assert scorer.result_string() == f"chrF2 = {chrf2(ref, pred):.2f}"


def test_nothing_to_score():
    with pytest.raises(DataError, match="no sentences"):
        build_scorer("chrf").result_string()
