"""Attention of the newest position of each hypothesis over keys that a table finds, in Triton. What it computes is said
by ``attend`` in pyseq/ops/decoder_step/.

One program a hypothesis and head: it reads its keys and values once, a block of places at a time, and rescales what it
has summed when a larger score comes (Milakov and Gimelshein, 2018).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyseq.kernels.tables import as_float32, device_of

if TYPE_CHECKING:
    from pyseq.ops.decoder_step.caches import Keys


class Launch(NamedTuple):
    """Lanes of a head (a power of two), places of a block, and warps of 32 threads."""

    lanes: int
    places: int
    num_warps: int


def launch(head_dim: int) -> Launch:
    """Launch parameters for heads of that size: a block of about 4,096 numbers, 32 a thread. Nothing is timed."""
    lanes = triton.next_power_of_2(head_dim)
    return Launch(lanes, places=max(4096 // lanes, 1), num_warps=4)


@triton.jit(do_not_specialize=["slots_stride"])
def _attend_kernel(
    query,
    keys_values,
    slots,
    length,
    out,
    query_stride,
    key_stride,
    slots_stride,
    dim,
    head_dim,
    scale,
    LANES: tl.constexpr,
    PLACES: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = head * head_dim + tl.arange(0, LANES)
    inside = tl.arange(0, LANES) < head_dim
    q = as_float32(tl.load(query + row * query_stride + lane, mask=inside, other=0.0)) * scale
    most = tl.full((), float("-inf"), tl.float32)
    shares = tl.full((), 0.0, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    seen = tl.full((), 0, tl.int32)
    places = tl.load(length)
    for begin in range(0, places, PLACES):
        place = begin + tl.arange(0, PLACES)
        slot = tl.load(slots + row * slots_stride + place, mask=place < places, other=-1).to(tl.int64)
        kept = slot >= 0
        here = keys_values + slot[:, None] * key_stride + lane[None, :]
        mask = kept[:, None] & inside[None, :]
        k = as_float32(tl.load(here, mask=mask, other=0.0))
        v = as_float32(tl.load(here + dim, mask=mask, other=0.0))
        scores = tl.where(kept, tl.sum(k * q[None, :], 1), float("-inf"))
        larger = tl.maximum(most, tl.max(scores))
        base = tl.where(larger == float("-inf"), 0.0, larger)  # nothing but -inf so far: no inf - inf
        share = tl.exp(scores - base)
        before = tl.exp(most - base)
        shares = shares * before + tl.sum(share)
        total = total * before + tl.sum(share[:, None] * v, 0)
        most = larger
        seen += tl.sum(kept.to(tl.int32))
    result = total / tl.where(seen == 0, 1.0, shares)
    tl.store(out + row * dim + lane, result.to(out.dtype.element_ty), mask=inside)


def attend(query: Tensor, keys: Keys, heads: int) -> Tensor:
    """What each query gets [R x C]; zeros where all keys are left out.

    Args:
        query: [R x C], each row in one piece.
        keys: of the same dtype.
    """
    rows, dim = query.shape
    out = torch.empty(rows, dim, dtype=query.dtype, device=query.device)
    if rows == 0:
        return out
    lanes, places, num_warps = launch(dim // heads)
    with device_of(query):
        _attend_kernel[(rows, heads)](
            query,
            keys.keys_values,
            keys.slots,
            keys.length,
            out,
            query.stride(0),
            keys.keys_values.stride(0),
            keys.slots.stride(0),
            dim,
            dim // heads,
            (dim // heads) ** -0.5,
            LANES=lanes,
            PLACES=places,
            num_warps=num_warps,
        )
    return out
