"""Random numbers in Triton: the streams of csrc/math/random.h."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Draws(NamedTuple):
    """Dropout: where the random numbers come from, and what becomes of elements. No seed: no dropout."""

    seed: Tensor | None  # int64 [1]
    limit: int
    scale: float


@triton.jit
def random_halves(seed, first_tile, TILES: tl.constexpr):
    """The 16-bit numbers of ``TILES`` tiles of the stream of ``seed`` from tile ``first_tile`` (int64) on, in order.

    int32 [TILES * 128].
    """
    return _halves(seed, first_tile * 16 + tl.arange(0, TILES * 16).to(tl.int64), TILES)


@triton.jit
def random_tiles(seed, tiles, TILES: tl.constexpr):
    """The 16-bit numbers of some tiles (int64 [TILES]) of the stream of ``seed``: int32 [TILES * 128]."""
    block = tiles[:, None] * 16 + tl.arange(0, 16).to(tl.int64)[None, :]
    return _halves(seed, block.reshape(TILES * 16), TILES)


@triton.jit
def _halves(seed, block, TILES: tl.constexpr):
    """The 16-bit numbers of the blocks of tiles (int64 [TILES * 16])."""
    low, high = (block & 0xFFFFFFFF).to(tl.uint32), (block >> 32).to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(seed, low, high, zero, zero)
    # [block, word 0 or 2, word 1 or 3], then words before the 16 blocks of a tile.
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(TILES, 16, 4)
    words = tl.trans(words, 0, 2, 1)
    halves = tl.join(words & 0xFFFF, words >> 16)
    return halves.reshape(TILES * 128).to(tl.int32)


@triton.jit
def random_halves_at(seed, index):
    """The 16-bit numbers of the stream of ``seed`` at places ``index`` (int64). int32, of the shape of ``index``.

    Eight times the work of :func:`random_halves`: for runs that do not begin at a tile.
    """
    word = index >> 1
    block = (word >> 6) * 16 + (word & 15)
    low, high = (block & 0xFFFFFFFF).to(tl.uint32), (block >> 32).to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(seed, low, high, zero, zero)
    number = (word >> 4) & 3
    bits = tl.where(number < 2, tl.where(number == 0, w0, w1), tl.where(number == 2, w2, w3))
    return ((bits >> ((index & 1) * 16).to(tl.uint32)) & 0xFFFF).to(tl.int32)
