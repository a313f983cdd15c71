"""Adam and AdamW for lists of tensors, in place: unscale, clip, decay, update and round in one pass over the memory.

At step t, for a parameter p with gradient g (Kingma and Ba, 2015)::

    g = factor / grad_scale * grad      negated to maximize
    g = g + weight_decay p              Adam
    p = p - lr weight_decay p           AdamW (``decoupled``; Loshchilov and Hutter, 2019)
    m = m + (1 - beta1) (g - m)
    v = beta2 v + (1 - beta2) g^2
    p = p - lr / (1 - beta1^t)  m / (sqrt(v) / sqrt(1 - beta2^t) + eps)     eps_mode "torch"
    p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t)  m / (sqrt(v) + eps)       eps_mode "fairseq"

With ``max_exp_avg_sqs`` (amsgrad; Reddi et al., 2018) the largest v so far stands for v in the last line. Arithmetic is
fp32 or better whatever the dtypes, with the factors of a step in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.gpu_memory import UploadedTable, stream_of, workspace
from pyseq.ops.random import random_words
from pyseq.ops.remainder import join_master, split_master
from pyseq.ops.segments import AdamPlan, Columns, WriteBack, check_columns, increment_version, is_dense

EpsMode = Literal["torch", "fairseq"]
GRADS = 1  # the place of gradients among the columns
EXTRA_NUMBERS = {None: 0, torch.float32: 1, torch.int16: 2}  # masters, remainders; as in csrc/cpu/adam.h

dispatch.register_operation(
    "adam", cpp=dispatch.KERNEL_DTYPES, triton=dispatch.KERNEL_DTYPES, cuda=dispatch.KERNEL_DTYPES
)


class Rule(NamedTuple):
    """What an update does, apart from the numbers that change from step to step."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool
    eps_mode: str
    maximize: bool
    zero_grads: bool
    seed: int


class Scalars(NamedTuple):
    """The numbers of a step: each an fp32 tensor of one element on the device of the parameters, or absent."""

    step: Tensor
    lr: Tensor | float
    factor: Tensor | None
    grad_scale: Tensor | None
    found_inf: Tensor | None


class Kernel:
    """A back end of this operation."""

    @staticmethod
    def update(plan: AdamPlan, rule: Rule, scalars: Scalars) -> None:
        """One step of everything in ``plan.table``, and ``scalars.step += 1``, without waiting for the device.

        Where ``found_inf`` is not 0, ``step`` and all memory keep their bits, but ``zero_grads`` zeroes gradients. The
        table may have no rows: only ``step`` is advanced then.

        ``plan`` gives the table, the dtypes and the device (:class:`AdamPlan`). ``scalars.lr`` is a number or a tensor;
        ``factor``, ``grad_scale`` and ``found_inf`` are tensors or None.

        Stochastic rounding (bf16 states): with t the number of this step (``step`` + 1) and i the place of an element
        in its row (which is a whole tensor then), word i of the random stream (``seed``, t << 32 | ``key``) of
        csrc/math/random.h rounds exp_avg with its low 16 bits and exp_avg_sq with its high 16 bits. p is updated from
        the numbers before they are rounded. max_exp_avg_sq is the larger of what is stored and the rounded exp_avg_sq.
        """
        raise NotImplementedError


class CppKernel(Kernel):
    @staticmethod
    def update(plan: AdamPlan, rule: Rule, scalars: Scalars) -> None:
        dispatch.required_core().adam(
            plan.table.data_ptr(),
            len(plan.table),
            *_dtype_numbers(plan),
            *_numbers(rule, scalars),
            torch.get_num_threads(),
        )


class TritonKernel(Kernel):
    @staticmethod
    def update(plan: AdamPlan, rule: Rule, scalars: Scalars) -> None:
        from pyseq.kernels import adam as kernels

        kernels.update(plan.table, plan.dtypes, plan.cache, rule, scalars)


class CudaKernel(Kernel):
    @staticmethod
    def update(plan: AdamPlan, rule: Rule, scalars: Scalars) -> None:
        native, device, dtypes = dispatch.required_cuda(), scalars.step.device, _dtype_numbers(plan)
        if plan.cache.get("dtypes") != dtypes:
            segments = torch.empty(len(plan.table), 9, dtype=torch.int64)
            chunks = native.adam_segments(plan.table.data_ptr(), len(segments), *dtypes, segments.data_ptr())
            plan.cache.update(dtypes=dtypes, segments=segments, chunks=chunks, uploaded=UploadedTable())
        segments = plan.cache["segments"]
        with torch.cuda.device(device):
            stream = stream_of(device)
            uploaded = None
            if len(segments) > native.adam_inline_segments:
                uploaded = plan.cache["uploaded"].get(segments, device, stream)
            native.adam(
                segments.data_ptr(),
                0 if uploaded is None else uploaded.data_ptr(),
                len(segments),
                plan.cache["chunks"],
                *dtypes,
                *_numbers(rule, scalars),
                workspace(device, stream).data_ptr(),
                stream,
            )


