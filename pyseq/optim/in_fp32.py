"""What the optimizers that are written in torch have in common: lists of fp32 tensors, one call for a whole list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyseq.errors import ConfigError
from pyseq.optim.clip_grad import by_device_and_dtype

HALF = (torch.float16, torch.bfloat16)


def to_update(params: Iterable[Tensor], optimizer: str) -> list[list[Tensor]]:
    """The parameters that have a gradient, in lists of one device and dtype.

    Raises:
        ConfigError: a gradient is sparse.
    """
    with_grad = [param for param in params if param.grad is not None]
    if any(param.grad is not None and param.grad.is_sparse for param in with_grad):
        raise ConfigError(f"{optimizer} does not take sparse gradients. Choose --optimizer sgd, or dense embeddings.")
    return by_device_and_dtype(with_grad)


@contextmanager
def in_fp32(params: list[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Values and gradients of parameters of one dtype; of 16-bit ones as fp32 copies, the values written back."""
    grads = [param.grad for param in params if param.grad is not None]
    if params[0].dtype not in HALF:
        yield params, grads
        return
    values = [param.float() for param in params]
    yield values, [grad.float() for grad in grads]
    torch._foreach_copy_(params, values)


def zeros(param: Tensor, shape: Any = None) -> Tensor:
    """A state for ``param``: fp32, fp64 for fp64."""
    dtype = torch.float32 if param.dtype in HALF else param.dtype
    if shape is None:
        return torch.zeros_like(param, dtype=dtype)
    return torch.zeros(shape, dtype=dtype, device=param.device)
