"""The output projection and softmax cross-entropy together; the logits of all rows never exist at once.

For a row h of D features, weights W [V x D] and bias b [V] the logits are W h + b; the losses on them are those of
:mod:`pyseq.ops.cross_entropy.definition`. Logits are made for a chunk of rows and turned into their gradient in place.
Where the losses are summed, the two products with that gradient are done at once, and the backward pass has nothing
left to do (:mod:`pyseq.ops.linear_cross_entropy.run`). A second backward pass computes them again.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.chunks import chunk_rows as planned_rows
from pyseq.ops.cross_entropy import (
    KERNELS,
    CrossEntropyRows,
    CrossEntropySums,
    Options,
    Reduction,
    SmoothingForm,
    divisor_of,
)
from pyseq.ops.cross_entropy import reference as reference_of_logits
from pyseq.ops.cross_entropy.checks import check_options
from pyseq.ops.linear_cross_entropy import library
from pyseq.ops.linear_cross_entropy.autograd import Call, LinearCrossEntropy, Results, summed
from pyseq.ops.linear_cross_entropy.run import Wanted

__all__ = ["linear_cross_entropy", "linear_cross_entropy_rows", "linear_cross_entropy_sums", "reference"]

ChunkRows = int | Literal["large"] | None


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    smoothing_form: SmoothingForm = "torch",
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    chunk_rows: ChunkRows = None,
) -> Tensor:
    """``cross_entropy(linear(input, linear_weight, linear_bias), target)`` in a small share of its memory.

    Takes what :func:`torch.nn.functional.linear_cross_entropy` of torch 2.13 takes. Under autocast the products are in
    its dtype, as those of :func:`torch.nn.functional.linear`; gradients of fp32 weights are summed and stay in fp32.

    Args:
        input: [..., D], any floating dtype.
        linear_weight: [V, D], of the dtype of ``input`` (any, under autocast). With more dimensions, [V, d1, ..., D],
            the logits are stored.
        target: [...] classes in [0, V), or ``ignore_index``; integers. Floating-point targets of the shape of the
            logits are probabilities of the classes; the logits are stored then, too.
        linear_bias: [V], of the dtype of ``input``.
        weight: [V] class weights.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, as in :func:`pyseq.ops.cross_entropy`. With ``"none"`` the
            backward pass makes the logits again.
        ignore_index: default -100. Rows with this target have loss 0 and gradient 0, even where the input is inf or
            nan.
        label_smoothing, smoothing_form, z_loss, soft_cap: as in :func:`pyseq.ops.cross_entropy`.
        options: a ``torch.nn.LinearCrossEntropyOptions``. Its ``batch_chunk_size`` is heeded; the others have nothing
            to choose: sums are fp32, and a graph may be retained.
        chunk_rows: rows of a chunk, if :func:`pyseq.ops.chunks.chunk_rows` shall not choose; ``"large"`` lets it choose
            what is faster on a CPU and takes more memory.

    Returns:
        0-d, or of the shape of ``target`` for ``"none"``. fp32; fp64 for fp64 input. Differentiable once.

    Raises:
        TargetOutOfRangeError: as :func:`pyseq.ops.cross_entropy`.
        ValueError, TypeError: shapes, devices, dtypes or options do not fit.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', not {reduction!r}")
    ignored = -100 if ignore_index is None else ignore_index
    if linear_weight.dim() > 2 or target.is_floating_point():
        if smoothing_form != "torch" or z_loss != 0.0 or soft_cap is not None:
            raise ValueError(
                "smoothing_form, z_loss and soft_cap need a linear_weight [V, D] and class numbers as targets"
            )
        logits = _logits(input, linear_weight, linear_bias)
        return F.cross_entropy(
            logits,
            target,
            weight=weight,
            reduction=reduction,
            ignore_index=ignored,
            label_smoothing=label_smoothing,
        )
    if chunk_rows is None:
        chunk_rows = getattr(options, "batch_chunk_size", None)
    rule = label_smoothing, smoothing_form, z_loss, soft_cap, weight
    call = _prepare(input, linear_weight, linear_bias, target, rule, ignored, chunk_rows)
    if reduction == "none":
        return _results(call, reduce=False)[0].view(target.shape)
    if reduction == "sum":
        return _results(call, reduce=True)[0]
    count = divisor_of(call.target, call.options.weight, ignored)
    scale = count.to(torch.promote_types(call.dtype, torch.float32)).reciprocal()
    if call.dtype != torch.float16:
        return _results(call._replace(scale=scale), reduce=True)[0]
    # p / N vanishes in fp16. The power of two is left to the backward pass, where it meets the scale of the loss.
    mantissa, exponent = torch.frexp(scale)
    return _results(call._replace(scale=mantissa), reduce=True)[0] * torch.exp2(exponent)


