"""The norm of all gradients together, and clipping by it, without waiting for the device."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from types import GeneratorType

import torch
from torch import Tensor

from pyseq.ops.grad_norm import GradNorm, grad_norm, norm_from_squares, sum_of_squares
from pyseq.optim.sharded import by_spread, local

EPS = 1e-6  # added to the norm before max_norm is divided by it


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Scale the gradients in place so that their norm, taken over all of them together, is at most ``max_norm``.

    Takes what :func:`torch.nn.utils.clip_grad_norm_` takes. The factor is ``min(1, max_norm / (norm + 1e-6))`` and
    stays on the device. A non-finite norm makes the gradients non-finite; whoever reads it decides what to do then.
    :meth:`pyseq.optim.FusedAdam.step` clips by itself, for less: see there.

    Args:
        parameters: those without a gradient are passed over. A parameter with an attribute ``expert`` belongs to this
            process alone: it is left out of the norm, and scaled like the rest.
        max_norm: ``inf`` only measures.
        norm_type: 1, 2, any other positive number, or inf.
        error_if_nonfinite: raise where the norm is inf or nan. This waits for the device.
        foreach: accepted, without effect.
        aggregate_norm_fn: maps the norm of this process's gradients to that of all processes. Gradients that are
            DTensors need none: their norm is that of the whole tensors.

    Returns:
        The norm before clipping: fp32 whatever the dtypes, 0-dim, on the device of the first gradient; the same on
        all ranks that hold parts of the gradients.

    Raises:
        RuntimeError: the norm is not finite, and ``error_if_nonfinite``.
        ValueError, TypeError: ``max_norm`` is negative or nan; ``norm_type`` is not positive; a gradient is complex.
    """
    if not float(max_norm) >= 0:
        raise ValueError(f"max_norm must not be negative or nan: {max_norm}")
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not params and isinstance(parameters, GeneratorType):
        warnings.warn("clip_grad_norm_ was given an exhausted generator: nothing is clipped", stacklevel=2)
    norm = total_norm(measured_grads(params), norm_type)
    if aggregate_norm_fn is not None:
        norm = aggregate_norm_fn(norm.float()).double()
    if error_if_nonfinite:
        _check_finite(norm, norm_type)
    if max_norm < math.inf:
        multiply_(dense_grads(params), (float(max_norm) / (norm + EPS)).clamp(max=1.0))
    return norm.float()


