"""Tokenisation before scoring."""

from __future__ import annotations

from pyseq.errors import ConfigError

SPACE_SYMBOL = "\u2581"


class EvaluationTokenizer:
    """One of sacrebleu's tokenizers, then, if asked for, characters, then lower case.

    Args:
        tokenizer_type: sacrebleu's name of the tokenizer.
        lowercase: lower-case the text, after everything else.
        character_tokenization: split into characters; a space between tokens becomes U+2581.

    Raises:
        ConfigError: the tokenizer needs a package that is not installed.
    """

    def __init__(
        self, tokenizer_type: str = "13a", lowercase: bool = False, character_tokenization: bool = False
    ) -> None:
        from sacrebleu.metrics import BLEU

        try:
            self.tokenizer = BLEU(tokenize=tokenizer_type).tokenizer
        except (ImportError, RuntimeError) as error:
            raise ConfigError(f"--sacrebleu-tokenizer {tokenizer_type} cannot be used: {error}") from error
        self.lowercase = lowercase
        self.character_tokenization = character_tokenization

    def tokenize(self, text: str) -> str:
        tokenized: str = self.tokenizer(text)
        if self.character_tokenization:
            tokenized = " ".join(tokenized.replace(" ", SPACE_SYMBOL))
        return tokenized.lower() if self.lowercase else tokenized
