"""The norm of all gradients together, and clipping by it, without waiting for the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_grad_norm_(
    params: Tensor | Iterable[Tensor],
    max_norm: float,
    aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Scale the gradients in place so that their 2-norm, taken over all of them together, is at most ``max_norm``.

    The factor is ``min(1, max_norm / (norm + 1e-6))``. It stays on the device. A non-finite norm makes the gradients
    non-finite; whoever reads the norm decides what to do then.

    Args:
        params: parameters; those without a gradient are passed over. A parameter with an attribute ``expert`` belongs
            to this process alone: it is left out of the norm, and scaled like the rest.
        max_norm: 0 or less only measures.
        aggregate_norm_fn: maps the norm of this process's gradients to that of all processes.

    Returns:
        The norm before clipping: fp32, 0-dim, on the device of the first gradient.
    """
    with_grad = [p for p in ([params] if isinstance(params, Tensor) else params) if p.grad is not None]
    norm = total_norm(dense_grads(p for p in with_grad if not hasattr(p, "expert")))
    if not with_grad:
        return norm
    norm = norm.to(with_grad[0].device)
    if aggregate_norm_fn is not None:
        norm = aggregate_norm_fn(norm)
    if max_norm > 0:
        multiply_(dense_grads(with_grad), (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all elements of ``tensors``: fp32, 0-dim; 0 if there are none.

    Squares are summed in fp64. An fp32 sum over millions of elements is off by 1e-5 and more, and overflows where
    the norm itself would not.
    """
    groups = by_device_and_dtype(tensors)
    norms = [torch.stack(torch._foreach_norm(group, 2, dtype=torch.float64)) for group in groups]
    if not norms:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.cat([n.to(norms[0].device) for n in norms])).float()


def multiply_(tensors: Iterable[Tensor], factor: Tensor | float) -> None:
    """Multiply ``tensors`` in place. ``factor`` may be a 0-dim tensor: its value is not read on the host."""
    for group in by_device_and_dtype(tensors):
        if isinstance(factor, Tensor):
            torch._foreach_mul_(group, factor.to(group[0].device, non_blocking=True))
        else:
            torch._foreach_mul_(group, factor)


def dense_grads(params: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of ``params``; of a sparse one its values, after duplicate rows have been added up in place."""
    grads = []
    for param in params:
        if param.grad is None:
            continue
        if param.grad.is_sparse:
            param.grad = param.grad.coalesce()
            grads.append(param.grad._values())
        else:
            grads.append(param.grad)
    return grads


def by_device_and_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """``tensors`` in lists that one torch._foreach call can take, in order of first appearance."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.device, tensor.dtype].append(tensor)
    return list(groups.values())