@torch.no_grad()
def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of all elements of ``tensors``, as :func:`torch.nn.utils.get_total_norm`; see :func:`clip_grad_norm_`.

    Returns:
        fp32, 0-dim, on the device of the first tensor; 0 if there are none. For DTensors it is the norm of the whole
        tensors, on every rank, and no DTensor.
    """
    norm = total_norm([tensors] if isinstance(tensors, Tensor) else tensors, norm_type)
    if error_if_nonfinite:
        _check_finite(norm, norm_type)
    return norm.float()


def measure(
    tensors: Iterable[Tensor],
    *,
    max_norm: float = math.inf,
    scale: Tensor | float = 1.0,
    aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None,
) -> GradNorm:
    """The 2-norm of ``scale`` times ``tensors``, and the factor that clips them, for an update to apply.

    Arguments are those of :func:`clip_grad_norm_`, and ``scale``.
    """
    tensors = list(tensors)
    limit = float(max_norm) if max_norm < math.inf else None
    groups = by_spread(tensors)
    if aggregate_norm_fn is None and list(groups) == [None] and len(groups[None]) == 1:
        (parts,) = groups[None].values()
        return grad_norm(parts, max_norm=limit, scale=scale)
    total = _total(tensors, sum_of_squares, "SUM")
    if aggregate_norm_fn is not None:
        total = aggregate_norm_fn(total.sqrt().float()).double().square()
    return norm_from_squares(total, max_norm=limit, scale=scale)


def total_norm(tensors: Iterable[Tensor], norm_type: float = 2.0) -> Tensor:
    """The norm of all elements of ``tensors``: fp64, 0-dim.

    What parts have in common, and ranks exchange, is the sum of p-th powers in fp64, never a root: rounded in between,
    the norm would depend on how tensors are put together.

    Raises:
        ValueError, TypeError: ``norm_type`` is not positive; a tensor is complex.
    """
    order = float(norm_type)
    if not order > 0:
        raise ValueError(f"norm_type must be a positive number or inf: {norm_type}")
    if order == 2.0:
        return _total(tensors, sum_of_squares, "SUM").sqrt()
    if order == math.inf:
        return _total(tensors, _largest, "MAX")
    return _total(tensors, lambda parts: _sum_of_powers(parts, order), "SUM").pow(1 / order)


def _total(tensors: Iterable[Tensor], part: Callable[[list[Tensor]], Tensor], op: str) -> Tensor:
    """``part`` of all tensors together, those of other devices and ranks included: fp64, 0-dim."""
    tensors = list(tensors)
    if any(tensor.is_complex() for tensor in tensors):
        raise TypeError("complex gradients have no norm here: pass torch.view_as_real of them")
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    home = tensors[0].device
    combine = torch.maximum if op == "MAX" else torch.add
    total = torch.zeros((), dtype=torch.float64, device=home)
    for spread, devices in by_spread(tensors).items():
        value = torch.zeros((), dtype=torch.float64, device=home)
        for parts in devices.values():
            value = combine(value, part(parts).to(home))
        if spread is not None:
            value = spread.all_reduce(value, op).to(home)
        total = combine(total, value)
    return total


def _largest(parts: list[Tensor]) -> Tensor:
    """The largest magnitude; inf where there is a nan, which collectives do not carry through a maximum."""
    norms = [torch.linalg.vector_norm(part, math.inf, dtype=torch.float64) for part in parts if part.numel()]
    largest = torch.stack(norms).max() if norms else torch.zeros((), dtype=torch.float64, device=parts[0].device)
    return largest.nan_to_num(nan=math.inf, posinf=math.inf)


def _sum_of_powers(parts: list[Tensor], order: float) -> Tensor:
    norms = [torch.linalg.vector_norm(part, order, dtype=torch.float64) for part in parts]
    return torch.stack(norms).pow(order).sum()


def _check_finite(norm: Tensor, norm_type: float) -> None:
    if not torch.isfinite(norm):
        raise RuntimeError(
            f"the norm of order {norm_type} of the gradients is {norm.item()}: they cannot be clipped. Look for the "
            "parameter whose gradient is not finite, or pass error_if_nonfinite=False to go on all the same."
        )


def multiply_(tensors: Iterable[Tensor], factor: Tensor | float) -> None:
    """Multiply ``tensors`` in place. ``factor`` may be a 0-dim tensor: its value is not read on the host."""
    for group in by_device_and_dtype(map(local, tensors)):
        if isinstance(factor, Tensor):
            # Of the tensors' own dtype it takes one launch for all; rounded to 16 bits it would be wrong.
            dtype = torch.promote_types(group[0].dtype, torch.float32)
            torch._foreach_mul_(group, factor.to(group[0].device, dtype, non_blocking=True))
        else:
            torch._foreach_mul_(group, factor)


def measured_grads(params: Iterable[Tensor]) -> list[Tensor]:
    """The gradients that count for the norm: not those of parameters with an attribute ``expert``."""
    return dense_grads(p for p in params if "expert" not in vars(p))


def dense_grads(params: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of ``params``; of a sparse one its values, after duplicate rows have been added up in place."""
    grads = []
    for param in params:
        grad = param.grad
        if grad is None:
            continue
        if grad.is_sparse:
            param.grad = grad = grad.coalesce()
            grads.append(grad._values())
        else:
            grads.append(grad)
    return grads


def by_device_and_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """``tensors`` in lists that one torch._foreach call can take, in order of first appearance."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.device, tensor.dtype].append(tensor)
    return list(groups.values())