def _dtype_numbers(plan: AdamPlan) -> tuple[int, ...]:
    """The dtypes of the columns as the core and the CUDA kernels know them."""
    return *(dispatch.DTYPE_NUMBERS[dtype] for dtype in plan.dtypes[:3]), EXTRA_NUMBERS[plan.dtypes.extra]


def _numbers(rule: Rule, scalars: Scalars) -> tuple[Any, ...]:
    """The rule and the addresses of scalars, in the order in which the core and the CUDA kernels take them."""
    lr = scalars.lr
    return (
        *rule[:4],
        rule.decoupled,
        rule.eps_mode == "torch",
        rule.maximize,
        rule.zero_grads,
        rule.seed,
        scalars.step.data_ptr(),
        0.0 if isinstance(lr, Tensor) else lr,
        *(value.data_ptr() if isinstance(value, Tensor) else 0 for value in (lr, *scalars[2:])),
    )


KERNELS: dict[str, type[Kernel]] = {"cpp": CppKernel, "triton": TritonKernel, "cuda": CudaKernel}


@torch.no_grad()
def adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    step: Tensor,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    max_exp_avg_sqs: Sequence[Tensor] | None = None,
    masters: Sequence[Tensor] | None = None,
    remainders: Sequence[Tensor] | None = None,
    decoupled: bool,
    eps_mode: EpsMode,
    maximize: bool = False,
    factor: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    zero_grads: bool = False,
    seed: int = 0,
    plan: AdamPlan | None = None,
) -> None:
    """One step of Adam in place; see the head of this file.

    Args:
        params: fp32, bf16, fp16 or fp64 tensors of any shapes and strides, all of one dtype and on one device, as the
            tensors of each other list are.
        grads: of the parameters' dtype, or fp32; bf16 or fp16 beside fp32 parameters.
        exp_avgs, exp_avg_sqs: m and v. fp32, or bf16, which is rounded stochastically (fp64 beside fp64 parameters).
        step: fp32, 0-d, on the device: how many steps have been made. Advanced by one.
        lr: a number or a tensor of one element.
        max_exp_avg_sqs: the largest v so far, as exp_avg_sqs; with it the update is amsgrad's.
        masters: fp32 numbers that bf16 or fp16 parameters are roundings of. They are what is updated.
        remainders: int16, beside bf16 parameters: the masters are (parameter, remainder); see pyseq.ops.remainder.
            With neither, a 16-bit parameter is updated in fp32 and rounded to nearest even.
        decoupled: AdamW; otherwise Adam.
        factor: multiplies the gradients as they are read (:attr:`GradNorm.factor`). One element.
        grad_scale: divides them (torch.amp.GradScaler). One element.
        found_inf: where it is not 0, nothing changes, ``step`` included; only ``zero_grads`` is still done.
        zero_grads: leave gradients of zeros.
        seed: of stochastic rounding. The same seed, step and values give the same bits on any device.
        plan: kept by the caller for calls with the same tensors, it saves host time.

    Raises:
        TypeError: dtypes that are not listed above.
        ValueError: lengths, shapes, devices or options do not fit.
    """
    rule = Rule(beta1, beta2, eps, weight_decay, decoupled, eps_mode, maximize, zero_grads, seed)
    columns = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, _extras(masters, remainders))
    scalars = scalars_on(step, lr, factor, grad_scale, found_inf)
    update_(columns, rule, scalars, AdamPlan() if plan is None else plan)


def update_(columns: Columns, rule: Rule, scalars: Scalars, plan: AdamPlan, followed: bool = False) -> None:
    """:func:`adam_` for callers that have all this in hand, and gradients turned off.

    Args:
        followed: ``plan.follow`` has just given the gradients, and the caller knows that the other tensors are those of
            the call before: the plan looks at none of them again.
    """
    _check_rule(rule)
    params, step = columns[0], scalars.step
    assert params is not None
    if params and params[0].device != step.device:
        raise ValueError(f"step is on {step.device}, params[0] on {params[0].device}")
    chosen = dispatch.choose("adam", step.device.type, params[0].dtype if params else torch.float32)
    if chosen == "torch":
        check_columns(columns)
        reference(columns, rule, scalars)
    elif torch.compiler.is_compiling():
        _call_operator(columns, rule, scalars)
    else:
        copies = [] if followed else plan.update(columns)
        # Autograd has to know that what it may have saved changes. Now, while what that touches is in the cache.
        increment_version(params)
        _update(KERNELS[chosen], plan, copies, rule, scalars)


