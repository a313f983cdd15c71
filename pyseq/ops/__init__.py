"""Operations: each a function with a torch reference and, behind it, faster back ends (:mod:`pyseq.ops.dispatch`)."""

from __future__ import annotations

from pyseq.ops.adam import adam_
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
from pyseq.ops.grad_norm import GradNorm, grad_norm, norm_from_squares, sum_of_squares
from pyseq.ops.remainder import join_master, split_master
from pyseq.ops.segments import AdamPlan

__all__ = [
    "AdamPlan",
    "CrossEntropyRows",
    "CrossEntropySums",
    "GradNorm",
    "Inplace",
    "Reduction",
    "SmoothingForm",
    "TargetOutOfRangeError",
    "adam_",
    "backend",
    "cross_entropy",
    "cross_entropy_rows",
    "cross_entropy_sums",
    "grad_norm",
    "join_master",
    "norm_from_squares",
    "report",
    "split_master",
    "sum_of_squares",
]
