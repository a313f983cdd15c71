"""Softmax cross-entropy on logits, with label smoothing.

For a row of V logits x with class y::

    nll    = -log p_y                p = softmax(x)
    smooth = -sum_v log p_v          over all V classes, y and padding included
    loss   = (1 - eps - eps_v) nll + eps_v smooth,   eps_v = eps / (V - 1)     "fairseq": y keeps 1 - eps
    loss   = (1 - eps) nll + eps_v smooth,           eps_v = eps / V           "torch": y keeps 1 - eps + eps / V

(Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7, is the second.)
Arithmetic is fp32 or better and losses are fp32, whatever the dtype of the logits. The kernels read the logits once for
the losses and once for the gradient, keep two numbers a row in between, and write the gradient once.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyseq.errors import DataError
from pyseq.ops import dispatch

SmoothingForm = Literal["fairseq", "torch"]
Reduction = Literal["none", "mean", "sum"]

dispatch.register_operation("cross_entropy", cpp=dispatch.KERNEL_DTYPES, triton=dispatch.KERNEL_DTYPES)


class TargetOutOfRangeError(DataError, IndexError):
    """A target is neither a class nor ``ignore_index``."""


class CrossEntropyRows(NamedTuple):
    """What is known of each row. Rows that are ignored have 0, 0 and False."""

    loss: Tensor  # fp32, differentiable
    nll_loss: Tensor  # fp32: the loss without smoothing
    correct: Tensor  # bool: the target is the first of the largest logits


class CrossEntropySums(NamedTuple):
    """Sums over the rows that are not ignored: 0-d tensors on the device of the logits."""

    loss: Tensor  # fp32, differentiable
    nll_loss: Tensor  # fp32: the loss without smoothing
    n_correct: Tensor  # int64: rows whose target is the first of the largest logits


class Smoothing(NamedTuple):
    amount: float
    form: str

    def weights(self, classes: int) -> tuple[float, float]:
        """The factors of ``nll`` and ``smooth`` in the loss. With one class there is none to spread to."""
        if self.amount == 0.0 or classes <= 1:
            return 1.0, 0.0
        if self.form == "fairseq":
            each = self.amount / (classes - 1)
            return 1.0 - self.amount - each, each
        return 1.0 - self.amount, self.amount / classes


def cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    smoothing_form: SmoothingForm = "torch",
) -> Tensor:
    """Cross-entropy of logits, as :func:`torch.nn.functional.cross_entropy` with the classes in the last dimension.

    Args:
        input: [..., V] logits, any floating dtype.
        target: [...] classes in [0, V), or ``ignore_index``. Integers, on the device of ``input``.
        ignore_index: rows with this target have loss 0 and gradient 0, even where their logits are inf or nan.
        reduction: ``"mean"`` over the rows that are not ignored (nan if there is none), ``"sum"``, or ``"none"``.
        label_smoothing: eps in [0, 1]; see the head of this file.
        smoothing_form: ``"torch"`` or ``"fairseq"``.

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
        input, target, label_smoothing=label_smoothing, smoothing_form=smoothing_form, ignore_index=ignore_index
    ).loss
    if reduction == "none":
        return loss
    total = _sum(loss)
    return total if reduction == "sum" else total / target.ne(ignore_index).sum()


def cross_entropy_sums(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    smoothing_form: SmoothingForm = "fairseq",
    ignore_index: int = -100,
) -> CrossEntropySums:
    """The sums that a trainer needs, from one pass over the logits and without waiting for the device.

    Arguments and errors are those of :func:`cross_entropy`.
    """
    rows = cross_entropy_rows(
        logits, target, label_smoothing=label_smoothing, smoothing_form=smoothing_form, ignore_index=ignore_index
    )
    return CrossEntropySums(_sum(rows.loss), _sum(rows.nll_loss), rows.correct.sum())


def cross_entropy_rows(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    smoothing_form: SmoothingForm = "fairseq",
    ignore_index: int = -100,
) -> CrossEntropyRows:
    """Loss, nll and correctness of each row, of the shape of ``target``.

    Arguments and errors are those of :func:`cross_entropy`.
    """
    _check(logits, target, label_smoothing, smoothing_form)
    chosen = dispatch.choose("cross_entropy", logits.device.type, logits.dtype)
    rows = logits.flatten(0, -2) if logits.dim() > 1 else logits.unsqueeze(0)
    classes = target.reshape(-1).long()
    smoothing = Smoothing(float(label_smoothing), smoothing_form)
    if chosen == "torch":
        loss, nll, correct = reference(rows, classes, smoothing, ignore_index)
    elif torch.compiler.is_compiling():
        loss, nll, correct, _ = torch.ops.pyseq.cross_entropy(rows, classes, *smoothing, ignore_index)
    else:
        loss, nll, correct = _CrossEntropy.apply(rows, classes, smoothing, ignore_index, KERNELS[chosen])
    return CrossEntropyRows(loss.view(target.shape), nll.view(target.shape), correct.view(target.shape))


