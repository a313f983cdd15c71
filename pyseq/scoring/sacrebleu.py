"""BLEU on text, as sacrebleu computes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyseq.config import ConfigGroup
from pyseq.scoring import Scorer, register_scorer
from pyseq.scoring.tokenizer import EvaluationTokenizer


@dataclass
class SacrebleuConfig(ConfigGroup):
    sacrebleu_tokenizer: str = field(
        default="13a",
        metadata={"help": "tokenizer of sacrebleu", "choices": ["none", "13a", "intl", "zh", "ja-mecab"]},
    )
    sacrebleu_lowercase: bool = field(default=False, metadata={"help": "lower-case before scoring"})
    sacrebleu_char_level: bool = field(default=False, metadata={"help": "score characters instead of words"})


@register_scorer("sacrebleu", dataclass=SacrebleuConfig)
class SacrebleuScorer(Scorer):
    """Corpus BLEU of detokenised text (Post, 2018)."""

    def __init__(self, cfg: SacrebleuConfig) -> None:
        super().__init__(cfg)
        self.tokenizer = EvaluationTokenizer(
            cfg.sacrebleu_tokenizer,
            lowercase=cfg.sacrebleu_lowercase,
            character_tokenization=cfg.sacrebleu_char_level,
        )

    def add_string(self, ref: str, pred: str) -> None:
        super().add_string(self.tokenizer.tokenize(ref), self.tokenizer.tokenize(pred))

    def score(self) -> float:
        return float(self._bleu().score)

    def result_string(self) -> str:
        return str(self._bleu().format())

    def _bleu(self) -> Any:
        from sacrebleu import corpus_bleu

        predictions, references = self.sentences()
        # force: do not warn that the text is tokenised. It is, by this class.
        return corpus_bleu(predictions, [references], tokenize="none", force=True)
