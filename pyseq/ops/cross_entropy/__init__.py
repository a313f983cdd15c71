"""Softmax cross-entropy on logits, with label smoothing, class weights, z-loss and a soft cap.

The formulas are in :mod:`pyseq.ops.cross_entropy.definition`, beside the torch reference; the back ends in
:mod:`pyseq.ops.cross_entropy.kernels`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.cross_entropy import library as library
from pyseq.ops.cross_entropy.autograd import Rows
from pyseq.ops.cross_entropy.definition import (
    CrossEntropyRows,
    CrossEntropySums,
    Options,
    Reduction,
    SmoothingForm,
    TargetOutOfRangeError,
    reference,
)
from pyseq.ops.cross_entropy.kernels import KERNELS, Kernel, RowResults

__all__ = [
    "KERNELS",
    "CrossEntropyRows",
    "CrossEntropySums",
    "Kernel",
    "Options",
    "Reduction",
    "RowResults",
    "SmoothingForm",
    "TargetOutOfRangeError",
    "cross_entropy",
    "cross_entropy_rows",
    "cross_entropy_sums",
    "reference",
]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    smoothing_form: SmoothingForm = "torch",
    z_loss: float = 0.0,
    soft_cap: float | None = None,
) -> Tensor:
    """Cross-entropy of logits, as :func:`torch.nn.functional.cross_entropy` with the classes in the last dimension.

    Args:
        input: [..., V] logits, any floating dtype.
        target: [...] classes in [0, V), or ``ignore_index``. Integers, on the device of ``input``.
        weight: [V] class weights.
        ignore_index: rows with this target have loss 0 and gradient 0, even where their logits are inf or nan.
        reduction: ``"mean"`` over the rows that are not ignored (nan if there is none), ``"sum"``, or ``"none"``.
        label_smoothing: eps in [0, 1].
        smoothing_form: ``"torch"`` or ``"fairseq"``.
        z_loss: the factor of the squared log-sum-exp that is added to the loss of a row.
        soft_cap: logits become ``soft_cap * tanh(logits / soft_cap)`` first.

    Returns:
        0-d, or of the shape of ``target`` for ``"none"``. fp32; fp64 for fp64 logits. Differentiable once.

    Raises:
        TargetOutOfRangeError: on the CPU, with the row and the value. On other devices such a row has loss nan instead,
            since looking would wait for the device.
        ValueError, TypeError: shapes, devices, dtypes or options do not fit.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', not {reduction!r}")
    loss = cross_entropy_rows(
        input,
        target,
        label_smoothing=label_smoothing,
        smoothing_form=smoothing_form,
        ignore_index=ignore_index,
        z_loss=z_loss,
        soft_cap=soft_cap,
        weight=weight,
    ).loss
    if reduction == "none":
        return loss
    total = _sum(loss)
    return total if reduction == "sum" else total / normalizer(target, weight, ignore_index)


def normalizer(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What a mean divides by: the rows that are not ignored, or the sum of the class weights of their targets. 0-d."""
    active = target != ignore_index
    if weight is None:
        return active.sum()
    if weight.numel() == 0:
        return weight.sum()
    of_target = weight.detach()[target.clamp(0, weight.numel() - 1).long()]
    return torch.where(active, of_target, 0.0).sum()


def cross_entropy_sums(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    smoothing_form: SmoothingForm = "fairseq",
    ignore_index: int = -100,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    weight: Tensor | None = None,
) -> CrossEntropySums:
    """The sums that a trainer needs, from one pass over the logits and without waiting for the device.

    Arguments and errors are those of :func:`cross_entropy`.
    """
    rows = cross_entropy_rows(
        logits,
        target,
        label_smoothing=label_smoothing,
        smoothing_form=smoothing_form,
        ignore_index=ignore_index,
        z_loss=z_loss,
        soft_cap=soft_cap,
        weight=weight,
    )
    return CrossEntropySums(_sum(rows.loss), _sum(rows.nll_loss), rows.correct.sum(), _sum(rows.z_loss))


def cross_entropy_rows(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    smoothing_form: SmoothingForm = "fairseq",
    ignore_index: int = -100,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    weight: Tensor | None = None,
) -> CrossEntropyRows:
    """Loss, nll, correctness and z-loss of each row, of the shape of ``target``.

    Arguments and errors are those of :func:`cross_entropy`.
    """
    options = _options(logits, label_smoothing, smoothing_form, z_loss, soft_cap, weight)
    _check(logits, target)
    chosen = dispatch.choose("cross_entropy", logits.device.type, logits.dtype)
    matrix = logits.flatten(0, -2) if logits.dim() > 1 else logits.unsqueeze(0)
    classes = target.reshape(-1).long()
    if chosen == "torch":
        rows = reference(matrix, classes, options, ignore_index)
    else:
        if torch.compiler.is_compiling():
            out = RowResults(*torch.ops.pyseq.cross_entropy(matrix, classes, *options, ignore_index))
        else:
            out = RowResults(*Rows.apply(matrix, classes, options, ignore_index, KERNELS[chosen]))
        rows = CrossEntropyRows(out.loss, out.nll, out.correct, out.z_loss(options))
    return CrossEntropyRows(*(part.view(target.shape) for part in rows))


def _sum(rows: Tensor) -> Tensor:
    return rows.sum(dtype=torch.float64).to(rows.dtype)


def _options(
    logits: Tensor,
    label_smoothing: float,
    smoothing_form: str,
    z_loss: float,
    soft_cap: float | None,
    weight: Tensor | None,
) -> Options:
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    if smoothing_form not in ("fairseq", "torch"):
        raise ValueError(f"smoothing_form must be 'fairseq' or 'torch', not {smoothing_form!r}")
    if soft_cap is not None and not 0.0 < soft_cap < float("inf"):
        raise ValueError(f"soft_cap must be positive and finite, or None for no cap, not {soft_cap}")
    if not 0.0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss must be finite and not negative, not {z_loss}")
    if weight is not None:
        if logits.dim() == 0 or weight.shape != logits.shape[-1:]:
            raise ValueError(f"weight is {tuple(weight.shape)}: it must be [V], a number for each class of the logits")
        if weight.device != logits.device:
            raise ValueError(f"logits are on {logits.device}, weight is on {weight.device}")
        weight = weight.detach().to(torch.promote_types(logits.dtype, torch.float32)).contiguous()
    return Options(float(label_smoothing), smoothing_form, float(z_loss), float(soft_cap or 0.0), weight)


def _check(logits: Tensor, target: Tensor) -> None:
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating-point, not {logits.dtype}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"targets must be class numbers of an integer dtype, not {target.dtype}")
    if logits.dim() == 0 or logits.shape[:-1] != target.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} do not fit: logits have one more "
            "dimension, the classes, and it is the last"
        )
    if logits.device != target.device:
        raise ValueError(f"logits are on {logits.device}, the target is on {target.device}")
