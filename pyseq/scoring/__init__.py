"""Scorers: how good is a translation, given a reference."""

from __future__ import annotations

from typing import Any

from pyseq.registry import Registry, choice_of, import_siblings
from pyseq.scoring.scorer import Scorer

__all__ = ["SCORERS", "Scorer", "build_scorer", "register_scorer"]

SCORERS = Registry("scoring", default="bleu")
register_scorer = SCORERS.register


def build_scorer(cfg: Any, tgt_dict: Any = None) -> Any:
    """The scorer that ``cfg`` chooses (its config, its name, or a flat namespace with ``scoring``).

    A scorer on token ids has a class method ``build_scoring(cfg, tgt_dict)`` and learns the special ids from
    ``tgt_dict``; others are built as ``cls(cfg)``.

    Raises:
        ConfigError: an unknown scorer, or settings that it cannot work with.
    """
    choice = choice_of(cfg, SCORERS.kind) or SCORERS.default
    assert choice is not None
    extra = [tgt_dict] if hasattr(SCORERS.entry(choice).cls, "build_scoring") else []
    return SCORERS.build(cfg, *extra, choice=choice)


import_siblings(__file__, __name__)
