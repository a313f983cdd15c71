"""Adam and AdamW for lists of tensors, in place: unscale, clip, decay, update and round in one pass over the memory.

At step t, for a parameter p with gradient g (Kingma and Ba, 2015)::

    g = factor / grad_scale * grad      negated to maximize
    g = g + weight_decay p              Adam
    p = p - lr weight_decay p           AdamW (``decoupled``; Loshchilov and Hutter, 2019)
    m = beta1 m + (1 - beta1) g
    v = beta2 v + (1 - beta2) g^2
    p = p - lr / (1 - beta1^t)  m / (sqrt(v) / sqrt(1 - beta2^t) + eps)     eps_mode "torch"
    p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t)  m / (sqrt(v) + eps)       eps_mode "fairseq"

With ``max_exp_avg_sqs`` (amsgrad; Reddi et al., 2018) the largest v so far stands for v in the last line. Arithmetic is
fp32 or better whatever the dtypes, with the factors of a step in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.remainder import join_master, split_master
from pyseq.ops.segments import AdamPlan, Columns, check_columns

EpsMode = Literal["torch", "fairseq"]
GRADS = 1  # the place of gradients among the columns
EXTRA_NUMBERS = {None: 0, torch.float32: 1, torch.int16: 2}  # masters, remainders; as in csrc/cpu/adam.h
SEED_MASK = (1 << 64) - 1

dispatch.register_operation("adam", cpp=dispatch.KERNEL_DTYPES)


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
        in its tensor (rows are whole tensors then), word i of the random stream (``seed``, t << 32 | ``key``) of
        csrc/math/random.h rounds exp_avg with its low 16 bits and exp_avg_sq with its high 16 bits. p is updated from
        the numbers before they are rounded. max_exp_avg_sq is the larger of what is stored and the rounded exp_avg_sq.
        """
        raise NotImplementedError


class CppKernel(Kernel):
    @staticmethod
    def update(plan: AdamPlan, rule: Rule, scalars: Scalars) -> None:
        lr = scalars.lr
        dtypes = plan.dtypes
        dispatch.required_core().adam(
            plan.table.data_ptr(),
            len(plan.table),
            *(dispatch.DTYPE_NUMBERS[dtype] for dtype in dtypes[:3]),
            EXTRA_NUMBERS[dtypes.extra],
            *rule[:4],
            rule.decoupled,
            rule.eps_mode == "torch",
            rule.maximize,
            rule.zero_grads,
            rule.seed & SEED_MASK,
            scalars.step.data_ptr(),
            0.0 if isinstance(lr, Tensor) else lr,
            *(value.data_ptr() if isinstance(value, Tensor) else 0 for value in (lr, *scalars[2:])),
            torch.get_num_threads(),
        )


KERNELS: dict[str, type[Kernel]] = {"cpp": CppKernel}


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
    columns = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, _only(masters, remainders))
    _check_rule(rule)
    scalars = _scalars(step, lr, factor, grad_scale, found_inf)
    chosen = dispatch.choose("adam", step.device.type, params[0].dtype if params else torch.float32)
    if chosen == "torch":
        check_columns(columns)
        reference(columns, rule, scalars)
        return
    plan = AdamPlan() if plan is None else plan
    copies = plan.update(columns)
    if params and plan.device != step.device:
        raise ValueError(f"step is on {step.device}, params[0] on {plan.device}")
    KERNELS[chosen].update(plan, rule, scalars)
    for place, tensor, copy in copies:
        if place != GRADS:
            tensor.copy_(copy)
        elif zero_grads:
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

    for i, param in enumerate(columns[0] or ()):
        _, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, extra = (None if c is None else c[i] for c in columns)
        assert grad is not None and exp_avg is not None and exp_avg_sq is not None
        dtype = torch.promote_types(param.dtype, torch.float32)
        p = param.to(dtype) if extra is None else extra if extra.dtype == dtype else join_master(param, extra)
        g = grad.to(dtype) * factor.to(dtype) * (-1 if rule.maximize else 1)
        if rule.decoupled:
            p = p - (scalars.lr * rule.weight_decay) * p
        elif rule.weight_decay != 0:
            g = g + rule.weight_decay * p
        m = rule.beta1 * exp_avg.to(dtype) + (1 - rule.beta1) * g
        v = rule.beta2 * exp_avg_sq.to(dtype) + (1 - rule.beta2) * g * g
        largest = v if max_exp_avg_sq is None else torch.maximum(max_exp_avg_sq.to(dtype), v)
        p = p - size.to(dtype) * m / (largest.sqrt() / divisor + rule.eps)
        write(exp_avg, m)
        write(exp_avg_sq, v)
        write(max_exp_avg_sq, largest)
        if extra is not None and extra.dtype == torch.int16:
            rounded, remainder = split_master(p)
            write(param, rounded)
            write(extra, remainder)
        else:
            write(param, p)
            write(extra, p)
        if rule.zero_grads:
            grad.zero_()
    scalars.step.add_(skip.logical_not())


def _only(masters: Sequence[Tensor] | None, remainders: Sequence[Tensor] | None) -> Sequence[Tensor] | None:
    if masters is not None and remainders is not None:
        raise ValueError("masters and remainders are two ways to keep the same bits: give one of them")
    return masters if remainders is None else remainders


def _check_rule(rule: Rule) -> None:
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(rule, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), not {getattr(rule, name)}")
    for name in ("eps", "weight_decay"):
        if not 0 <= getattr(rule, name) < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, not {getattr(rule, name)}")
    if rule.eps_mode not in ("torch", "fairseq"):
        raise ValueError(f"eps_mode must be 'torch' or 'fairseq', not {rule.eps_mode!r}")


def _scalars(
    step: Tensor, lr: float | Tensor, factor: Tensor | None, grad_scale: Tensor | None, found_inf: Tensor | None
) -> Scalars:
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
    return value.detach().to(device, torch.float32, non_blocking=True).reshape(())
