"""The Moses tokenizer, by sacremoses."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyseq.config.group import ConfigGroup
from pyseq.data.encoders import register_tokenizer
from pyseq.data.encoders.requirements import required


@dataclass
class MosesTokenizerConfig(ConfigGroup):
    """The task's languages decide the rules."""

    source_lang: str = field(default="en", metadata={"help": "source language"})
    target_lang: str = field(default="en", metadata={"help": "target language"})
    moses_no_dash_splits: bool = field(default=False, metadata={"help": "do not split at dashes"})
    moses_no_escape: bool = field(default=False, metadata={"help": "do not escape quotes, apostrophes, & and so on"})


@register_tokenizer("moses", dataclass=MosesTokenizerConfig)
class MosesTokenizer:
    """Tokenizes the source language, detokenizes the target language.

    Raises:
        ConfigError: sacremoses is not installed.
    """

    def __init__(self, cfg: MosesTokenizerConfig) -> None:
        self.cfg = cfg
        sacremoses = required("sacremoses", "--tokenizer moses")
        # A translation task that finds its languages in the data leaves them None here.
        self.tokenizer = sacremoses.MosesTokenizer(cfg.source_lang or "en")
        self.detokenizer = sacremoses.MosesDetokenizer(cfg.target_lang or "en")

    def encode(self, x: str) -> str:
        text: str = self.tokenizer.tokenize(
            x,
            aggressive_dash_splits=not self.cfg.moses_no_dash_splits,
            return_str=True,
            escape=not self.cfg.moses_no_escape,
        )
        return text

    def decode(self, x: str) -> str:
        text: str = self.detokenizer.detokenize(x.split())
        return text
