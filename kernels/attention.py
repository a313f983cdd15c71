"""Attention of packed sequences in Triton. See pyseq/ops/attention/definition.py.

Forward: one program a block of queries of a head of a segment, over blocks of keys with a running maximum and sum (Dao
et al. 2022, "FlashAttention"). Backward: one program a block of queries for their gradient, then one a block of keys
for that of keys and values: nothing is added up across programs. Products of 16-bit tensors take weights and their
gradients rounded to 16 bits, and sum in fp32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyseq.kernels.random import random_tiles


class Draws(NamedTuple):
    """Dropout: where the random numbers come from, and what becomes of weights. No seed: no dropout."""

    seed: Tensor | None  # int64 [1]
    limit: int
    scale: float


class Segments(NamedTuple):
    query_offsets: Tensor
    key_offsets: Tensor
    longest_query: int
    longest_key: int


class Launch(NamedTuple):
    """Queries and keys of a block, dims of a row (a power of two), and warps of 32 threads."""

    queries: int
    keys: int
    dim: int
    num_warps: int


def launch(dim: int, element_size: int, backward: bool) -> Launch:
    """Launch parameters for heads of ``dim`` numbers: what fits the registers. Nothing is timed."""
    lanes = max(triton.next_power_of_2(dim), 16)
    if element_size == 4:
        size = 32 if lanes <= 64 else 16
        return Launch(size, size, lanes, num_warps=4 if lanes <= 128 else 8)
    if lanes <= 64:
        return Launch(64, 64, lanes, num_warps=4)
    return Launch(64 if lanes <= 128 else 32, 32, lanes, num_warps=8 if backward else 4)


@triton.jit
def _keep(seed, first_token, query, head, key, heads, across, limit, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Which weights of a block stay: the queries and keys of a segment from numbers ``query`` and ``key`` on."""
    row = first_token.to(tl.int64) + query // 8 + tl.arange(0, QUERIES // 8)
    tiles = ((row * heads + head) * across)[:, None] + (key // 16 + tl.arange(0, KEYS // 16))[None, :]
    TILES: tl.constexpr = QUERIES // 8 * (KEYS // 16)
    halves = random_tiles(tl.load(seed), tiles.reshape(TILES), TILES).reshape(QUERIES // 8, KEYS // 16, 8, 16)
    return tl.trans(halves, 0, 2, 1, 3).reshape(QUERIES, KEYS) > limit


@triton.jit
def _rows(base, token, count, first, head, token_stride, head_stride, dim, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Addresses and mask [ROWS, DIM] of rows ``first`` on of a segment of ``count`` tokens that begins at ``token``."""
    row = first + tl.arange(0, ROWS)
    lane = tl.arange(0, DIM)
    place = base + (token + row).to(tl.int64)[:, None] * token_stride + head * head_stride + lane[None, :]
    return place, (row < count)[:, None] & (lane < dim)[None, :]


@triton.jit
def _place(offsets, segment):
    begin = tl.load(offsets + segment)
    return begin, tl.load(offsets + segment + 1) - begin


@triton.jit
def _forward_kernel(
    q,
    k,
    v,
    out,
    log_sums,
    query_offsets,
    key_offsets,
    seed,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    heads,
    dim,
    blocks,
    across,
    scale,
    limit,
    kept_scale,
    CAUSAL: tl.constexpr,
    DROP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    program = tl.program_id(0)
    first = program % blocks * QUERIES
    head = program // blocks % heads
    segment = program // blocks // heads
    query_token, queries = _place(query_offsets, segment)
    key_token, keys = _place(key_offsets, segment)
    if first >= queries:
        return
    place, inside = _rows(q, query_token, queries, first, head, q_token, q_head, dim, QUERIES, DIM)
    query = tl.load(place, mask=inside, other=0.0).to(PRODUCT)
    row = first + tl.arange(0, QUERIES)
    largest = tl.zeros((QUERIES,), tl.float32) - float("inf")
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, DIM), tl.float32)
    end = tl.minimum(keys, first + QUERIES) if CAUSAL else keys
    for begin in range(0, end, KEYS):
        place, inside = _rows(k, key_token, keys, begin, head, k_token, k_head, dim, KEYS, DIM)
        scores = (
            tl.dot(query, tl.trans(tl.load(place, mask=inside, other=0.0).to(PRODUCT)), input_precision="ieee") * scale
        )
        col = begin + tl.arange(0, KEYS)
        seen = (col < keys)[None, :]
        if CAUSAL:
            seen = seen & (col[None, :] <= row[:, None])
        scores = tl.where(seen, scores, -float("inf"))
        new = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - new[:, None])
        factor = tl.exp(largest - new)
        total = total * factor + tl.sum(weights, 1)
        if DROP:
            keep = _keep(seed, query_token, first, head, begin, heads, across, limit, QUERIES, KEYS)
            weights = tl.where(keep, weights, 0.0)
        place, inside = _rows(v, key_token, keys, begin, head, v_token, v_head, dim, KEYS, DIM)
        value = tl.load(place, mask=inside, other=0.0).to(PRODUCT)
        sums = sums * factor[:, None] + tl.dot(weights.to(PRODUCT), value, input_precision="ieee")
        largest = new
    result = sums * (tl.where(total == 0.0, 0.0, kept_scale / total))[:, None]
    place, inside = _rows(out, query_token, queries, first, head, heads * dim, dim, dim, QUERIES, DIM)
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)
    tl.store(log_sums + (query_token + row).to(tl.int64) * heads + head, largest + tl.log(total), mask=row < queries)


@triton.jit
def _gradients(
    query,
    key,
    value,
    grad_out,
    log_sums,
    delta,
    scale,
    kept_scale,
    row,
    col,
    queries,
    keys,
    keep,
    CAUSAL: tl.constexpr,
    DROP: tl.constexpr,
):
    """Of a block: the weights after dropout, and the gradients of the scores before scaling."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    seen = (row < queries)[:, None] & (col < keys)[None, :]
    if CAUSAL:
        seen = seen & (col[None, :] <= row[:, None])
    weights = tl.exp(tl.where(seen, scores - log_sums[:, None], -float("inf")))
    grads = tl.dot(grad_out, tl.trans(value), input_precision="ieee")
    kept = weights
    if DROP:
        kept = tl.where(keep, weights * kept_scale, 0.0)
        grads = tl.where(keep, grads * kept_scale, 0.0)
    return kept, tl.where(seen, weights * (grads - delta[:, None]) * scale, 0.0)


@triton.jit
def _query_kernel(
    q,
    k,
    v,
    out,
    grad_out,
    log_sums,
    delta,
    grad_q,
    query_offsets,
    key_offsets,
    seed,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    g_token,
    g_head,
    grad_token,
    heads,
    dim,
    blocks,
    across,
    scale,
    limit,
    kept_scale,
    CAUSAL: tl.constexpr,
    DROP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """The gradient of a block of queries; and delta, of each query the sum of weights times their gradients."""
    program = tl.program_id(0)
    first = program % blocks * QUERIES
    head = program // blocks % heads
    segment = program // blocks // heads
    query_token, queries = _place(query_offsets, segment)
    key_token, keys = _place(key_offsets, segment)
    if first >= queries:
        return
    place, inside = _rows(q, query_token, queries, first, head, q_token, q_head, dim, QUERIES, DIM)
    query = tl.load(place, mask=inside, other=0.0).to(PRODUCT)
    place, inside = _rows(grad_out, query_token, queries, first, head, g_token, g_head, dim, QUERIES, DIM)
    grad = tl.load(place, mask=inside, other=0.0).to(PRODUCT)
    place, inside = _rows(out, query_token, queries, first, head, heads * dim, dim, dim, QUERIES, DIM)
    products = tl.sum(grad.to(tl.float32) * tl.load(place, mask=inside, other=0.0).to(tl.float32), 1)
    row = first + tl.arange(0, QUERIES)
    entry = (query_token + row).to(tl.int64) * heads + head
    tl.store(delta + entry, products, mask=row < queries)
    log_sum = tl.load(log_sums + entry, mask=row < queries, other=0.0)
    sums = tl.zeros((QUERIES, DIM), tl.float32)
    end = tl.minimum(keys, first + QUERIES) if CAUSAL else keys
    for begin in range(0, end, KEYS):
        place, inside = _rows(k, key_token, keys, begin, head, k_token, k_head, dim, KEYS, DIM)
        key = tl.load(place, mask=inside, other=0.0).to(PRODUCT)
        place, inside = _rows(v, key_token, keys, begin, head, v_token, v_head, dim, KEYS, DIM)
        value = tl.load(place, mask=inside, other=0.0).to(PRODUCT)
        keep = 0
        if DROP:
            keep = _keep(seed, query_token, first, head, begin, heads, across, limit, QUERIES, KEYS)
        col = begin + tl.arange(0, KEYS)
        _, grads = _gradients(
            query, key, value, grad, log_sum, products, scale, kept_scale, row, col, queries, keys, keep, CAUSAL, DROP
        )
        sums += tl.dot(grads.to(PRODUCT), key, input_precision="ieee")
    place, inside = _rows(grad_q, query_token, queries, first, head, grad_token, dim, dim, QUERIES, DIM)
    tl.store(place, sums.to(grad_q.dtype.element_ty), mask=inside)


@triton.jit
def _key_kernel(
    q,
    k,
    v,
    grad_out,
    log_sums,
    delta,
    grad_k,
    grad_v,
    query_offsets,
    key_offsets,
    seed,
    q_token,
    q_head,
    k_token,
    k_head,
    v_token,
    v_head,
    g_token,
    g_head,
    grad_token,
    heads,
    dim,
    blocks,
    across,
    scale,
    limit,
    kept_scale,
    CAUSAL: tl.constexpr,
    DROP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """The gradients of a block of keys and values."""
    program = tl.program_id(0)
    first = program % blocks * KEYS
    head = program // blocks % heads
    segment = program // blocks // heads
    query_token, queries = _place(query_offsets, segment)
    key_token, keys = _place(key_offsets, segment)
    if first >= keys:
        return
    place, inside = _rows(k, key_token, keys, first, head, k_token, k_head, dim, KEYS, DIM)
    key = tl.load(place, mask=inside, other=0.0).to(PRODUCT)
    place, inside = _rows(v, key_token, keys, first, head, v_token, v_head, dim, KEYS, DIM)
    value = tl.load(place, mask=inside, other=0.0).to(PRODUCT)
    col = first + tl.arange(0, KEYS)
    key_sums = tl.zeros((KEYS, DIM), tl.float32)
    value_sums = tl.zeros((KEYS, DIM), tl.float32)
    start = first // QUERIES * QUERIES if CAUSAL else 0
    for begin in range(start, queries, QUERIES):
        place, inside = _rows(q, query_token, queries, begin, head, q_token, q_head, dim, QUERIES, DIM)
        query = tl.load(place, mask=inside, other=0.0).to(PRODUCT)
        place, inside = _rows(grad_out, query_token, queries, begin, head, g_token, g_head, dim, QUERIES, DIM)
        grad = tl.load(place, mask=inside, other=0.0).to(PRODUCT)
        row = begin + tl.arange(0, QUERIES)
        entry = (query_token + row).to(tl.int64) * heads + head
        log_sum = tl.load(log_sums + entry, mask=row < queries, other=0.0)
        products = tl.load(delta + entry, mask=row < queries, other=0.0)
        keep = 0
        if DROP:
            keep = _keep(seed, query_token, begin, head, first, heads, across, limit, QUERIES, KEYS)
        weights, grads = _gradients(
            query, key, value, grad, log_sum, products, scale, kept_scale, row, col, queries, keys, keep, CAUSAL, DROP
        )
        value_sums += tl.dot(tl.trans(weights.to(PRODUCT)), grad, input_precision="ieee")
        key_sums += tl.dot(tl.trans(grads.to(PRODUCT)), query, input_precision="ieee")
    place, inside = _rows(grad_k, key_token, keys, first, head, grad_token, dim, dim, KEYS, DIM)
    tl.store(place, key_sums.to(grad_k.dtype.element_ty), mask=inside)
    place, inside = _rows(grad_v, key_token, keys, first, head, grad_token, dim, dim, KEYS, DIM)
    tl.store(place, value_sums.to(grad_v.dtype.element_ty), mask=inside)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    causal: bool,
    scale: float,
    draws: Draws,
    out: Tensor,
    log_sums: Tensor,
) -> None:
    """Fill out [Tq, H, D] and log_sums [Tq, H], both contiguous. Of q, k and v [T, H, D], the dims are contiguous."""
    _, heads, dim = q.shape
    size = launch(dim, q.element_size(), backward=False)
    blocks = triton.cdiv(segments.longest_query, size.queries)
    programs = blocks * heads * (segments.query_offsets.numel() - 1)
    if programs == 0:
        return
    with _device_of(q):
        _forward_kernel[(programs,)](
            q,
            k,
            v,
            out,
            log_sums,
            segments.query_offsets,
            segments.key_offsets,
            q if draws.seed is None else draws.seed,
            *(stride for tensor in (q, k, v) for stride in tensor.stride()[:2]),
            heads,
            dim,
            blocks,
            triton.cdiv(segments.longest_key, 16),
            scale,
            draws.limit,
            draws.scale,
            CAUSAL=causal,
            DROP=draws.seed is not None,
            QUERIES=size.queries,
            KEYS=size.keys,
            DIM=size.dim,
            PRODUCT=_product(q),
            num_warps=size.num_warps,
        )


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    grad_out: Tensor,
    log_sums: Tensor,
    segments: Segments,
    causal: bool,
    scale: float,
    draws: Draws,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
) -> None:
    """Fill the gradients: [T, H, D], whose heads lie without gaps."""
    _, heads, dim = q.shape
    size = launch(dim, q.element_size(), backward=True)
    count = segments.query_offsets.numel() - 1
    query_blocks = triton.cdiv(segments.longest_query, size.queries)
    key_blocks = triton.cdiv(segments.longest_key, size.keys)
    offsets = segments.query_offsets, segments.key_offsets, q if draws.seed is None else draws.seed
    strides = [stride for tensor in (q, k, v, grad_out) for stride in tensor.stride()[:2]]
    numbers = triton.cdiv(segments.longest_key, 16), scale, draws.limit, draws.scale
    options = {"CAUSAL": causal, "DROP": draws.seed is not None, "QUERIES": size.queries, "KEYS": size.keys}
    options |= {"DIM": size.dim, "PRODUCT": _product(q), "num_warps": size.num_warps}
    delta = torch.empty_like(log_sums)
    with _device_of(q):
        if query_blocks * count:
            _query_kernel[(query_blocks * heads * count,)](
                *(q, k, v, out, grad_out, log_sums, delta, grad_q, *offsets, *strides, grad_q.stride(0)),
                *(heads, dim, query_blocks, *numbers),
                **options,
            )
        if key_blocks * count:
            _key_kernel[(key_blocks * heads * count,)](
                *(q, k, v, grad_out, log_sums, delta, grad_k, grad_v, *offsets, *strides, grad_k.stride(0)),
                *(heads, dim, key_blocks, *numbers),
                **options,
            )


def _product(tensor: Tensor) -> tl.dtype:
    """What products take: fp32 for bfloat16 in the interpreter, which multiplies the bits of bfloat16 as integers."""
    if tensor.dtype == torch.bfloat16:
        return tl.bfloat16 if tensor.is_cuda else tl.float32
    return tl.float16 if tensor.dtype == torch.float16 else tl.float32


def _device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Kernels are launched on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
