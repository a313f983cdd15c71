"""The back ends of cross-entropy, all with one interface."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.cross_entropy.definition import Options, divisor_of, out_of_range, total

dispatch.register_operation(
    "cross_entropy", cpp=dispatch.KERNEL_DTYPES, triton=dispatch.KERNEL_DTYPES, cuda=dispatch.KERNEL_DTYPES
)


class RowResults(NamedTuple):
    """What a kernel writes for each of N rows. Ignored rows have 0, 0, False and {0, 1}."""

    loss: Tensor  # [N] fp32
    nll: Tensor  # [N] fp32
    correct: Tensor  # [N] bool
    stats: Tensor  # [N, 2] fp32: {max, sum of exp(z - max)} of the logits after the soft cap

    def z_loss(self, options: Options) -> Tensor:
        """[N] fp32: the part of the loss that is the z-loss."""
        if options.z_loss == 0.0:
            return torch.zeros_like(self.loss)
        lse = self.stats[:, 0].double() + self.stats[:, 1].double().log()
        return (options.z_loss * lse.square()).float()


class Kernel:
    """A back end of this operation.

    Logits are [N, V] of a dtype that the back end takes, of any strides; targets [N] int64; both on its device, and so
    is ``options.weight``. On the CPU a target out of range raises; elsewhere such a row has loss and gradient nan.
    """

    @staticmethod
    def forward(logits: Tensor, target: Tensor, options: Options, ignore_index: int) -> RowResults:
        """The losses alone."""
        raise NotImplementedError

    @staticmethod
    def backward(
        grad_loss: Tensor,
        logits: Tensor,
        target: Tensor,
        stats: Tensor,
        options: Options,
        ignore_index: int,
        grad: Tensor | None = None,
    ) -> Tensor:
        """The gradient of ``(grad_loss * loss).sum()``, grad_loss [N], for the stats of :meth:`forward`.

        It is written into ``grad``, or where that is None into a new contiguous tensor, and returned. ``grad`` is as in
        :meth:`loss_and_gradient`.
        """
        raise NotImplementedError

    @staticmethod
    def loss_and_gradient(
        logits: Tensor,
        target: Tensor,
        options: Options,
        ignore_index: int,
        row_weight: Tensor | float,
        grad: Tensor,
    ) -> RowResults:
        """The losses, and in ``grad`` the gradient of ``(row_weight * loss).sum()``, reading the logits once.

        Args:
            row_weight: a number, or a tensor on the device: 0-d or [N]. It does not weigh the losses returned.
            grad: [N, V] of the logits' dtype, elements of a row next to each other, rows apart. It may be the logits
                themselves, which are then lost; it may not overlap them otherwise.
        """
        raise NotImplementedError

    @classmethod
    def sums_and_gradient(
        cls,
        logits: Tensor,
        target: Tensor,
        options: Options,
        ignore_index: int,
        mean: bool,
        grad: Tensor,
        loss_only: bool,
    ) -> tuple[Tensor, ...]:
        """The sums of the rows' losses and, unless ``loss_only``, of nll, correct and z-loss; 0-d.

        A ``mean`` is the sum of the losses over :func:`divisor_of`. ``grad`` receives the gradient of the first result,
        as in :meth:`loss_and_gradient`.
        """
        divisor = divisor_of(target, options.weight, ignore_index) if mean else None
        row_weight = 1.0 if divisor is None else divisor.reciprocal()
        out = cls.loss_and_gradient(logits, target, options, ignore_index, row_weight, grad)
        loss = total(out.loss) if divisor is None else total(out.loss) / divisor
        return (loss,) if loss_only else (loss, total(out.nll), out.correct.sum(), total(out.z_loss(options)))

    @staticmethod
    def scale_(grad: Tensor, factor: Tensor, target: Tensor, ignore_index: int) -> None:
        """Multiply ``grad`` [N, V] by ``factor``, a 0-d tensor on its device, without waiting for the device.

        A factor of 1 costs no pass over the gradient. Ignored rows stay 0 whatever the factor.
        """
        raise NotImplementedError


class CppKernel(Kernel):
    @staticmethod
    def forward(logits: Tensor, target: Tensor, options: Options, ignore_index: int) -> RowResults:
        logits, target = strided(logits), target.contiguous()
        out = allocate(logits)
        bad = dispatch.required_core().cross_entropy_forward(
            *_described(logits, target, options, ignore_index),
            *(tensor.data_ptr() for tensor in out),
            torch.get_num_threads(),
        )
        if bad >= 0:
            raise out_of_range(target, bad, logits.size(1), ignore_index)
        return out

    @staticmethod
    def backward(
        grad_loss: Tensor,
        logits: Tensor,
        target: Tensor,
        stats: Tensor,
        options: Options,
        ignore_index: int,
        grad: Tensor | None = None,
    ) -> Tensor:
        logits, target, grad_loss = strided(logits), target.contiguous(), grad_loss.float().contiguous()
        if grad is None:
            grad = torch.empty(logits.shape, dtype=logits.dtype)
        check_gradient(grad, logits)
        dispatch.required_core().cross_entropy_backward(
            *_described(logits, target, options, ignore_index),
            *(tensor.data_ptr() for tensor in (grad_loss, stats, grad)),
            grad.stride(0),
            torch.get_num_threads(),
        )
        return grad

    @staticmethod
    def loss_and_gradient(
        logits: Tensor,
        target: Tensor,
        options: Options,
        ignore_index: int,
        row_weight: Tensor | float,
        grad: Tensor,
    ) -> RowResults:
        logits, target = strided(logits), target.contiguous()
        check_gradient(grad, logits)
        weight = torch.as_tensor(row_weight, dtype=torch.float32).contiguous()
        if weight.dim() > 0 and weight.shape != target.shape:
            raise ValueError(f"row_weight is {tuple(weight.shape)}, for {len(target)} rows")
        out = allocate(logits)
        bad = dispatch.required_core().cross_entropy_loss_and_gradient(
            *_described(logits, target, options, ignore_index),
            *(tensor.data_ptr() for tensor in (*out, weight)),
            weight.dim(),
            grad.data_ptr(),
            grad.stride(0),
            torch.get_num_threads(),
        )
        if bad >= 0:
            raise out_of_range(target, bad, logits.size(1), ignore_index)
        return out

    @classmethod
    def sums_and_gradient(
        cls,
        logits: Tensor,
        target: Tensor,
        options: Options,
        ignore_index: int,
        mean: bool,
        grad: Tensor,
        loss_only: bool,
    ) -> tuple[Tensor, ...]:
        logits, target = strided(logits), target.contiguous()
        check_gradient(grad, logits)
        bad, loss, nll, correct, z_loss = dispatch.required_core().cross_entropy_sums_and_gradient(
            *_described(logits, target, options, ignore_index),
            mean,
            grad.data_ptr(),
            grad.stride(0),
            torch.get_num_threads(),
        )
        if bad >= 0:
            raise out_of_range(target, bad, logits.size(1), ignore_index)
        first = torch.tensor(loss, dtype=torch.float32)
        if loss_only:
            return (first,)
        return first, first.new_tensor(nll), torch.tensor(correct), first.new_tensor(z_loss)

    @staticmethod
    def scale_(grad: Tensor, factor: Tensor, target: Tensor, ignore_index: int) -> None:
        value = factor.item()
        if value != 1.0:
            grad.mul_(value)
            if value - value != 0.0:  # 0 times inf or nan
                grad.masked_fill_((target == ignore_index).unsqueeze(1), 0.0)


def _described(logits: Tensor, target: Tensor, options: Options, ignore_index: int) -> tuple[Any, ...]:
    """The arguments that all functions of the core begin with."""
    rows, cols = logits.shape
    pointers = logits.data_ptr(), dispatch.DTYPE_NUMBERS[logits.dtype], target.data_ptr()
    weight = 0 if options.weight is None else options.weight.data_ptr()
    terms = *options.smoothing_weights(cols), options.z_loss, options.soft_cap, weight
    return *pointers, rows, cols, logits.stride(0), ignore_index, *terms


class TritonKernel(Kernel):
    @staticmethod
    def forward(logits: Tensor, target: Tensor, options: Options, ignore_index: int) -> RowResults:
        from pyseq.kernels import cross_entropy as kernels

        logits, out = strided(logits), allocate(logits)
        kernels.rows(logits, target.contiguous(), _loss_of(options, logits, ignore_index), out)
        return out

    @staticmethod
    def backward(
        grad_loss: Tensor,
        logits: Tensor,
        target: Tensor,
        stats: Tensor,
        options: Options,
        ignore_index: int,
        grad: Tensor | None = None,
    ) -> Tensor:
        from pyseq.kernels import cross_entropy as kernels

        logits = strided(logits)
        if grad is None:
            grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        check_gradient(grad, logits)
        loss = _loss_of(options, logits, ignore_index)
        kernels.gradient(grad_loss.float(), logits, target.contiguous(), stats, loss, grad)
        return grad

    @staticmethod
    def loss_and_gradient(
        logits: Tensor,
        target: Tensor,
        options: Options,
        ignore_index: int,
        row_weight: Tensor | float,
        grad: Tensor,
    ) -> RowResults:
        from pyseq.kernels import cross_entropy as kernels

        logits, out = strided(logits), allocate(logits)
        check_gradient(grad, logits)
        weight = checked_row_weight(row_weight, target)
        kernels.rows(logits, target.contiguous(), _loss_of(options, logits, ignore_index), out, weight, grad)
        return out

    @staticmethod
    def scale_(grad: Tensor, factor: Tensor, target: Tensor, ignore_index: int) -> None:
        from pyseq.kernels import cross_entropy as kernels

        kernels.scale_(grad, factor.float(), target.contiguous(), ignore_index)


def _loss_of(options: Options, logits: Tensor, ignore_index: int) -> Any:
    from pyseq.kernels.cross_entropy import Loss

    weights = options.smoothing_weights(logits.size(1))
    return Loss(*weights, options.z_loss, options.soft_cap, options.weight, ignore_index)


def checked_row_weight(row_weight: Tensor | float, target: Tensor) -> Tensor | float:
    """``row_weight``, as fp32 if it is a tensor. Raises ValueError unless it is one number, or one for each row."""
    if not isinstance(row_weight, Tensor):
        return float(row_weight)
    if row_weight.dim() > 0 and row_weight.shape != target.shape:
        raise ValueError(f"row_weight is {tuple(row_weight.shape)}, for {len(target)} rows")
    return row_weight.float()


class CudaKernel(Kernel):
    @staticmethod
    def forward(logits: Tensor, target: Tensor, options: Options, ignore_index: int) -> RowResults:
        logits, out = strided(logits), allocate(logits)
        with _CudaCall(logits, target, options, ignore_index) as call:
            call.module.cross_entropy_loss(*call.arguments, *(tensor.data_ptr() for tensor in out))
        return out

    @staticmethod
    def backward(
        grad_loss: Tensor,
        logits: Tensor,
        target: Tensor,
        stats: Tensor,
        options: Options,
        ignore_index: int,
        grad: Tensor | None = None,
    ) -> Tensor:
        logits, grad_loss = strided(logits), grad_loss.float()
        if grad is None:
            grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        check_gradient(grad, logits)
        with _CudaCall(logits, target, options, ignore_index) as call:
            where = grad.data_ptr(), grad.stride(0)
            call.module.cross_entropy_gradient(*call.arguments, stats.data_ptr(), *_weighting(grad_loss), *where)
        return grad

    @staticmethod
    def loss_and_gradient(
        logits: Tensor,
        target: Tensor,
        options: Options,
        ignore_index: int,
        row_weight: Tensor | float,
        grad: Tensor,
    ) -> RowResults:
        logits, out = strided(logits), allocate(logits)
        check_gradient(grad, logits)
        weight = checked_row_weight(row_weight, target)
        with _CudaCall(logits, target, options, ignore_index) as call:
            results = (tensor.data_ptr() for tensor in out)
            where = grad.data_ptr(), grad.stride(0)
            call.module.cross_entropy_loss_and_gradient(*call.arguments, *results, *_weighting(weight), *where)
        return out

    @staticmethod
    def scale_(grad: Tensor, factor: Tensor, target: Tensor, ignore_index: int) -> None:
        factor, target = factor.float(), target.contiguous()
        with torch.cuda.device(grad.device):
            dispatch.required_cuda().cross_entropy_scale(
                grad.data_ptr(),
                dispatch.DTYPE_NUMBERS[grad.dtype],
                target.data_ptr(),
                *grad.shape,
                grad.stride(0),
                ignore_index,
                factor.data_ptr(),
                torch.cuda.current_stream().cuda_stream,
            )


class _CudaCall:
    """The arguments that the functions of pyseq._cuda begin with; what they point to lives, and the device is current,
    as long as the call is entered."""

    def __init__(self, logits: Tensor, target: Tensor, options: Options, ignore_index: int) -> None:
        self.module = dispatch.required_cuda()
        self._device = torch.cuda.device(logits.device)
        weight = options.weight
        total = None if weight is None else weight.sum(dtype=torch.float64)
        self._alive = logits, target.contiguous(), total
        self._addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (weight, total)]
        self._terms = *options.smoothing_weights(logits.size(1)), options.z_loss, options.soft_cap
        self._ignore_index = ignore_index

    def __enter__(self) -> _CudaCall:
        self._device.__enter__()
        logits, target, _ = self._alive
        self.arguments = (
            logits.data_ptr(),
            dispatch.DTYPE_NUMBERS[logits.dtype],
            target.data_ptr(),
            *logits.shape,
            logits.stride(0),
            self._ignore_index,
            *self._terms,
            *self._addresses,
            torch.cuda.current_stream().cuda_stream,
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self._device.__exit__(*error)


def _weighting(weight: Tensor | float) -> tuple[int, int, float]:
    """Address, stride and, without an address, the number itself."""
    if isinstance(weight, Tensor):
        return weight.data_ptr(), weight.stride(0) if weight.dim() else 0, 0.0
    return 0, 0, weight


KERNELS: dict[str, type[Kernel]] = {"cpp": CppKernel, "triton": TritonKernel, "cuda": CudaKernel}


def strided(logits: Tensor) -> Tensor:
    """``logits`` [N, V] if the elements of a row lie next to each other and rows do not overlap, else a copy."""
    return logits if has_rows(logits) else logits.contiguous()


def has_rows(matrix: Tensor) -> bool:
    """Whether the elements of a row of ``matrix`` [N, V] lie next to each other and rows do not overlap."""
    rows, cols = matrix.shape
    return (cols <= 1 or matrix.stride(1) == 1) and (rows <= 1 or matrix.stride(0) >= cols)


def check_gradient(grad: Tensor, logits: Tensor) -> None:
    """Raise ValueError unless a kernel can write the gradient of ``logits`` into ``grad``."""
    if grad.shape != logits.shape or grad.dtype != logits.dtype or grad.device != logits.device:
        raise ValueError(
            f"grad is {tuple(grad.shape)}, {grad.dtype}, {grad.device}; logits are {tuple(logits.shape)}, "
            f"{logits.dtype}, {logits.device}"
        )
    if not has_rows(grad):
        raise ValueError(f"grad has strides {grad.stride()}: elements of a row must lie next to each other, rows apart")


def allocate(logits: Tensor) -> RowResults:
    """Room for the results of the rows of ``logits``."""
    rows = logits.shape[0]
    return RowResults(
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.bool),
        logits.new_empty(rows, 2, dtype=torch.float32),
    )
