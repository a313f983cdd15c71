from __future__ import annotations

import pytest
from sacrebleu import corpus_bleu

from pyseq.errors import DataError
from pyseq.scoring import build_scorer
from pyseq.scoring.sacrebleu import SacrebleuConfig

REFS = ["The cat, sat on the mat.", "It isn't raining today, is it?"]
PREDS = ["the cat sat on the Mat.", "It isn't raining to-day, is it?"]


def scored(**options):
    scorer = build_scorer(SacrebleuConfig("sacrebleu", **options))
    for ref, pred in zip(REFS, PREDS):
        scorer.add_string(ref, pred)
    return scorer


@pytest.mark.parametrize("tokenizer", ["13a", "none", "intl"])
def test_score_is_that_of_sacrebleu(tokenizer):
    theirs = corpus_bleu(PREDS, [REFS], tokenize=tokenizer)
    scorer = scored(sacrebleu_tokenizer=tokenizer)
    assert scorer.score() == theirs.score
    assert scorer.result_string() == theirs.format()


def test_lower_case_and_characters():
    assert scored(sacrebleu_lowercase=True).score() == corpus_bleu(PREDS, [REFS], lowercase=True).score
    characters = [[" ".join(s.replace(" ", "_")) for s in side] for side in (PREDS, REFS)]
    theirs = corpus_bleu(characters[0], [characters[1]], tokenize="none", force=True)
    assert scored(sacrebleu_tokenizer="none", sacrebleu_char_level=True).score() == theirs.score


def test_nothing_to_score():
    with pytest.raises(DataError, match="no sentences"):
        build_scorer("sacrebleu").score()
