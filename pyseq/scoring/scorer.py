"""The base class of scorers."""

from __future__ import annotations

from typing import Any

from pyseq.errors import DataError


class Scorer:
    """Collects references and predictions as strings. A plug-in turns them into a score.

    A scorer that works on token ids has a method ``add(ref, pred)`` as well, and is given ids by preference.
    """

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self.ref: list[str] = []
        self.pred: list[str] = []

    def add_string(self, ref: str, pred: str) -> None:
        """Add one sentence: the reference, and what was predicted for it."""
        self.ref.append(ref)
        self.pred.append(pred)

    def sentences(self) -> tuple[list[str], list[str]]:
        """Predictions and references. Raises DataError if there are none."""
        if not self.pred:
            raise DataError("there are no sentences to score")
        return self.pred, self.ref

    def score(self) -> float:
        """The score of all sentences together."""
        raise NotImplementedError(f"{type(self).__name__} does not define score")

    def result_string(self) -> str:
        """The score with its details, on one line."""
        raise NotImplementedError(f"{type(self).__name__} does not define result_string")
