"""Attention of packed sequences in Triton. What it computes is said in pyseq/ops/attention/definition.py.

A program works on a block of queries, or in the backward pass of keys, of one head of one segment; programs beyond the
end of a shorter segment end at once. Scores are computed a block at a time, with the running maximum and sum of each
query (Milakov and Gimelshein 2018), and again in the backward pass from their log-sum-exp (Dao et al. 2022,
"FlashAttention"). Sums have a fixed order: results are the same, bit for bit, every time. In 16-bit dtypes weights and
their gradients are rounded for the tensor cores, which multiply them with values, keys and queries and add up in fp32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyseq.kernels.random import Draws, random_tiles
from pyseq.kernels.tables import as_float32, device_of

if TYPE_CHECKING:
    from pyseq.ops.attention.definition import Options
    from pyseq.ops.attention.kernels import Inputs


class Launch(NamedTuple):
    """Queries and keys of a block, lanes of a head (all powers of two), and warps of 32 threads."""

    queries: int
    keys: int
    lanes: int
    num_warps: int


# By the lanes of a head: the largest blocks found with which no register spills on sm_80, sm_90 and sm_100 (but for the
# gradient of keys in fp32, where heads have more than 64 lanes). tl.dot takes nothing smaller than 16.
Blocks = dict[int, tuple[int, int, int]]  # queries, keys and warps
FORWARD: dict[int, Blocks] = {2: {64: (64, 64, 4), 128: (64, 32, 8), 256: (32, 32, 8)}, 4: {256: (32, 32, 8)}}
OF_QUERIES: dict[int, Blocks] = {2: {64: (64, 32, 4), 128: (64, 32, 8), 256: (32, 32, 8)}, 4: {64: (32, 32, 8)}}
OF_KEYS: dict[int, Blocks] = {2: {64: (32, 32, 4), 128: (32, 64, 8), 256: (32, 32, 8)}, 4: {256: (16, 16, 8)}}


def launch(blocks: dict[int, Blocks], longest: tuple[int, int], head_dim: int, element_size: int) -> Launch:
    """Launch parameters. Nothing is timed.

    Args:
        blocks: one of the tables.
        longest: tokens of the longest segments of queries and of keys: a block is not much larger.
    """
    lanes = max(triton.next_power_of_2(head_dim), 16)
    fitting = next((block for most, block in blocks[element_size].items() if lanes <= most), (16, 16, 8))
    queries, keys = (min(max(triton.next_power_of_2(n), 16), most) for n, most in zip(longest, fitting))
    return Launch(queries, keys, lanes, fitting[2])


@triton.jit
def _rows(x, token, inside, stride, lane, lane_inside):
    """Vectors of some tokens [N, LANES], zeros where there is nothing."""
    return tl.load(x + token[:, None] * stride + lane[None, :], mask=inside[:, None] & lane_inside[None, :], other=0.0)


@triton.jit
def _product(a, b, WIDE: tl.constexpr):
    if WIDE:
        return tl.dot(as_float32(a), as_float32(b), input_precision="ieee")
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _like(weights, rows, WIDE: tl.constexpr):
    """Weights as they are multiplied with ``rows``."""
    if WIDE:
        return weights
    else:
        return weights.to(rows.dtype)


@triton.jit
def _keep(seed, limit, first, query, key, head, heads, across, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Which weights dropout keeps: those of queries and keys from ``query`` and ``key`` of a segment on."""
    row = first + query // 8 + tl.arange(0, QUERIES // 8)
    tile = ((row * heads + head) * across + key // 16)[:, None] + tl.arange(0, KEYS // 16)[None, :]
    halves = random_tiles(seed, tile.reshape(QUERIES * KEYS // 128), QUERIES * KEYS // 128)
    halves = halves.reshape(QUERIES // 8, KEYS // 16, 8, 16)
    return tl.trans(halves, 0, 2, 1, 3).reshape(QUERIES, KEYS) > limit


@triton.jit
def _visible(query, key, queries, keys, CAUSAL: tl.constexpr):
    """Which keys queries see [QUERIES, KEYS]."""
    seen = (query < queries)[:, None] & (key < keys)[None, :]
    if CAUSAL:
        seen = seen & (key[None, :] <= query[:, None])
    return seen


@triton.jit
def _segment(offsets, segment):
    """The first token of a segment, and how many there are."""
    first = tl.load(offsets + segment).to(tl.int64)
    return first, (tl.load(offsets + segment + 1) - first).to(tl.int32)


@triton.jit
def _forward_kernel(
    query,
    key,
    value,
    out,
    log_sums,
    query_offsets,
    key_offsets,
    seed,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    heads,
    head_dim,
    across,
    limit,
    dropout_scale,
    scale,
    CAUSAL: tl.constexpr,
    DROP: tl.constexpr,
    WIDE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,
):
    head = tl.program_id(1)
    first, queries = _segment(query_offsets, tl.program_id(0))
    first_key, keys = _segment(key_offsets, tl.program_id(0))
    begin = tl.program_id(2) * QUERIES
    if begin >= queries:
        return
    lane = tl.arange(0, LANES)
    lane_inside = lane < head_dim
    place = begin + tl.arange(0, QUERIES)
    token = first + place
    q = _rows(query + head * query_head_stride, token, place < queries, query_stride, lane, lane_inside)
    key += head * key_head_stride
    value += head * key_head_stride
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    shares = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, LANES), tl.float32)
    seen = keys
    if CAUSAL:
        seen = tl.minimum(keys, begin + QUERIES)
    for at in range(0, seen, KEYS):
        key_place = at + tl.arange(0, KEYS)
        k = _rows(key, first_key + key_place, key_place < keys, key_stride, lane, lane_inside)
        v = _rows(value, first_key + key_place, key_place < keys, key_stride, lane, lane_inside)
        visible = _visible(place, key_place, queries, keys, CAUSAL)
        scores = tl.where(visible, _product(q, tl.trans(k), WIDE) * scale, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, 1))
        base = tl.where(larger == float("-inf"), 0.0, larger)  # rows of no query: no inf - inf
        weights = tl.exp(scores - base[:, None])
        factor = tl.exp(most - base)
        shares = shares * factor + tl.sum(weights, 1)
        if DROP:
            keep = _keep(tl.load(seed), limit, first, begin, at, head, heads, across, QUERIES, KEYS)
            weights = tl.where(keep, weights, 0.0)
        total = total * factor[:, None] + _product(_like(weights, v, WIDE), v, WIDE)
        most = larger
    shares = tl.where((place < queries) & (keys > 0), shares, 1.0)
    result = total * (dropout_scale / shares)[:, None]
    to = out + (token[:, None] * heads + head) * head_dim + lane[None, :]
    tl.store(to, result.to(out.dtype.element_ty), mask=(place < queries)[:, None] & lane_inside[None, :])
    tl.store(log_sums + token * heads + head, most + tl.log(shares), mask=place < queries)


@triton.jit
def _weights(q, k, log_sum, visible, scale, WIDE: tl.constexpr):
    """The softmax weights of a block, before dropout."""
    scores = _product(q, tl.trans(k), WIDE) * scale
    return tl.where(visible, tl.exp(scores - log_sum[:, None]), 0.0)


@triton.jit
def _gradient_of_scores(weights, of_weights, delta, visible, scale):
    return tl.where(visible, weights * (of_weights - delta[:, None]) * scale, 0.0)


@triton.jit
def _query_kernel(
    query,
    key,
    value,
    out,
    grad_out,
    log_sums,
    deltas,
    grad_query,
    query_offsets,
    key_offsets,
    seed,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    grad_stride,
    grad_head_stride,
    grad_query_stride,
    grad_query_head_stride,
    heads,
    head_dim,
    across,
    limit,
    dropout_scale,
    scale,
    CAUSAL: tl.constexpr,
    DROP: tl.constexpr,
    WIDE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The gradient of a block of queries, and of each query the sum of all weights times their gradients."""
    head = tl.program_id(1)
    first, queries = _segment(query_offsets, tl.program_id(0))
    first_key, keys = _segment(key_offsets, tl.program_id(0))
    begin = tl.program_id(2) * QUERIES
    if begin >= queries:
        return
    lane = tl.arange(0, LANES)
    lane_inside = lane < head_dim
    place = begin + tl.arange(0, QUERIES)
    inside = place < queries
    token = first + place
    q = _rows(query + head * query_head_stride, token, inside, query_stride, lane, lane_inside)
    grad = _rows(grad_out + head * grad_head_stride, token, inside, grad_stride, lane, lane_inside)
    result = _rows(out + head * head_dim, token, inside, heads * head_dim, lane, lane_inside)
    delta = tl.sum(as_float32(grad) * as_float32(result), 1)
    tl.store(deltas + token * heads + head, delta, mask=inside)
    log_sum = tl.load(log_sums + token * heads + head, mask=inside, other=0.0)
    key += head * key_head_stride
    value += head * key_head_stride
    total = tl.zeros((QUERIES, LANES), tl.float32)
    seen = keys
    if CAUSAL:
        seen = tl.minimum(keys, begin + QUERIES)
    for at in range(0, seen, KEYS):
        key_place = at + tl.arange(0, KEYS)
        k = _rows(key, first_key + key_place, key_place < keys, key_stride, lane, lane_inside)
        v = _rows(value, first_key + key_place, key_place < keys, key_stride, lane, lane_inside)
        visible = _visible(place, key_place, queries, keys, CAUSAL)
        weights = _weights(q, k, log_sum, visible, scale, WIDE)
        of_weights = _product(grad, tl.trans(v), WIDE)
        if DROP:
            keep = _keep(tl.load(seed), limit, first, begin, at, head, heads, across, QUERIES, KEYS)
            of_weights = tl.where(keep, of_weights * dropout_scale, 0.0)
        of_scores = _gradient_of_scores(weights, of_weights, delta, visible, scale)
        total += _product(_like(of_scores, k, WIDE), k, WIDE)
    to = grad_query + head * grad_query_head_stride + token[:, None] * grad_query_stride + lane[None, :]
    tl.store(to, total.to(grad_query.dtype.element_ty), mask=inside[:, None] & lane_inside[None, :])


@triton.jit
def _key_kernel(
    query,
    key,
    value,
    grad_out,
    log_sums,
    deltas,
    grad_key,
    grad_value,
    query_offsets,
    key_offsets,
    seed,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    grad_stride,
    grad_head_stride,
    grad_key_stride,
    grad_key_head_stride,
    heads,
    head_dim,
    across,
    limit,
    dropout_scale,
    scale,
    CAUSAL: tl.constexpr,
    DROP: tl.constexpr,
    WIDE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The gradients of a block of keys and their values."""
    head = tl.program_id(1)
    first, queries = _segment(query_offsets, tl.program_id(0))
    first_key, keys = _segment(key_offsets, tl.program_id(0))
    begin = tl.program_id(2) * KEYS
    if begin >= keys:
        return
    lane = tl.arange(0, LANES)
    lane_inside = lane < head_dim
    key_place = begin + tl.arange(0, KEYS)
    key_inside = key_place < keys
    key_token = first_key + key_place
    k = _rows(key + head * key_head_stride, key_token, key_inside, key_stride, lane, lane_inside)
    v = _rows(value + head * key_head_stride, key_token, key_inside, key_stride, lane, lane_inside)
    query += head * query_head_stride
    grad_out += head * grad_head_stride
    of_keys = tl.zeros((KEYS, LANES), tl.float32)
    of_values = tl.zeros((KEYS, LANES), tl.float32)
    start = 0
    if CAUSAL:
        start = begin // QUERIES * QUERIES
    for at in range(start, queries, QUERIES):
        place = at + tl.arange(0, QUERIES)
        inside = place < queries
        token = first + place
        q = _rows(query, token, inside, query_stride, lane, lane_inside)
        grad = _rows(grad_out, token, inside, grad_stride, lane, lane_inside)
        log_sum = tl.load(log_sums + token * heads + head, mask=inside, other=0.0)
        delta = tl.load(deltas + token * heads + head, mask=inside, other=0.0)
        visible = _visible(place, key_place, queries, keys, CAUSAL)
        weights = _weights(q, k, log_sum, visible, scale, WIDE)
        of_weights = _product(grad, tl.trans(v), WIDE)
        kept = weights
        if DROP:
            keep = _keep(tl.load(seed), limit, first, at, begin, head, heads, across, QUERIES, KEYS)
            kept = tl.where(keep, weights * dropout_scale, 0.0)
            of_weights = tl.where(keep, of_weights * dropout_scale, 0.0)
        of_scores = _gradient_of_scores(weights, of_weights, delta, visible, scale)
        of_values += _product(tl.trans(_like(kept, grad, WIDE)), grad, WIDE)
        of_keys += _product(tl.trans(_like(of_scores, q, WIDE)), q, WIDE)
    to = head * grad_key_head_stride + key_token[:, None] * grad_key_stride + lane[None, :]
    mask = key_inside[:, None] & lane_inside[None, :]
    tl.store(grad_key + to, of_keys.to(grad_key.dtype.element_ty), mask=mask)
    tl.store(grad_value + to, of_values.to(grad_value.dtype.element_ty), mask=mask)


def _run(
    kernel: Any,
    blocks: dict[int, Blocks],
    tokens: int,
    inputs: Inputs,
    options: Options,
    draws: Draws,
    wide: bool,
    **rest: Tensor | int,
) -> None:
    """Launch a kernel whose programs work on blocks of one of both: of queries (``tokens`` 0) or of keys (1)."""
    query, key, value = inputs.heads()
    longest = options.longest_query, options.longest_key
    queries, keys, lanes, num_warps = launch(blocks, longest, query.size(2), query.element_size())
    segments = inputs.query_offsets.numel() - 1
    if segments == 0 or longest[tokens] == 0:
        return
    with device_of(query):
        kernel[segments, query.size(1), triton.cdiv(longest[tokens], (queries, keys)[tokens])](
            query=query,
            key=key,
            value=value,
            query_offsets=inputs.query_offsets,
            key_offsets=inputs.key_offsets,
            seed=draws.seed,
            query_stride=query.stride(0),
            query_head_stride=query.stride(1),
            key_stride=key.stride(0),
            key_head_stride=key.stride(1),
            heads=query.size(1),
            head_dim=query.size(2),
            across=triton.cdiv(options.longest_key, 16),
            limit=draws.limit,
            dropout_scale=1.0 if draws.seed is None else draws.scale,
            scale=options.scale,
            CAUSAL=options.causal,
            DROP=draws.seed is not None,
            WIDE=wide,
            QUERIES=queries,
            KEYS=keys,
            LANES=lanes,
            num_warps=num_warps,
            **rest,
        )


def forward(inputs: Inputs, options: Options, draws: Draws, out: Tensor, log_sums: Tensor, wide: bool) -> None:
    """Fill the output [Tq, H, D] and the log-sum-exp [Tq, H].

    Args:
        wide: multiply in fp32 whatever the dtype, as the interpreter has to.
    """
    _run(_forward_kernel, FORWARD, 0, inputs, options, draws, wide, out=out, log_sums=log_sums)


def backward(
    grad_out: Tensor,
    out: Tensor,
    log_sums: Tensor,
    inputs: Inputs,
    options: Options,
    draws: Draws,
    grads: tuple[Tensor, Tensor, Tensor],
    wide: bool,
) -> None:
    """Fill the gradients of query, key and value [T, H, D]."""
    grad_query, grad_key, grad_value = grads
    shared: dict[str, Any] = {
        "grad_out": grad_out,
        "grad_stride": grad_out.stride(0),
        "grad_head_stride": grad_out.stride(1),
        "log_sums": log_sums,
        "deltas": torch.empty_like(log_sums),
    }
    _run(
        _query_kernel,
        OF_QUERIES,
        0,
        inputs,
        options,
        draws,
        wide,
        **shared,
        out=out,
        grad_query=grad_query,
        grad_query_stride=grad_query.stride(0),
        grad_query_head_stride=grad_query.stride(1),
    )
    _run(
        _key_kernel,
        OF_KEYS,
        1,
        inputs,
        options,
        draws,
        wide,
        **shared,
        grad_key=grad_key,
        grad_value=grad_value,
        grad_key_stride=grad_key.stride(0),
        grad_key_head_stride=grad_key.stride(1),
    )
