"""Softmax cross-entropy on logits, with label smoothing, class weights, z-loss and a soft cap.

The formulas are in :mod:`pyseq.ops.cross_entropy.definition`, beside the torch reference; the back ends in
:mod:`pyseq.ops.cross_entropy.kernels`. Where a gradient is wanted of a sum or a mean, it is computed together with the
losses: the logits are read once, and their gradient is written once.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import _reduction

from pyseq.ops import dispatch
from pyseq.ops.cross_entropy import library as library
from pyseq.ops.cross_entropy.autograd import Rows, Sums, donated_sums
from pyseq.ops.cross_entropy.checks import check_options, check_shapes
from pyseq.ops.cross_entropy.definition import (
    CrossEntropyRows,
    CrossEntropySums,
    Options,
    Reduction,
    SmoothingForm,
    TargetOutOfRangeError,
    divisor_of,
    reference,
    reference_of_probabilities,
    total,
)
from pyseq.ops.cross_entropy.kernels import KERNELS, Kernel, RowResults

__all__ = [
    "KERNELS",
    "CrossEntropyRows",
    "CrossEntropySums",
    "Inplace",
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

Inplace = Literal["donate"]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    smoothing_form: SmoothingForm = "torch",
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    inplace: Inplace | None = None,
    class_dim: int | None = None,
) -> Tensor:
    """Cross-entropy of logits: :func:`torch.nn.functional.cross_entropy`, and more by keyword.

    Args:
        input: logits of any floating dtype: [C], [N, C] or [N, C, d1, ...], or with the classes in ``class_dim``.
        target: classes in [0, C) or ``ignore_index``, integers, of the shape of ``input`` without its class dimension;
            or probabilities, floating-point, of the shape of ``input``, which are computed in plain torch.
        weight: [C] class weights, which are not differentiated.
        size_average, reduce: torch's older words for ``reduction``; they win, with torch's warning.
        ignore_index: rows with this target have loss 0 and gradient 0, even where their logits are inf or nan.
        reduction: ``"sum"``, ``"none"``, or ``"mean"``: the sum over the rows that are not ignored, divided by their
            number or, with class weights, by the sum of their targets' (nan if that is 0). With probabilities it is
            divided by the number of rows, as in torch.
        label_smoothing: eps in [0, 1].
        smoothing_form: ``"torch"`` or ``"fairseq"``.
        z_loss: the factor of the squared log-sum-exp that is added to the loss of a row.
        soft_cap: logits become ``soft_cap * tanh(logits / soft_cap)`` first.
        inplace: ``"donate"`` lets the gradient take the memory of ``input``, which the caller will not use again: a
            later use that is differentiated is an error, any other sees the gradient. ``input`` is then a contiguous
            [..., C] that is neither a leaf nor a view. It is left alone where no gradient is wanted of a sum or mean,
            in fp16 (whose gradients must be scaled before they are rounded), under torch.compile and in plain torch.
        class_dim: the class dimension of ``input``: as in torch for None, -1 for [..., V].

    Returns:
        0-d, or of the shape of ``target`` for ``"none"``. fp32; fp64 for fp64 logits. Differentiable once.

    Raises:
        TargetOutOfRangeError: on the CPU, with the row and the value. On other devices such a row has loss nan instead,
            since looking would wait for the device.
        ValueError, TypeError: shapes, devices, dtypes or options do not fit; or ``input`` cannot be donated.
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)  # type: ignore[assignment]
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', not {reduction!r}")
    logits = _classes_last(input, class_dim)
    options = check_options(logits, label_smoothing, smoothing_form, z_loss, soft_cap, weight)
    if target.is_floating_point() and input.is_floating_point():
        if ignore_index >= 0:
            raise ValueError("ignore_index is for targets that are classes, not for probabilities")
        if target.shape != input.shape:
            raise ValueError(
                f"a floating-point target is probabilities of the logits' shape {tuple(input.shape)}, not "
                f"{tuple(target.shape)}; classes are of an integer dtype"
            )
        rows = reference_of_probabilities(logits, _classes_last(target, class_dim), options)
        return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.mean()
    if reduction == "none":
        _check_inplace(inplace)
        return _rows(logits, target, options, ignore_index).loss
    return _sums(logits, target, options, ignore_index, reduction == "mean", inplace, loss_only=True)[0]


