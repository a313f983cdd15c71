"""Operations: each a function with a torch reference and, behind it, faster back ends (:mod:`pyseq.ops.dispatch`)."""

from __future__ import annotations

from pyseq.ops.cross_entropy import (
    CrossEntropyRows,
    CrossEntropySums,
    Inplace,
    Reduction,
    SmoothingForm,
    TargetOutOfRangeError,
    cross_entropy,
    cross_entropy_rows,
    cross_entropy_sums,
)
from pyseq.ops.dispatch import backend, report

__all__ = [
    "CrossEntropyRows",
    "CrossEntropySums",
    "Inplace",
    "Reduction",
    "SmoothingForm",
    "TargetOutOfRangeError",
    "backend",
    "cross_entropy",
    "cross_entropy_rows",
    "cross_entropy_sums",
    "report",
]