def linear_cross_entropy_sums(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    smoothing_form: SmoothingForm = "fairseq",
    ignore_index: int = -100,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    weight: Tensor | None = None,
    chunk_rows: ChunkRows = None,
) -> CrossEntropySums:
    """The sums that a trainer needs; see :func:`pyseq.ops.cross_entropy_sums`.

    Arguments and errors are those of :func:`linear_cross_entropy`.
    """
    rule = label_smoothing, smoothing_form, z_loss, soft_cap, weight
    call = _prepare(input, linear_weight, linear_bias, target, rule, ignore_index, chunk_rows)
    return CrossEntropySums(*_results(call, reduce=True))


def linear_cross_entropy_rows(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    smoothing_form: SmoothingForm = "fairseq",
    ignore_index: int = -100,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    weight: Tensor | None = None,
    chunk_rows: ChunkRows = None,
) -> CrossEntropyRows:
    """Loss, nll, correctness and z-loss of each row, of the shape of ``target``.

    The backward pass makes the logits again. Arguments and errors are those of :func:`linear_cross_entropy`.
    """
    rule = label_smoothing, smoothing_form, z_loss, soft_cap, weight
    call = _prepare(input, linear_weight, linear_bias, target, rule, ignore_index, chunk_rows)
    return CrossEntropyRows(*(part.view(target.shape) for part in _results(call, reduce=False)))


def reference(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, options: Options, ignore_index: int
) -> CrossEntropyRows:
    """The rows of [N, D] features, [V, D] weights and [N] targets, in plain torch: what the chunks compute."""
    return reference_of_logits(F.linear(input, weight, bias), target, options, ignore_index)


def _logits(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits [N, V, d1, ...] of a weight [V, d1, ..., D], as torch's function has them."""
    classes, *positions, features = weight.shape
    flat_bias = None if bias is None else bias.reshape(-1)
    logits = F.linear(input, weight.reshape(classes * math.prod(positions), features), flat_bias)
    return logits.view(*input.shape[:-1], classes, *positions)


def _prepare(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    rule: tuple[float, str, float, float | None, Tensor | None],
    ignore_index: int,
    chunk_rows: ChunkRows,
) -> Call:
    _check(input, weight, bias, target, chunk_rows)
    options = check_options(weight.detach().t(), *rule)  # [..., V], as logits are
    features = input.reshape(-1, input.size(-1)) if input.dim() != 2 else input
    dtype = _autocast_dtype(input)
    if not isinstance(chunk_rows, int):
        on_gpu = input.device.type == "cuda"
        device_bytes = torch.cuda.get_device_properties(input.device).total_memory if on_gpu else 0
        sizes = target.numel(), len(weight), dtype.itemsize
        chunk_rows = planned_rows(*sizes, input.device.type, device_bytes, large=chunk_rows == "large")
    return Call(features, weight, bias, target.reshape(-1).long(), None, options, ignore_index, chunk_rows, dtype)


def _autocast_dtype(input: Tensor) -> torch.dtype:
    """The dtype that ``F.linear`` would compute in."""
    device = input.device.type
    if input.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return input.dtype


def _check(input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunk_rows: ChunkRows) -> None:
    if not input.is_floating_point():
        raise TypeError(f"input must be floating-point, not {input.dtype}")
    if target.is_complex() or target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"targets must be class numbers of an integer dtype, not {target.dtype}")
    if input.dim() == 0 or input.shape[:-1] != target.shape:
        raise ValueError(
            f"input {tuple(input.shape)} and target {tuple(target.shape)} do not fit: input has one more dimension, "
            "the features, and it is the last"
        )
    if weight.dim() != 2 or weight.size(1) != input.size(-1):
        raise ValueError(
            f"linear_weight is {tuple(weight.shape)}: for input {tuple(input.shape)} it must be [V, {input.size(-1)}]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear_bias is {tuple(bias.shape)}: it must be [{len(weight)}], a number for each class")
    autocast = torch.is_autocast_enabled(input.device.type)
    for name, tensor in (("linear_weight", weight), ("linear_bias", bias), ("target", target)):
        if tensor is None:
            continue
        if tensor.device != input.device:
            raise ValueError(f"input is on {input.device}, {name} is on {tensor.device}")
        if name != "target" and tensor.dtype != input.dtype and not autocast:
            raise TypeError(f"input is {input.dtype}, {name} is {tensor.dtype}: outside autocast they must be the same")
    if chunk_rows not in (None, "large") and not (isinstance(chunk_rows, int) and chunk_rows >= 1):
        raise ValueError(f"chunk_rows must be at least 1, 'large' or None, not {chunk_rows!r}")


def _results(call: Call, reduce: bool) -> Results:
    """Loss, nll, correctness and z-loss: 0-d sums (the first times ``call.scale``), or of each row."""
    chosen = dispatch.choose("linear_cross_entropy", call.input.device.type, call.dtype)
    if chosen == "torch":
        rows = reference(call.input, call.weight, call.bias, call.target, call.options, call.ignore_index)
        return summed(rows, call.scale) if reduce else rows
    wanted = Wanted(
        *(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (call.input, call.weight, call.bias))
    )
    if torch.compiler.is_compiling():
        return library.call(call, reduce, wanted)
    results: Results = LinearCrossEntropy.apply(*call[:3], call, reduce, wanted, KERNELS[chosen])
    return results