def _update(kernel: type[Kernel], plan: AdamPlan, copies: WriteBack, rule: Rule, scalars: Scalars) -> None:
    kernel.update(plan, rule, scalars)
    for place, tensor, copy in copies:
        if place != GRADS:
            tensor.copy_(copy)
        elif rule.zero_grads:
            tensor.zero_()


def reference(columns: Columns, rule: Rule, scalars: Scalars) -> None:
    """The update in plain torch: what the kernels compute."""
    t = scalars.step.double() + 1
    correction1, correction2 = 1 - rule.beta1**t, (1 - rule.beta2**t).sqrt()
    size = scalars.lr / correction1 * (correction2 if rule.eps_mode == "fairseq" else 1)
    divisor = 1 if rule.eps_mode == "fairseq" else correction2
    factor = torch.ones_like(t) if scalars.factor is None else scalars.factor.double()
    factor = factor if scalars.grad_scale is None else factor / scalars.grad_scale
    skip = torch.zeros_like(t, dtype=torch.bool) if scalars.found_inf is None else scalars.found_inf != 0

    def write(target: Tensor | None, value: Tensor) -> None:
        if target is not None:
            target.copy_(torch.where(skip, target, value.to(target.dtype)))

    def rounded(value: Tensor, dtype: torch.dtype, key: int, shift: int) -> Tensor:
        """``value`` as a state: rounded stochastically if that is bf16."""
        if dtype != torch.bfloat16:
            return value
        seed = torch.tensor([rule.seed], device=t.device)
        number = (t.long().view(1) << 32) | key
        words = in_memory_order(random_words(seed, number, value.numel()), columns[0][key])  # type: ignore[index]
        return round_stochastically(value, (words >> shift) & 0xFFFF)

    for i, param in enumerate(columns[0] or ()):
        _, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, extra = (None if c is None else c[i] for c in columns)
        assert grad is not None and exp_avg is not None and exp_avg_sq is not None
        dtype = torch.promote_types(param.dtype, torch.float32)
        p = param.to(dtype) if extra is None else extra if extra.dtype == dtype else join_master(param, extra)
        g = grad.to(dtype) * factor.to(dtype) * (-1 if rule.maximize else 1)
        if rule.weight_decay != 0 and rule.decoupled:
            p = p - (scalars.lr * rule.weight_decay) * p
        elif rule.weight_decay != 0:
            g = g + rule.weight_decay * p
        m = exp_avg.to(dtype).lerp(g, 1 - rule.beta1)
        v = rule.beta2 * exp_avg_sq.to(dtype) + (1 - rule.beta2) * g * g
        largest = v if max_exp_avg_sq is None else torch.maximum(max_exp_avg_sq.to(dtype), v)
        p = p - size.to(dtype) * m / (largest.sqrt() / divisor + rule.eps)
        m, v = rounded(m, exp_avg.dtype, i, 0), rounded(v, exp_avg.dtype, i, 16)
        write(exp_avg, m)
        write(exp_avg_sq, v)
        write(max_exp_avg_sq, v if max_exp_avg_sq is None else torch.maximum(max_exp_avg_sq.to(dtype), v))
        if extra is not None and extra.dtype == torch.int16:
            high, remainder = split_master(p)
            write(param, high)
            write(extra, remainder)
        else:
            write(param, p)
            write(extra, p)
        if rule.zero_grads:
            grad.zero_()
    scalars.step.add_(skip.logical_not())


def in_memory_order(values: Tensor, like: Tensor) -> Tensor:
    """``values`` [n] as a tensor of the shape of ``like``, in the order of its elements in memory if it is dense."""
    if like.is_contiguous() or not is_dense(like):
        return values.view(like.shape)
    out = torch.empty_like(like, dtype=values.dtype, memory_format=torch.preserve_format)
    out.as_strided(values.shape, (1,)).copy_(values)
    return out