def _classes_last(input: Tensor, class_dim: int | None) -> Tensor:
    """``input`` with its class dimension as the last."""
    if input.dim() == 0:
        raise ValueError("logits are 0-d: they need a dimension of classes")
    if class_dim is None:
        class_dim = min(1, input.dim() - 1)
    if not -input.dim() <= class_dim < input.dim():
        raise ValueError(f"class_dim is {class_dim}, for logits {tuple(input.shape)}")
    return input if class_dim in (-1, input.dim() - 1) else input.movedim(class_dim, -1)


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
    inplace: Inplace | None = None,
) -> CrossEntropySums:
    """The sums that a trainer needs, from one pass over logits [..., V] and without waiting for the device.

    Arguments and errors are those of :func:`cross_entropy`; classes are the last dimension.
    """
    options = check_options(logits, label_smoothing, smoothing_form, z_loss, soft_cap, weight)
    return CrossEntropySums(*_sums(logits, target, options, ignore_index, False, inplace, loss_only=False))


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
    """Loss, nll, correctness and z-loss of each row of logits [..., V], of the shape of ``target``.

    Arguments and errors are those of :func:`cross_entropy`; classes are the last dimension.
    """
    options = check_options(logits, label_smoothing, smoothing_form, z_loss, soft_cap, weight)
    return _rows(logits, target, options, ignore_index)


def _rows(logits: Tensor, target: Tensor, options: Options, ignore_index: int) -> CrossEntropyRows:
    check_shapes(logits, target)
    chosen = dispatch.choose("cross_entropy", logits.device.type, logits.dtype)
    matrix, classes = _matrix(logits), target.reshape(-1).long()
    if chosen == "torch":
        rows = reference(matrix, classes, options, ignore_index)
    else:
        if torch.compiler.is_compiling():
            out = RowResults(*torch.ops.pyseq.cross_entropy(matrix, classes, *options, ignore_index))
        else:
            out = RowResults(*Rows.apply(matrix, classes, options, ignore_index, KERNELS[chosen]))
        rows = CrossEntropyRows(out.loss, out.nll, out.correct, out.z_loss(options))
    return CrossEntropyRows(*(part.view(target.shape) for part in rows))


def _sums(
    logits: Tensor,
    target: Tensor,
    options: Options,
    ignore_index: int,
    mean: bool,
    inplace: Inplace | None,
    loss_only: bool,
) -> tuple[Tensor, ...]:
    """The sums over all rows, or the first; the loss is divided by :func:`divisor_of` where ``mean``."""
    _check_inplace(inplace)
    check_shapes(logits, target)
    if not _gradient_comes_along(logits):
        rows = _rows(logits, target, options, ignore_index)
        loss = total(rows.loss) / divisor_of(target, options.weight, ignore_index) if mean else total(rows.loss)
        return (loss,) if loss_only else (loss, total(rows.nll_loss), rows.correct.sum(), total(rows.z_loss))
    kernel = KERNELS[dispatch.choose("cross_entropy", logits.device.type, logits.dtype)]
    arguments = target.reshape(-1).long(), options, ignore_index, kernel, mean, loss_only
    if inplace is None or logits.numel() == 0:
        sums: tuple[Tensor, ...] = Sums.apply(_matrix(logits), *arguments)
        return sums
    return donated_sums(logits, *arguments)


def _matrix(logits: Tensor) -> Tensor:
    return logits.flatten(0, -2) if logits.dim() > 1 else logits.unsqueeze(0)


def _gradient_comes_along(logits: Tensor) -> bool:
    """Whether the gradient of a sum is computed together with it.

    Not in fp16: a gradient of less than 2^-24 would be rounded to 0 before a loss scale can save it.
    """
    return (
        logits.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and logits.dtype != torch.float16
        and dispatch.choose("cross_entropy", logits.device.type, logits.dtype) != "torch"
    )


def _check_inplace(inplace: str | None) -> None:
    if inplace not in (None, "donate"):
        raise ValueError(f"inplace must be None or 'donate', not {inplace!r}")
