"""Words that are separated by whitespace already."""

from __future__ import annotations

import re
from typing import Any

from pyseq.config.group import ConfigGroup
from pyseq.data.encoders import register_tokenizer

WHITESPACE = re.compile(r"\s+")


@register_tokenizer("space", dataclass=ConfigGroup)
class SpaceTokenizer:
    """Makes every run of whitespace one space."""

    def __init__(self, *unused: Any) -> None:
        pass

    def encode(self, x: str) -> str:
        return WHITESPACE.sub(" ", x)

    def decode(self, x: str) -> str:
        return x