def _sum(rows: Tensor) -> Tensor:
    return rows.sum(dtype=torch.float64).to(rows.dtype)


def _check(logits: Tensor, target: Tensor, label_smoothing: float, smoothing_form: str) -> None:
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
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    if smoothing_form not in ("fairseq", "torch"):
        raise ValueError(f"smoothing_form must be 'fairseq' or 'torch', not {smoothing_form!r}")


def _out_of_range(target: Tensor, row: int, classes: int, ignore_index: int) -> TargetOutOfRangeError:
    return TargetOutOfRangeError(
        f"the target of row {row} is {int(target[row])}: it must be in [0, {classes}), or ignore_index ({ignore_index})"
    )


def reference(logits: Tensor, target: Tensor, smoothing: Smoothing, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, nll and correctness of [N, V] logits and [N] targets, in plain torch: what the kernels compute.

    Ignored rows are replaced, not multiplied by 0: 0 times inf would be nan, in the loss and in the gradient.
    """
    ignored = target == ignore_index
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = ((target < 0) | (target >= logits.size(1))) & ~ignored
        if bad.any():
            raise _out_of_range(target, int(bad.nonzero()[0]), logits.size(1), ignore_index)
    x = logits.masked_fill(ignored.unsqueeze(1), 0.0)
    y = target.masked_fill(ignored, 0).unsqueeze(1)
    log_probs = torch.log_softmax(x, dim=1, dtype=torch.promote_types(x.dtype, torch.float32))
    nll = -log_probs.gather(1, y).squeeze(1) if x.size(1) else x.new_zeros(x.size(0), dtype=log_probs.dtype)
    nll_weight, smooth_weight = smoothing.weights(x.size(1))
    loss = nll if smooth_weight == 0.0 else nll_weight * nll - smooth_weight * log_probs.sum(dim=1)
    correct = (logits.argmax(dim=1) == target) & ~ignored if x.size(1) else torch.zeros_like(ignored)
    return loss.masked_fill(ignored, 0.0), nll.detach().masked_fill(ignored, 0.0), correct


def _strided(logits: Tensor) -> Tensor:
    """``logits`` [N, V] if the elements of a row lie next to each other and rows do not overlap, else a copy."""
    rows, cols = logits.shape
    fits = (cols <= 1 or logits.stride(1) == 1) and (rows <= 1 or logits.stride(0) >= cols)
    return logits if fits else logits.contiguous()


def _allocate(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for loss, nll, correct, and {max, sum of exp(x - max)} of each row."""
    rows = logits.shape[0]
    return (
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.bool),
        logits.new_empty(rows, 2, dtype=torch.float32),
    )


