"""What softmax cross-entropy is: its options, and the torch reference that the kernels are held to.

For a row x of V logits with class y, and class weights w (1 without them)::

    z      = soft_cap tanh(x / soft_cap)      z = x without a soft cap
    lse    = log sum_v exp z_v                p = exp(z - lse) = softmax(z)
    nll    = -log p_y
    smooth = -sum_v w_v log p_v               over all V classes, y and padding included
    loss   = nll_weight w_y nll + smooth_weight smooth + z_loss lse^2

    form       nll_weight          smooth_weight            target distribution
    "fairseq"  1 - eps - eps_v     eps_v = eps / (V - 1)    y keeps 1 - eps
    "torch"    1 - eps             eps_v = eps / V          y keeps 1 - eps + eps / V

In both forms the loss without z-loss is -sum_v w_v q_v log p_v for the smoothed target distribution q; with class
weights the second is that of :func:`torch.nn.functional.cross_entropy`. (Szegedy et al. 2016, "Rethinking the Inception
Architecture for Computer Vision", section 7, is the second form. z-loss: Chowdhery et al. 2022, "PaLM", section 5.
Soft cap: Gemma Team 2024, "Gemma 2", section 2.) A weight of 0 drops its term, even where that is infinite.
Arithmetic is fp32 or better and losses are fp32, whatever the dtype of the logits.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyseq.errors import DataError

SmoothingForm = Literal["fairseq", "torch"]
Reduction = Literal["none", "mean", "sum"]


class TargetOutOfRangeError(DataError, IndexError):
    """A target is neither a class nor ``ignore_index``."""


class CrossEntropyRows(NamedTuple):
    """What is known of each row. Rows that are ignored have 0, 0, False and 0."""

    loss: Tensor  # fp32, differentiable
    nll_loss: Tensor  # fp32: -log p_y, without smoothing, class weights and z-loss
    correct: Tensor  # bool: the target is the first of the largest logits (after the soft cap)
    z_loss: Tensor  # fp32: the part of the loss that is the z-loss


class CrossEntropySums(NamedTuple):
    """Sums over the rows that are not ignored: 0-d tensors on the device of the logits."""

    loss: Tensor  # fp32, differentiable
    nll_loss: Tensor  # fp32: without smoothing, class weights and z-loss
    n_correct: Tensor  # int64: rows whose target is the first of the largest logits
    z_loss: Tensor  # fp32: the part of the loss that is the z-loss


class Options(NamedTuple):
    """What a loss is made of; the head of this file has the formulas."""

    label_smoothing: float = 0.0
    smoothing_form: str = "torch"
    z_loss: float = 0.0
    soft_cap: float = 0.0  # 0: none
    weight: Tensor | None = None  # [V] class weights: fp32 and contiguous for kernels

    def smoothing_weights(self, classes: int) -> tuple[float, float]:
        """``nll_weight`` and ``smooth_weight``. With one class there is none to spread to."""
        if self.label_smoothing == 0.0 or classes <= 1:
            return 1.0, 0.0
        if self.smoothing_form == "fairseq":
            each = self.label_smoothing / (classes - 1)
            return 1.0 - self.label_smoothing - each, each
        return 1.0 - self.label_smoothing, self.label_smoothing / classes


def out_of_range(target: Tensor, row: int, classes: int, ignore_index: int) -> TargetOutOfRangeError:
    return TargetOutOfRangeError(
        f"the target of row {row} is {int(target[row])}: it must be in [0, {classes}), or ignore_index ({ignore_index})"
    )


def divisor_of(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What a mean divides by: the rows that are not ignored, or the sum of the class weights of their targets. 0-d."""
    active = target != ignore_index
    if weight is None:
        return active.sum()
    if weight.numel() == 0:
        return weight.sum()
    # A target out of range is told of by the kernel; here it must not stop a GPU.
    of_target = weight[target.clamp(0, weight.numel() - 1).long()]
    return torch.where(active, of_target, 0.0).sum()


def total(rows: Tensor) -> Tensor:
    """The sum of the rows: an fp64 sum, rounded to fp32."""
    return rows.sum(dtype=torch.float64).to(rows.dtype)


def reference(logits: Tensor, target: Tensor, options: Options, ignore_index: int) -> CrossEntropyRows:
    """The rows of [N, V] logits and [N] targets, in plain torch: what the kernels compute.

    Ignored rows are replaced, not multiplied by 0: 0 times inf would be nan, in the loss and in the gradient.
    """
    classes = logits.size(1)
    ignored = target == ignore_index
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = ((target < 0) | (target >= classes)) & ~ignored
        if bad.any():
            raise out_of_range(target, int(bad.nonzero()[0]), classes, ignore_index)
    x = logits.masked_fill(ignored.unsqueeze(1), 0.0).to(torch.promote_types(logits.dtype, torch.float32))
    if classes == 0:  # every row is ignored
        zero = x.sum(dim=1)
        return CrossEntropyRows(zero, zero.detach(), torch.zeros_like(ignored), zero.detach())
    x = _capped(x, options)
    y = target.masked_fill(ignored, 0)
    log_probs = torch.log_softmax(x, dim=1)
    nll = -log_probs.gather(1, y.unsqueeze(1)).squeeze(1)
    loss = _smoothed(log_probs, nll, y, options)
    z_loss = torch.zeros_like(nll)
    if options.z_loss != 0.0:
        z_loss = options.z_loss * torch.logsumexp(x, dim=1).square()
        loss = loss + z_loss
    loss, nll, z_loss = (part.masked_fill(ignored, 0.0) for part in (loss, nll, z_loss))
    return CrossEntropyRows(loss, nll.detach(), (x.argmax(dim=1) == target) & ~ignored, z_loss.detach())


def reference_of_probabilities(logits: Tensor, target: Tensor, options: Options) -> Tensor:
    """The losses [...] of [..., V] logits against probabilities [..., V], in plain torch.

    The target distribution is smoothed as that of a class is: nll_weight target + smooth_weight.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    x = _capped(logits.to(dtype), options)
    nll_weight, smooth_weight = options.smoothing_weights(x.size(-1))
    q = nll_weight * target.to(dtype) + smooth_weight
    if options.weight is not None:
        q = q * options.weight
    loss = -(q * torch.log_softmax(x, dim=-1)).sum(dim=-1)
    return loss if options.z_loss == 0.0 else loss + options.z_loss * torch.logsumexp(x, dim=-1).square()


def _capped(x: Tensor, options: Options) -> Tensor:
    return x if options.soft_cap == 0.0 else options.soft_cap * torch.tanh(x / options.soft_cap)


def _smoothed(log_probs: Tensor, nll: Tensor, y: Tensor, options: Options) -> Tensor:
    """The loss without z-loss."""
    nll_weight, smooth_weight = options.smoothing_weights(log_probs.size(1))
    if options.weight is None:
        return nll if smooth_weight == 0.0 else nll_weight * nll - smooth_weight * log_probs.sum(dim=1)
    weight = options.weight.detach().to(log_probs.dtype)
    of_target = nll_weight * weight[y]
    loss = of_target * nll.masked_fill(of_target == 0.0, 0.0)
    return loss if smooth_weight == 0.0 else loss - smooth_weight * (log_probs * weight).sum(dim=1)
