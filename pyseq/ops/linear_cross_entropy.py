"""The output projection and softmax cross-entropy together; the logits of all rows never exist at once.

For a row h of D features, weight W [V x D] and bias b [V], the logits are W h + b; what follows is
:mod:`pyseq.ops.cross_entropy`. Logits are made for a chunk of rows and turned into their gradient in place, so that a
chunk's two further products are done in the forward pass and the backward pass has them ready
(:mod:`pyseq.ops.linear_cross_entropy_chunks`). A second backward pass computes them again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops import cross_entropy as ce
from pyseq.ops import dispatch
from pyseq.ops.chunks import chunk_rows as planned_rows
from pyseq.ops.cross_entropy import CrossEntropyRows, CrossEntropySums, Reduction, Smoothing, SmoothingForm
from pyseq.ops.linear_cross_entropy_chunks import Problem, Result, Wanted, run

dispatch.register_operation("linear_cross_entropy", cpp=dispatch.KERNEL_DTYPES, triton=dispatch.KERNEL_DTYPES)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    smoothing_form: SmoothingForm = "torch",
    chunk_rows: int | None = None,
) -> Tensor:
    """``cross_entropy(linear(input, linear_weight, linear_bias), target)`` in a small share of its memory.

    Takes what :func:`torch.nn.functional.linear_cross_entropy` of torch 2.13 takes. Under autocast the products are in
    its dtype, as those of :func:`torch.nn.functional.linear`.

    Args:
        input: [..., D], any floating dtype.
        linear_weight: [V, D], of the dtype of ``input``. With more dimensions, [V, d1, ..., D], the logits are stored.
        target: [...] classes in [0, V), or ``ignore_index``; integers. Floating-point targets of the shape of the
            logits are probabilities of the classes: the logits are stored then.
        linear_bias: [V], of the dtype of ``input``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, as in :func:`pyseq.ops.cross_entropy`. With ``"none"`` the
            backward pass computes the logits again.
        ignore_index: default -100.
        label_smoothing, smoothing_form: as in :func:`pyseq.ops.cross_entropy`.
        options: a ``torch.nn.LinearCrossEntropyOptions``; of its fields, ``batch_chunk_size`` has a meaning here.
            Sums are always fp32, and a graph may always be retained.
        chunk_rows: rows of a chunk, where :func:`pyseq.ops.chunks.chunk_rows` shall not choose.

    Returns:
        0-d, or of the shape of ``target`` for ``"none"``. fp32; fp64 for fp64 input. Differentiable once.

    Raises:
        TargetOutOfRangeError: as :func:`pyseq.ops.cross_entropy`.
        ValueError, TypeError: shapes, devices, dtypes or options do not fit.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', not {reduction!r}")
    chunk_rows = getattr(options, "batch_chunk_size", None) if chunk_rows is None else chunk_rows
    ignored = -100 if ignore_index is None else ignore_index
    if linear_weight.dim() > 2 or target.is_floating_point():
        return _with_logits(
            input, linear_weight, target, linear_bias, reduction, ignored, label_smoothing, smoothing_form
        )
    call = _prepare(
        input, linear_weight, linear_bias, target, Smoothing(float(label_smoothing), smoothing_form), ignored, chunk_rows
    )
    if reduction == "none":
        return _apply(call, reduce=False)[0].view(target.shape)
    if reduction == "sum":
        return _apply(call, reduce=True)[0]
    scale = target.ne(ignored).sum().to(torch.promote_types(call.dtype, torch.float32)).reciprocal()
    if call.dtype != torch.float16:
        return _apply(call._replace(scale=scale), reduce=True)[0]
    # p / N would vanish in fp16. The power of two is left to the backward pass, where it joins a loss scale.
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(_apply(call._replace(scale=mantissa), reduce=True)[0], exponent)


