"""Operations: each a function with a torch reference and, behind it, faster back ends (:mod:`pyseq.ops.dispatch`)."""

from __future__ import annotations

from pyseq.ops.cross_entropy import (
    CrossEntropyRows,
    CrossEntropySums,
    Reduction,
    TargetOutOfRangeError,
    cross_entropy,
    cross_entropy_rows,
    cross_entropy_sums,
)
from pyseq.ops.dispatch import backend, report
from pyseq.ops.dropout import dropout
from pyseq.ops.layer_norm import layer_norm

__all__ = [
    "CrossEntropyRows",
    "CrossEntropySums",
    "Reduction",
    "TargetOutOfRangeError",
    "backend",
    "cross_entropy",
    "cross_entropy_rows",
    "cross_entropy_sums",
    "dropout",
    "layer_norm",
    "report",
]