class Kernel:
    """A back end of this operation. Logits are [N, V], targets [N] int64, both on its device."""

    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, smoothing: Smoothing, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, nll, correct and, for the gradient, {max, sum of exp(x - max)} of each row."""
        raise NotImplementedError

    @staticmethod
    def backward(
        grad_loss: Tensor, logits: Tensor, target: Tensor, stats: Tensor, smoothing: Smoothing, ignore_index: int
    ) -> Tensor:
        """The gradient of the logits, of their dtype, contiguous."""
        raise NotImplementedError


class CppKernel(Kernel):
    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, smoothing: Smoothing, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits, target = _strided(logits), target.contiguous()
        out = _allocate(logits)
        bad = dispatch.required_core().cross_entropy_forward(
            *_described(logits, target, smoothing, ignore_index),
            *(tensor.data_ptr() for tensor in out),
            torch.get_num_threads(),
        )
        if bad >= 0:
            raise _out_of_range(target, bad, logits.size(1), ignore_index)
        return out

    @staticmethod
    def backward(
        grad_loss: Tensor, logits: Tensor, target: Tensor, stats: Tensor, smoothing: Smoothing, ignore_index: int
    ) -> Tensor:
        logits, target, grad_loss = _strided(logits), target.contiguous(), grad_loss.float().contiguous()
        grad = torch.empty(logits.shape, dtype=logits.dtype)
        dispatch.required_core().cross_entropy_backward(
            *_described(logits, target, smoothing, ignore_index),
            *(tensor.data_ptr() for tensor in (grad_loss, stats, grad)),
            torch.get_num_threads(),
        )
        return grad


def _described(logits: Tensor, target: Tensor, smoothing: Smoothing, ignore_index: int) -> tuple[Any, ...]:
    """The arguments that both functions of the core begin with."""
    rows, cols = logits.shape
    pointers = logits.data_ptr(), dispatch.DTYPE_NUMBERS[logits.dtype], target.data_ptr()
    return *pointers, rows, cols, logits.stride(0), ignore_index, *smoothing.weights(cols)


class TritonKernel(Kernel):
    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, smoothing: Smoothing, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from pyseq.kernels import cross_entropy as kernels

        logits, target = _strided(logits), target.contiguous()
        out = _allocate(logits)
        kernels.forward(logits, target, smoothing.weights(logits.size(1)), ignore_index, *out)
        return out

    @staticmethod
    def backward(
        grad_loss: Tensor, logits: Tensor, target: Tensor, stats: Tensor, smoothing: Smoothing, ignore_index: int
    ) -> Tensor:
        from pyseq.kernels import cross_entropy as kernels

        logits, target, grad_loss = _strided(logits), target.contiguous(), grad_loss.float().contiguous()
        grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        kernels.backward(grad_loss, logits, target, stats, smoothing.weights(logits.size(1)), ignore_index, grad)
        return grad


KERNELS: dict[str, type[Kernel]] = {"cpp": CppKernel, "triton": TritonKernel}


class _CrossEntropy(torch.autograd.Function):
    """The way of eager calls: straight to the kernel, without the dispatcher of torch.library."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, smoothing: Smoothing, ignore_index: int, kernel: type[Kernel]
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss, nll, correct, stats = kernel.forward(logits, target, smoothing, ignore_index)
        ctx.save_for_backward(logits, target, stats)
        ctx.options = smoothing, ignore_index, kernel
        ctx.mark_non_differentiable(nll, correct)
        return loss, nll, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor, None, None, None, None]:
        return _CrossEntropyGradient.apply(grad_loss, *ctx.saved_tensors, *ctx.options), None, None, None, None


class _CrossEntropyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad_loss: Tensor, logits: Tensor, target: Tensor, stats: Tensor, *options: Any) -> Tensor:
        smoothing, ignore_index, kernel = options
        return kernel.backward(grad_loss, logits, target, stats, smoothing, ignore_index)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _second_derivative(ctx, *grads)


def _second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "pyseq.ops.cross_entropy can be differentiated once only; for second derivatives call it inside "
        'pyseq.ops.backend("torch")'
    )


# The same for torch.compile, which needs an operator that it can see.
_library = torch.library.Library("pyseq", "FRAGMENT")
_library.define(
    "cross_entropy(Tensor logits, Tensor target, float label_smoothing, str smoothing_form, int ignore_index)"
    " -> (Tensor loss, Tensor nll, Tensor correct, Tensor stats)"
)
_library.define(
    "cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor stats, float label_smoothing, "
    "str smoothing_form, int ignore_index) -> Tensor"
)


def _register(device: str, kernel: type[Kernel]) -> None:
    def forward(
        logits: Tensor, target: Tensor, label_smoothing: float, smoothing_form: str, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return kernel.forward(logits, target, Smoothing(label_smoothing, smoothing_form), ignore_index)

    def backward(
        grad_loss: Tensor,
        logits: Tensor,
        target: Tensor,
        stats: Tensor,
        label_smoothing: float,
        smoothing_form: str,
        ignore_index: int,
    ) -> Tensor:
        smoothing = Smoothing(label_smoothing, smoothing_form)
        return kernel.backward(grad_loss, logits, target, stats, smoothing, ignore_index)

    _library.impl("cross_entropy", forward, device)
    _library.impl("cross_entropy_backward", backward, device)


_register("CPU", CppKernel)
_register("CUDA", TritonKernel)


@torch.library.register_fake("pyseq::cross_entropy", lib=_library)
def _(logits: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _allocate(logits)


@torch.library.register_fake("pyseq::cross_entropy_backward", lib=_library)
def _(grad_loss: Tensor, logits: Tensor, *options: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, *ctx.options = inputs
    _, nll, correct, stats = output
    ctx.save_for_backward(logits, target, stats)
    ctx.mark_non_differentiable(nll, correct, stats)


def _gradient(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor, None, None, None, None]:
    grad = torch.ops.pyseq.cross_entropy_backward(grad_loss, *ctx.saved_tensors, *ctx.options)
    return grad, None, None, None, None


torch.library.register_autograd("pyseq::cross_entropy", _gradient, setup_context=_save, lib=_library)
torch.library.register_autograd("pyseq::cross_entropy_backward", _second_derivative, lib=_library)
