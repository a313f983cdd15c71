"""cross_entropy in eager autograd: straight to the kernel, without the dispatcher of torch.library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyseq.ops.cross_entropy.definition import Options
from pyseq.ops.cross_entropy.kernels import Kernel, RowResults, has_rows
from pyseq.ops.cross_entropy.memory import gradient_like


class Rows(torch.autograd.Function):
    """The rows of [N, V] logits. The logits are read again for the gradient, whose factors are known only then."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, options: Options, ignore_index: int, kernel: type[Kernel]
    ) -> RowResults:
        out = kernel.forward(logits, target, options, ignore_index)
        ctx.save_for_backward(logits, target, out.stats)
        ctx.options = options, ignore_index, kernel
        ctx.mark_non_differentiable(*out[1:])
        return out

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor, None, None, None, None]:
        return _RowsGradient.apply(grad_loss, *ctx.saved_tensors, *ctx.options), None, None, None, None


class _RowsGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad_loss: Tensor, logits: Tensor, target: Tensor, stats: Tensor, *options: Any) -> Tensor:
        options, ignore_index, kernel = options
        grad = gradient_like(logits)
        return kernel.backward(grad_loss, logits, target, stats, options, ignore_index, grad)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return second_derivative(ctx, *grads)


def second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "pyseq.ops.cross_entropy can be differentiated once only; for second derivatives call it inside "
        'pyseq.ops.backend("torch")'
    )


class Sums(torch.autograd.Function):
    """Sums over the rows of [N, V] logits. The gradient is computed with them, and backward hands it out.

    Arguments and results are those of :meth:`Kernel.sums_and_gradient`. A backward pass that comes again
    (``retain_graph=True``) computes the gradient again: the first one is not ours any more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        options: Options,
        ignore_index: int,
        kernel: type[Kernel],
        mean: bool,
        loss_only: bool,
    ) -> tuple[Tensor, ...]:
        ctx.kernel, ctx.arguments = kernel, (target, options, ignore_index, mean)
        grad = gradient_like(logits)
        sums = kernel.sums_and_gradient(logits, target, options, ignore_index, mean, grad, loss_only)
        ctx.gradients = [grad]
        ctx.save_for_backward(logits)
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        target, _, ignore_index, _ = ctx.arguments
        try:
            grad = ctx.gradients.pop()  # atomic: of two threads one computes it again
        except IndexError:
            (logits,) = ctx.saved_tensors
            grad = gradient_like(logits)
            ctx.kernel.sums_and_gradient(logits, *ctx.arguments, grad, True)
        ctx.kernel.scale_(grad, grad_loss.detach(), target, ignore_index)
        if torch.is_grad_enabled():  # create_graph: a derivative of this gradient must be an error, not zero
            grad = _Differentiated.apply(grad, grad_loss, *ctx.saved_tensors)
        return grad, *[None] * 6


class _Differentiated(torch.autograd.Function):
    """A gradient that depends on ``unused`` in a way that is not differentiated."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *unused: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return second_derivative(ctx, *grads)


def donated_sums(logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """:class:`Sums` whose gradient takes the memory of ``logits`` [..., V]; arguments are those of Sums.

    Raises:
        ValueError: that memory is not the caller's to give away.
    """
    _check_donation(logits)
    held: list[tuple[Tensor, int]] = []
    *out, _ = _DonatedSums.apply(logits, held, *arguments)
    held.append((logits.detach(), logits._version))  # the version is final only now
    return tuple(out)


class _DonatedSums(torch.autograd.Function):
    """The logits are an output too, so that what uses them later sends its gradient here, where it is an error.

    What had saved them before finds their version changed. ``held`` has the gradient and its version until backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        held: list[tuple[Tensor, int]],
        target: Tensor,
        options: Options,
        ignore_index: int,
        kernel: type[Kernel],
        mean: bool,
        loss_only: bool,
    ) -> tuple[Tensor, ...]:
        matrix = logits.view(-1, logits.size(-1))
        sums = kernel.sums_and_gradient(matrix, target, options, ignore_index, mean, matrix, loss_only)
        ctx.mark_dirty(logits)
        torch.autograd.graph.increment_version(logits)
        ctx.set_materialize_grads(False)
        ctx.arguments = held, target, ignore_index, kernel
        ctx.mark_non_differentiable(*sums[1:])
        return *sums, logits

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
        if others[-1] is not None:
            raise RuntimeError("logits were used after they had been donated to cross_entropy. " + _REMEDY)
        if grad_loss is None:
            return (None,) * 8
        if torch.is_grad_enabled():
            second_derivative(ctx)
        held, target, ignore_index, kernel = ctx.arguments
        try:
            grad, version = held.pop()
        except IndexError:
            raise RuntimeError("a second backward pass through donated logits. " + _REMEDY) from None
        if grad._version != version:
            raise RuntimeError("donated logits were modified: their memory holds the gradient. " + _REMEDY)
        kernel.scale_(grad.view(-1, grad.size(-1)), grad_loss, target, ignore_index)
        return grad, *[None] * 7


_REMEDY = 'Leave inplace="donate" out where the logits, or their gradient, are needed twice.'


def _check_donation(logits: Tensor) -> None:
    """Raise ValueError where the memory of ``logits`` is not the caller's to give away."""
    if logits.is_leaf:
        reason = "they are a leaf that requires grad"
    elif logits._is_view():
        reason = "they are a view of another tensor, or their classes are not the last dimension"
    elif not (logits.is_contiguous() and has_rows(logits.view(-1, logits.size(-1)))):
        reason = "they are not contiguous"
    else:
        return
    raise ValueError(f'logits cannot be donated (inplace="donate"): {reason}')
