"""The back ends of layer_norm."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.dropout import limit, scale


class Options(NamedTuple):
    eps: float
    p: float


class Gradients(NamedTuple):
    residual: Tensor | None  # that of z
    x: Tensor | None  # None where it is that of z
    weight: Tensor  # fp32
    bias: Tensor  # fp32


def _fp32(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach().float().contiguous()


class Kernel:
    """A back end of this operation. Tensors lie on its device."""

    @staticmethod
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        options: Options,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """y, z (None where it is x), and of each row the mean and 1 / sqrt(var + eps), fp32."""
        raise NotImplementedError

    @staticmethod
    def backward(
        grad_y: Tensor,
        grad_z: Tensor | None,
        z: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        options: Options,
        seed: Tensor | None,
        wants_residual: bool,
    ) -> Gradients:
        """The gradients. ``wants_residual`` False leaves out that of the residual where it is not that of x."""
        raise NotImplementedError


def allocate(x: Tensor, keeps_z: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = math.prod(x.shape[:-1])  # numel() of a shape makes torch.compile take it for a constant
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return y, torch.empty_like(y) if keeps_z else None, mean, rstd


def allocate_gradients(z: Tensor, drops: bool, wants_residual: bool) -> Gradients:
    def like_z() -> Tensor:
        return torch.empty_like(z, memory_format=torch.contiguous_format)

    return Gradients(
        like_z() if wants_residual or not drops else None,
        like_z() if drops else None,
        z.new_empty(z.size(-1), dtype=torch.float32),
        z.new_empty(z.size(-1), dtype=torch.float32),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _shape(x: Tensor) -> tuple[int, int]:
    """Rows and columns."""
    return math.prod(x.shape[:-1]), x.size(-1)


class CppKernel(Kernel):
    @staticmethod
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        options: Options,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        weight, bias = _fp32(weight), _fp32(bias)
        y, z, mean, rstd = allocate(x, keeps_z=residual is not None or seed is not None)
        dispatch.required_core().layer_norm_forward(
            dispatch.DTYPE_NUMBERS[x.dtype],
            *_shape(x),
            *(_address(t) for t in (weight, bias)),
            options.p,
            *(_address(t) for t in (seed, x, residual)),
            options.eps,
            *(_address(t) for t in (y, z, mean, rstd)),
            torch.get_num_threads(),
        )
        return y, z, mean, rstd

    @staticmethod
    def backward(
        grad_y: Tensor,
        grad_z: Tensor | None,
        z: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        options: Options,
        seed: Tensor | None,
        wants_residual: bool,
    ) -> Gradients:
        grad_y, z, weight = grad_y.contiguous(), z.contiguous(), _fp32(weight)
        grad_z = None if grad_z is None else grad_z.contiguous()
        out = allocate_gradients(z, seed is not None, wants_residual)
        dispatch.required_core().layer_norm_backward(
            dispatch.DTYPE_NUMBERS[z.dtype],
            *_shape(z),
            _address(weight),
            0,
            options.p,
            *(_address(t) for t in (seed, grad_y, grad_z, z, mean, rstd, *out)),
            torch.get_num_threads(),
        )
        return out


class TritonKernel(Kernel):
    @staticmethod
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        options: Options,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        from pyseq.kernels import layer_norm as kernels

        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        y, z, mean, rstd = allocate(x, keeps_z=residual is not None or seed is not None)
        draws = kernels.Draws(seed, limit(options.p), scale(options.p))
        kernels.forward(x, residual, _fp32(weight), _fp32(bias), options.eps, draws, y, z, mean, rstd)
        return y, z, mean, rstd

    @staticmethod
    def backward(
        grad_y: Tensor,
        grad_z: Tensor | None,
        z: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        options: Options,
        seed: Tensor | None,
        wants_residual: bool,
    ) -> Gradients:
        from pyseq.kernels import layer_norm as kernels

        grad_y, z = grad_y.contiguous(), z.contiguous()
        grad_z = None if grad_z is None else grad_z.contiguous()
        out = allocate_gradients(z, seed is not None, wants_residual)
        draws = kernels.Draws(seed, limit(options.p), scale(options.p))
        kernels.backward(grad_y, grad_z, z, mean, rstd, _fp32(weight), draws, *out)
        return out


KERNELS: dict[str, type[Kernel]] = {"cpp": CppKernel, "triton": TritonKernel}
