"""chrF, as sacrebleu computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyseq.config import ConfigGroup
from pyseq.scoring import Scorer, register_scorer


@dataclass
class ChrFConfig(ConfigGroup):
    """chrF has no options."""


@register_scorer("chrf", dataclass=ChrFConfig)
class ChrFScorer(Scorer):
    """Character n-gram F-score, chrF2 (Popovic, 2015)."""

    def score(self) -> float:
        return float(self._chrf().score)

    def result_string(self) -> str:
        return str(self._chrf().format())

    def _chrf(self) -> Any:
        from sacrebleu import corpus_chrf

        predictions, references = self.sentences()
        return corpus_chrf(predictions, [references])
