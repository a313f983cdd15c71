from __future__ import annotations

import pytest
from sacrebleu.metrics import BLEU

from pyseq.errors import ConfigError
from pyseq.scoring.tokenizer import EvaluationTokenizer

TEXT = 'A "Test", 3.5%: don\'t (Ärger) über-all 你好。'


@pytest.mark.parametrize("name", ["none", "13a", "intl", "zh"])
def test_tokenizers_are_those_of_sacrebleu(name):
    assert EvaluationTokenizer(name).tokenize(TEXT) == BLEU(tokenize=name).tokenizer(TEXT)


def test_characters_and_lower_case_come_after():
    assert EvaluationTokenizer("none", lowercase=True).tokenize("Äb C") == "äb c"
    assert EvaluationTokenizer("none", character_tokenization=True).tokenize("Ab C") == "A b \u2581 C"
    both = EvaluationTokenizer("13a", lowercase=True, character_tokenization=True)
    assert both.tokenize("A, b") == "a \u2581 , \u2581 b"


def test_a_tokenizer_that_is_not_installed(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("please install the package")

    monkeypatch.setattr("sacrebleu.metrics.BLEU", refuse)
    with pytest.raises(ConfigError, match="--sacrebleu-tokenizer ja-mecab cannot be used: please install"):
        EvaluationTokenizer("ja-mecab")
