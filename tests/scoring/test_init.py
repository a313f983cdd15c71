from __future__ import annotations

from argparse import Namespace

import pytest

from pyseq.errors import ConfigError
from pyseq.scoring import SCORERS, Scorer, build_scorer
from pyseq.scoring.bleu import BleuConfig, BleuScorer
from pyseq.scoring.chrf import ChrFScorer
from pyseq.scoring.sacrebleu import SacrebleuConfig, SacrebleuScorer


class Specials:
    """A dictionary whose special ids are not the usual ones."""

    def pad(self):
        return 7

    def eos(self):
        return 8

    def unk(self):
        return 9


@pytest.mark.parametrize("cfg", ["bleu", None, BleuConfig("bleu"), Namespace(scoring="bleu")])
def test_bleu_is_the_default_and_takes_its_ids_from_the_dictionary(cfg):
    scorer = build_scorer(cfg, Specials())
    assert isinstance(scorer, BleuScorer)
    assert (scorer.cfg.pad, scorer.cfg.eos, scorer.cfg.unk) == (7, 8, 9)


def test_others_do_without_a_dictionary():
    assert isinstance(build_scorer("chrf", Specials()), ChrFScorer)
    scorer = build_scorer(SacrebleuConfig("sacrebleu", sacrebleu_lowercase=True), None)
    assert isinstance(scorer, SacrebleuScorer) and scorer.cfg.sacrebleu_lowercase
    scorer = build_scorer(Namespace(scoring="sacrebleu", sacrebleu_tokenizer="none"), Specials())
    assert scorer.cfg.sacrebleu_tokenizer == "none"


def test_an_unknown_scorer_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown scoring 'blue'.*'bleu'"):
        build_scorer("blue", Specials())


def test_a_plug_in_needs_no_more_than_the_base_class():
    @SCORERS.register("test_exact_match")
    class ExactMatch(Scorer):
        def score(self):
            return sum(r == p for r, p in zip(self.ref, self.pred)) / len(self.ref)

    scorer = build_scorer("test_exact_match", Specials())
    scorer.add_string("a", "a")
    scorer.add_string("a", "b")
    assert scorer.score() == 0.5
    with pytest.raises(NotImplementedError, match="ExactMatch does not define result_string"):
        scorer.result_string()
