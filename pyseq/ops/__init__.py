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
from pyseq.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_rows,
    linear_cross_entropy_sums,
)

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
    "linear_cross_entropy",
    "linear_cross_entropy_rows",
    "linear_cross_entropy_sums",
    "report",
]
