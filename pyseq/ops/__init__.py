"""Operations: each a function with a torch reference and, behind it, faster back ends (:mod:`pyseq.ops.dispatch`)."""

from __future__ import annotations

from pyseq.ops.adam import adam_
from pyseq.ops.attention import Segments, cross_attention, self_attention
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
from pyseq.ops.dropout import dropout
from pyseq.ops.gemm import gemm_
from pyseq.ops.grad_norm import GradNorm, grad_norm, norm_from_squares, sum_of_squares
from pyseq.ops.layer_norm import layer_norm
from pyseq.ops.linear import linear
from pyseq.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_rows,
    linear_cross_entropy_sums,
)
from pyseq.ops.outer_products import outer_products_
from pyseq.ops.remainder import join_master, split_master
from pyseq.ops.segments import AdamPlan

__all__ = [
    "AdamPlan",
    "CrossEntropyRows",
    "CrossEntropySums",
    "GradNorm",
    "Inplace",
    "Reduction",
    "Segments",
    "SmoothingForm",
    "TargetOutOfRangeError",
    "adam_",
    "backend",
    "cross_attention",
    "cross_entropy",
    "cross_entropy_rows",
    "cross_entropy_sums",
    "dropout",
    "gemm_",
    "grad_norm",
    "join_master",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "linear_cross_entropy_rows",
    "linear_cross_entropy_sums",
    "norm_from_squares",
    "outer_products_",
    "report",
    "self_attention",
    "split_master",
    "sum_of_squares",
]