def round_stochastically(value: Tensor, random: Tensor) -> Tensor:
    """An fp32 ``value`` rounded to bf16: up with the probability of the distance to the number below.

    ``random`` has 16 random bits for each element, as an integer.
    Finite stays finite, and nan stays nan. Returned in the dtype of ``value``.
    """
    bits = value.view(torch.int32)
    up = bits + random.to(torch.int32)
    exponent = 0x7F800000
    bits = torch.where(value.isfinite() & (up & exponent != exponent), up, bits)
    bits = torch.where(value.isnan(), bits | 0x400000, bits)
    return (bits >> 16).to(torch.int16).view(torch.bfloat16).to(value.dtype)


def _extras(masters: Sequence[Tensor] | None, remainders: Sequence[Tensor] | None) -> Sequence[Tensor] | None:
    if masters is not None and remainders is not None:
        raise ValueError("masters and remainders are two ways to keep the same bits: give one of them")
    for name, tensors, dtype in (("masters", masters, torch.float32), ("remainders", remainders, torch.int16)):
        if tensors and tensors[0].dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, not {tensors[0].dtype}")
    return masters if remainders is None else remainders


def _check_rule(rule: Rule) -> None:
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(rule, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), not {getattr(rule, name)}")
    for name in ("eps", "weight_decay"):
        if not 0 <= getattr(rule, name) < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, not {getattr(rule, name)}")
    if not 0 <= rule.seed < 1 << 63:
        raise ValueError(f"seed must be in [0, 2^63), not {rule.seed}")
    if rule.eps_mode not in ("torch", "fairseq"):
        raise ValueError(f"eps_mode must be 'torch' or 'fairseq', not {rule.eps_mode!r}")


def scalars_on(
    step: Tensor, lr: float | Tensor, factor: Tensor | None, grad_scale: Tensor | None, found_inf: Tensor | None
) -> Scalars:
    """The numbers of a step, on the device of ``step``. Raises TypeError or ValueError for what does not fit."""
    if step.dtype != torch.float32 or step.numel() != 1:
        raise TypeError(f"step must be an fp32 tensor of one element, not {step.dtype}, shape {tuple(step.shape)}")
    if not isinstance(lr, Tensor) and not 0 <= lr < math.inf:
        raise ValueError(f"lr must be a finite number of at least 0, not {lr}")
    on_device = [
        None if value is None else _scalar(name, value, step.device)
        for name, value in (("factor", factor), ("grad_scale", grad_scale), ("found_inf", found_inf))
    ]
    return Scalars(step, _scalar("lr", lr, step.device) if isinstance(lr, Tensor) else float(lr), *on_device)


def _scalar(name: str, value: Tensor, device: torch.device) -> Tensor:
    if value.numel() != 1:
        raise ValueError(f"{name} must have one element, not shape {tuple(value.shape)}")
    if value.dtype == torch.float32 and value.dim() == 0 and value.device == device:
        return value
    return value.detach().to(device, torch.float32, non_blocking=True).reshape(())


# The same for torch.compile, which needs an operator that it can see. Lists that are absent are empty.
_library = torch.library.Library("pyseq", "FRAGMENT")
_library.define(
    "adam_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
    "Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] extras, Tensor(g!) step, Tensor? lr_tensor, float lr, Tensor? factor, "
    "Tensor? grad_scale, Tensor? found_inf, float beta1, float beta2, float eps, float weight_decay, bool decoupled, "
    "str eps_mode, bool maximize, bool zero_grads, int seed) -> ()"
)


def _call_operator(columns: Columns, rule: Rule, scalars: Scalars) -> None:
    lists = [[] if column is None else list(column) for column in columns]
    lr = (scalars.lr, 0.0) if isinstance(scalars.lr, Tensor) else (None, scalars.lr)
    torch.ops.pyseq.adam_(*lists, scalars.step, *lr, *scalars[2:], *rule)


def _operator(*arguments: Any) -> None:
    lists, (step, lr_tensor, lr, *others), rule = arguments[:6], arguments[6:12], Rule(*arguments[12:])
    columns = [column if place < 4 or column else None for place, column in enumerate(lists)]
    scalars = Scalars(step, lr if lr_tensor is None else lr_tensor, *others)
    chosen = dispatch.choose("adam", step.device.type, lists[0][0].dtype if lists[0] else torch.float32)
    if chosen == "torch":
        reference(columns, rule, scalars)
    else:
        plan = AdamPlan()
        _update(KERNELS[chosen], plan, plan.update(columns), rule, scalars)


_library.impl("adam_", _operator, "CompositeExplicitAutograd")


@torch.library.register_fake("pyseq::adam_", lib=_library)
def _(*arguments: Any) -> None:
    return None
