"""Byte-pair encoding with learnt merges (subword-nmt): every piece but the last of a word ends with the separator."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field

from pyseq.config.group import ConfigGroup
from pyseq.data.encoders import register_bpe
from pyseq.data.encoders.requirements import existing_file, required
from pyseq.errors import ConfigError


@dataclass
class SubwordNMTConfig(ConfigGroup):
    """The merges."""

    bpe_codes: str | None = field(default=None, metadata={"help": "path to the merges that subword-nmt has learnt"})
    bpe_separator: str = field(default="@@", metadata={"help": "mark of a piece that is not the last of its word"})


@register_bpe("subword_nmt", dataclass=SubwordNMTConfig)
class SubwordNMTBPE:
    """Raises ConfigError if subword-nmt is not installed, or the merges are missing or damaged."""

    def __init__(self, cfg: SubwordNMTConfig) -> None:
        codes = existing_file(cfg.bpe_codes, "--bpe-codes", "--bpe subword_nmt")
        package = required("subword_nmt.apply_bpe", "--bpe subword_nmt")
        self.bpe_symbol = cfg.bpe_separator + " "
        said = io.StringIO()  # the package prints what is wrong with the file, and exits
        try:
            with open(codes, encoding="utf-8") as file, contextlib.redirect_stderr(said):
                self.bpe = package.BPE(file, separator=cfg.bpe_separator)
        except (ValueError, SystemExit) as error:
            reason = said.getvalue().partition("\n")[0] or error
            raise ConfigError(f"--bpe-codes {codes}: not a file of merges ({reason})") from error

    def encode(self, x: str) -> str:
        text: str = self.bpe.process_line(x)
        return text

    def decode(self, x: str) -> str:
        return (x + " ").replace(self.bpe_symbol, "").rstrip()