def linear_cross_entropy_sums(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    smoothing_form: SmoothingForm = "fairseq",
    ignore_index: int = -100,
    chunk_rows: int | None = None,
) -> CrossEntropySums:
    """The sums that a trainer needs; see :func:`pyseq.ops.cross_entropy_sums`.

    Arguments and errors are those of :func:`linear_cross_entropy`.
    """
    smoothing = Smoothing(float(label_smoothing), smoothing_form)
    call = _prepare(input, linear_weight, linear_bias, target, smoothing, ignore_index, chunk_rows)
    return CrossEntropySums(*_apply(call, reduce=True))


def linear_cross_entropy_rows(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    smoothing_form: SmoothingForm = "fairseq",
    ignore_index: int = -100,
    chunk_rows: int | None = None,
) -> CrossEntropyRows:
    """Loss, nll and correctness of each row, of the shape of ``target``. The backward pass makes the logits again.

    Arguments and errors are those of :func:`linear_cross_entropy`.
    """
    smoothing = Smoothing(float(label_smoothing), smoothing_form)
    call = _prepare(input, linear_weight, linear_bias, target, smoothing, ignore_index, chunk_rows)
    return CrossEntropyRows(*(part.view(target.shape) for part in _apply(call, reduce=False)))


def reference(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: Smoothing, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, nll and correctness of [N, D] features, [V, D] weights and [N] targets: what the chunks compute."""
    return ce.reference(F.linear(input, weight, bias), target, smoothing, ignore_index)


class _Call(NamedTuple):
    """Checked arguments: [N, D] input, [V, D] weight, [N] int64 target, and how to compute."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    smoothing: Smoothing
    ignore_index: int
    chunk_rows: int
    dtype: torch.dtype  # of the products
    scale: Tensor | None = None  # 0-d: what a sum of losses is multiplied by

    def problem(self) -> Problem:
        bias = None if self.bias is None else self.bias.detach().to(self.dtype)
        tensors = self.input.detach().to(self.dtype), self.weight.detach().to(self.dtype), bias, self.target
        return Problem(*tensors, self.smoothing, self.ignore_index, self.chunk_rows)


def _prepare(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    smoothing: Smoothing,
    ignore_index: int,
    chunk_rows: int | None,
) -> _Call:
    _check(input, weight, bias, target, smoothing, chunk_rows)
    rows, classes = input.reshape(-1, input.size(-1)), target.reshape(-1).long()
    dtype = _autocast_dtype(input)
    if chunk_rows is None:
        device_bytes = 0
        if input.device.type == "cuda":
            device_bytes = torch.cuda.get_device_properties(input.device).total_memory
        chunk_rows = planned_rows(len(rows), len(weight), dtype.itemsize, input.device.type, device_bytes)
    return _Call(rows, weight, bias, classes, smoothing, ignore_index, chunk_rows, dtype)


def _autocast_dtype(input: Tensor) -> torch.dtype:
    """The dtype that ``F.linear`` would compute in."""
    device = input.device.type
    if input.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return input.dtype


def _check(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, smoothing: Smoothing, chunk_rows: int | None
) -> None:
    if not input.is_floating_point():
        raise TypeError(f"input must be floating-point, not {input.dtype}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"targets must be class numbers of an integer dtype, not {target.dtype}")
    if input.dim() == 0 or input.shape[:-1] != target.shape:
        raise ValueError(
            f"input {tuple(input.shape)} and target {tuple(target.shape)} do not fit: input has one more dimension, "
            "the features, and it is the last"
        )
    if weight.dim() != 2 or weight.size(1) != input.size(-1):
        raise ValueError(
            f"linear_weight {tuple(weight.shape)} does not fit input {tuple(input.shape)}: it must be "
            f"[classes, {input.size(-1)}]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear_bias {tuple(bias.shape)} must be [{len(weight)}], one for each class")
    autocast = torch.is_autocast_enabled(input.device.type)
    for name, tensor in (("linear_weight", weight), ("linear_bias", bias), ("target", target)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"input is on {input.device}, {name} is on {tensor.device}")
        if tensor is not None and tensor is not target and tensor.dtype != input.dtype and not autocast:
            raise TypeError(f"input is {input.dtype}, {name} is {tensor.dtype}: they must be equal outside autocast")
    if not 0.0 <= smoothing.amount <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], not {smoothing.amount}")
    if smoothing.form not in ("fairseq", "torch"):
        raise ValueError(f"smoothing_form must be 'fairseq' or 'torch', not {smoothing.form!r}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be positive, not {chunk_rows}")


def _with_logits(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    smoothing_form: str,
) -> Tensor:
    """What torch's function does for K-dimensional losses and for probabilities as targets."""
    if smoothing_form != "torch":
        raise ValueError("smoothing_form 'fairseq' needs a [V, D] linear_weight and class numbers as targets")
    classes, *positions, features = weight.shape
    flat_bias = None if bias is None else bias.reshape(-1)
    logits = F.linear(input, weight.reshape(classes * math.prod(positions), features), flat_bias)
    logits = logits.view(*input.shape[:-1], classes, *positions)
    return F.cross_entropy(
        logits, target, reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing
    )


def _apply(call: _Call, reduce: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, nll and correctness: 0-d sums (the first times ``call.scale``), or of each row."""
    chosen = dispatch.choose("linear_cross_entropy", call.input.device.type, call.dtype)
    if chosen == "torch":
        rows = reference(*call[:6])
        if not reduce:
            return rows
        loss = ce._sum(rows[0])
        return loss if call.scale is None else loss * call.scale, ce._sum(rows[1]), rows[2].sum()
    if call.target.device.type == "cpu":
        _check_range(call)
    needs = Wanted(*(torch.is_grad_enabled() and t is not None and t.requires_grad for t in call[:3]))
    return _LinearCrossEntropy.apply(*call[:3], call, reduce, needs, ce.KERNELS[chosen])


def _check_range(call: _Call) -> None:
    target, classes = call.target, len(call.weight)
    bad = ((target < 0) | (target >= classes)) & (target != call.ignore_index)
    if bad.any():
        raise ce._out_of_range(target, int(bad.nonzero()[0]), classes, call.ignore_index)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients of a sum are computed in the forward pass and used up by the first backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: _Call,
        reduce: bool,
        wanted: Wanted,
        kernel: type[ce.Kernel],
    ) -> tuple[Tensor, Tensor, Tensor]:
        result = run(call.problem(), kernel, call.scale, wanted if reduce else Wanted())
        ctx.save_for_backward(input, weight, bias, call.target, call.scale)
        ctx.call = call._replace(input=None, weight=None, bias=None, target=None, scale=None)
        ctx.options = wanted, kernel
        ctx.ready = result if reduce and any(wanted) else None
        loss, nll, correct = result[:3]
        if reduce:
            loss, nll, correct = ce._sum(loss), ce._sum(nll), correct.sum()
            loss = loss if call.scale is None else loss * call.scale
        ctx.mark_non_differentiable(nll, correct)
        return loss, nll, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Any, ...]:
        input, weight, bias, target, scale = ctx.saved_tensors
        call = ctx.call._replace(input=input, weight=weight, bias=bias, target=target, scale=scale)
        ready, ctx.ready = ctx.ready, None
        grads = _Gradients.apply(grad_loss, input, weight, bias, call, *ctx.options, ready)
        return *grads, None, None, None, None


class _Gradients(torch.autograd.Function):
    """A node of its own, so that a second derivative is an error and not a zero."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_loss: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: _Call,
        wanted: Wanted,
        kernel: type[ce.Kernel],
        ready: Result | None,
    ) -> tuple[Tensor | None, ...]:
        if grad_loss.dim() > 0:
            ready, grad_loss = run(call.problem(), kernel, grad_loss, wanted), torch.ones(())
        elif ready is None:
            ready = run(call.problem(), kernel, call.scale, wanted)
        keep = grad_loss.device.type == "cpu" and grad_loss.item() == 1.0
        grads = ready.grad_input, ready.grad_weight, ready.grad_bias
        return tuple(
            None if grad is None else (grad if keep else grad.mul_(grad_loss)).to(tensor.dtype)
            for grad, tensor in zip(grads, (input, weight, bias), strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "pyseq.ops.linear_cross_entropy can be differentiated once only; for second derivatives call it inside "
            'pyseq.ops.backend("torch")'
        )
