"""Adam in Triton. What it computes is said in pyseq/ops/adam.py and csrc/math/adam.h.

A first launch of one program turns the numbers of the step into fp32 factors, in fp64, and advances the step. In the
second, a program updates a chunk of one row of the table.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyseq.kernels.tables import (
    DeviceTable,
    as_float32,
    bits_of,
    column,
    device_of,
    double_of,
    elements,
    is_aligned,
    row_of_chunk,
    search_steps,
    with_chunks,
)

# param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, master or remainder, elements, key, first chunk
TABLE_WIDTH = tl.constexpr(9)
ADDRESSES = 6
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.int16: tl.int16}
FACTORS = 16  # room for the ten fp32 numbers that _begin_kernel writes


class Launch(NamedTuple):
    """Elements of a program, and its warps of 32 threads."""

    block: int
    num_warps: int


def launch(least_bytes: int, aligned: bool) -> Launch:
    """Launch parameters where the smallest dtype has so many bytes: 16 bytes of it a thread. Nothing is timed.

    Where addresses are not aligned nothing is gained by eight elements a thread, which spill on sm_80.
    """
    return Launch(1024, 4 if least_bytes < 4 and aligned else 8)


@triton.jit(
    do_not_specialize=["beta1_bits", "beta2_bits", "eps_bits", "weight_decay_bits", "lr_bits", "log1_bits", "log2_bits"]
)
def _begin_kernel(
    factors,
    step,
    lr,
    factor,
    grad_scale,
    found_inf,
    beta1_bits,
    beta2_bits,
    log1_bits,
    log2_bits,
    eps_bits,
    weight_decay_bits,
    lr_bits,
    DECOUPLED: tl.constexpr,
    CORRECTED_EPS: tl.constexpr,
    MAXIMIZE: tl.constexpr,
):
    done = tl.load(step)
    t = done.to(tl.float64) + 1
    beta1, beta2 = double_of(beta1_bits), double_of(beta2_bits)
    rate = double_of(lr_bits)
    if lr is not None:
        rate = tl.load(lr).to(tl.float64)
    gradient = t / t
    if factor is not None:
        gradient = tl.load(factor).to(tl.float64)
    if grad_scale is not None:
        gradient = gradient / tl.load(grad_scale).to(tl.float64)
    if MAXIMIZE:
        gradient = -gradient
    skip = t * 0
    if found_inf is not None:
        skip = tl.where(tl.load(found_inf) != 0, t / t, t * 0)
    correction1 = 1 - tl.exp(t * double_of(log1_bits))
    root2 = tl.sqrt(1 - tl.exp(t * double_of(log2_bits)))
    weight_decay, eps = double_of(weight_decay_bits), double_of(eps_bits)
    tl.store(factors, gradient.to(tl.float32))
    tl.store(factors + 1, (weight_decay * 0 if DECOUPLED else weight_decay).to(tl.float32))
    tl.store(factors + 2, (rate * weight_decay if DECOUPLED else weight_decay * 0).to(tl.float32))
    tl.store(factors + 3, (1 - beta1).to(tl.float32))
    tl.store(factors + 4, beta2.to(tl.float32))
    tl.store(factors + 5, (1 - beta2).to(tl.float32))
    tl.store(factors + 6, (rate * root2 / correction1).to(tl.float32))
    tl.store(factors + 7, (eps * root2 if CORRECTED_EPS else eps).to(tl.float32))
    tl.store(factors + 8, skip.to(tl.float32))
    tl.store(factors + 9, t.to(tl.float32))
    if skip == 0:
        tl.store(step, done + 1)


@triton.jit
def _round_to_bf16(value):
    """To nearest, ties to even; a nan stays one. (The interpreter's own conversion truncates.)"""
    bits = value.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = tl.where(value != value, (bits >> 16) | 0x40, rounded)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _stochastically_to_bf16(value, random16):
    """round_stochastically of csrc/math/random.h."""
    bits = value.to(tl.uint32, bitcast=True)
    up = bits + random16
    special = (bits & 0x7F800000) == 0x7F800000
    rounded = tl.where((up & 0x7F800000) == 0x7F800000, bits, up) >> 16
    kept = (bits >> 16) | tl.where((bits & 0x7FFFFF) != 0, bits * 0 + 0x40, bits * 0)
    return tl.where(special, kept, rounded).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _converted(value, DTYPE: tl.constexpr):
    if tl.bfloat16 == DTYPE:
        return _round_to_bf16(value)
    else:
        return value.to(DTYPE)


@triton.jit
def _random_words(seed, number, first_tile, TILES: tl.constexpr):
    """The words of ``TILES`` tiles of stream ``number`` from ``first_tile`` on (csrc/math/random.h): uint32."""
    block = first_tile * 16 + tl.arange(0, TILES * 16).to(tl.int64)
    low, high = (block & 0xFFFFFFFF).to(tl.uint32), (block >> 32).to(tl.uint32)
    zero = block * 0
    number_low = (zero + (number & 0xFFFFFFFF)).to(tl.uint32)
    number_high = (zero + (number >> 32)).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, low, high, number_low, number_high)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(TILES, 16, 4)
    return tl.trans(words, 0, 2, 1).reshape(TILES * 64)


@triton.jit
def _join_master(high, low):
    high = high.to(tl.uint16, bitcast=True).to(tl.uint32)
    low = low.to(tl.uint16, bitcast=True).to(tl.uint32)
    return (((high - (low >> 15)) << 16) | low).to(tl.float32, bitcast=True)


@triton.jit
def _split_master(value):
    bits = value.to(tl.uint32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    quiet = tl.where(value != value, (bits >> 16) | 0x40, bits >> 16)
    high = tl.where(finite, (bits + 0x8000) >> 16, quiet)
    low = tl.where(finite, bits & 0xFFFF, bits * 0)
    return high.to(tl.uint16).to(tl.bfloat16, bitcast=True), low.to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit
def _larger(a, b):
    """Where either is nan, the result is nan."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit(do_not_specialize=["rows", "steps", "seed"])
def _update_kernel(
    table,
    factors,
    rows,
    steps,
    seed,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    EXTRA: tl.constexpr,
    AMSGRAD: tl.constexpr,
    ZERO_GRADS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    row = row_of_chunk(table, rows, steps, chunk, TABLE_WIDTH)
    begin = (chunk - tl.load(row + 8)) * BLOCK
    offsets = begin + tl.arange(0, BLOCK)
    inside = offsets < elements(row, 6, ALIGNED)
    grad = column(row, 1, GRAD, ALIGNED) + offsets
    if tl.load(factors + 8) == 0:
        param = column(row, 0, PARAM, ALIGNED) + offsets
        exp_avg = column(row, 2, STATE, ALIGNED) + offsets
        exp_avg_sq = column(row, 3, STATE, ALIGNED) + offsets
        g = as_float32(tl.load(grad, mask=inside, other=0.0)) * tl.load(factors)
        if tl.float32 == EXTRA:
            extra = column(row, 5, EXTRA, ALIGNED) + offsets
            p = tl.load(extra, mask=inside, other=0.0)
        elif tl.int16 == EXTRA:
            extra = column(row, 5, EXTRA, ALIGNED) + offsets
            p = _join_master(tl.load(param, mask=inside, other=0.0), tl.load(extra, mask=inside, other=0))
        else:
            p = as_float32(tl.load(param, mask=inside, other=0.0))
        m = as_float32(tl.load(exp_avg, mask=inside, other=0.0))
        v = as_float32(tl.load(exp_avg_sq, mask=inside, other=0.0))

        l2 = tl.load(factors + 1)
        decay = tl.load(factors + 2)
        if l2 != 0:
            g = tl.fma(tl.broadcast_to(l2, p.shape), p, g)
        decayed = p
        if decay != 0:
            decayed = tl.fma(tl.broadcast_to(-decay, p.shape), p, p)
        m = tl.fma(g - m, tl.broadcast_to(tl.load(factors + 3), m.shape), m)
        v = tl.fma(v, tl.broadcast_to(tl.load(factors + 4), v.shape), tl.load(factors + 5) * g * g)
        if tl.bfloat16 == STATE:
            number = (tl.load(factors + 9).to(tl.int64) << 32) | tl.load(row + 7)
            words = _random_words(seed, number, begin // 64, BLOCK // 64)
            stored_m = _stochastically_to_bf16(m, words & 0xFFFF)
            stored_v = _stochastically_to_bf16(v, words >> 16)
        else:
            stored_m = m
            stored_v = v
        if AMSGRAD:
            most = column(row, 4, STATE, ALIGNED) + offsets
            before = as_float32(tl.load(most, mask=inside, other=0.0))
            v = _larger(before, v)
            tl.store(most, _converted(_larger(before, as_float32(stored_v)), STATE), mask=inside)
        divisor = tl.sqrt_rn(v) + tl.load(factors + 7)
        p = tl.fma(tl.broadcast_to(-tl.load(factors + 6), p.shape), tl.div_rn(m, divisor), decayed)

        tl.store(exp_avg, stored_m, mask=inside)
        tl.store(exp_avg_sq, stored_v, mask=inside)
        if tl.int16 == EXTRA:
            high, low = _split_master(p)
            tl.store(param, high, mask=inside)
            tl.store(extra, low, mask=inside)
        else:
            tl.store(param, _converted(p, PARAM), mask=inside)
            if tl.float32 == EXTRA:
                tl.store(extra, p, mask=inside)
    if ZERO_GRADS:
        tl.store(grad, tl.zeros((BLOCK,), GRAD), mask=inside)


def update(table: Tensor, dtypes: Any, cache: dict[str, Any], rule: Any, scalars: Any) -> None:
    """One step. The arguments are those of Kernel.update in pyseq/ops/adam.py: a plan's table, dtypes and cache."""
    device = scalars.step.device
    with device_of(scalars.step):
        factors = torch.empty(FACTORS, dtype=torch.float32, device=device)
        _begin(factors, rule, scalars)
        if len(table) == 0:
            return
        least_bytes = min(dtype.itemsize for dtype in dtypes if dtype is not None)
        on_device = cache.setdefault("triton", DeviceTable())
        rows, (chunks, aligned, (block, num_warps)) = on_device.get(table, device, partial(_prepare, least_bytes))
        _update_kernel[(chunks,)](
            rows,
            factors,
            len(rows),
            search_steps(len(rows)),
            rule.seed,
            PARAM=TYPES[dtypes.param],
            GRAD=TYPES[dtypes.grad],
            STATE=TYPES[dtypes.state],
            EXTRA=None if dtypes.extra is None else TYPES[dtypes.extra],
            AMSGRAD=bool(table[0, 4] != 0),
            ZERO_GRADS=rule.zero_grads,
            ALIGNED=aligned,
            BLOCK=block,
            num_warps=num_warps,
        )


def _prepare(least_bytes: int, table: Tensor) -> tuple[Tensor, tuple[int, bool, Launch]]:
    aligned = is_aligned(table[:, : ADDRESSES + 1])
    launched = launch(least_bytes, aligned)
    rows, chunks = with_chunks(table, ADDRESSES, launched.block)
    return rows, (chunks, aligned, launched)


def _begin(factors: Tensor, rule: Any, scalars: Any) -> None:
    lr = scalars.lr
    number, tensor = (0.0, lr) if isinstance(lr, Tensor) else (lr, None)
    logs = (_log(rule.beta1), _log(rule.beta2))
    _begin_kernel[(1,)](
        factors,
        scalars.step,
        tensor,
        scalars.factor,
        scalars.grad_scale,
        scalars.found_inf,
        *(bits_of(value) for value in (rule.beta1, rule.beta2, *logs, rule.eps, rule.weight_decay, number)),
        DECOUPLED=rule.decoupled,
        CORRECTED_EPS=rule.eps_mode == "torch",
        MAXIMIZE=rule.maximize,
        num_warps=1,
    )


def _log(beta: float) -> float:
    """The natural logarithm; of 0 a number whose exponential is 0 (0 times -inf would be nan)."""
    return math.log(beta) if beta > 0.0 else -1e6
