"""Random numbers that depend on a seed and their place alone, so that every back end draws the same ones.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"); csrc/math/random.h says how a stream
of them is laid out. Operations that draw take a seed, an int64 tensor [1], which :func:`draw_seed` takes from torch's
generator: ``torch.manual_seed`` fixes a run, and recomputing a checkpointed block draws the same numbers again.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_TILE = 64  # 16 blocks of 4 words


def draw_seed(device: torch.device) -> Tensor:
    """A seed from torch's generator of ``device``: int64 [1], on ``device``.

    On a GPU it is drawn there: nothing waits for the device, and replaying a CUDA graph draws a new one.
    """
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device)


def random_halves(seed: Tensor, count: int) -> Tensor:
    """The first ``count`` 16-bit numbers of a seed's stream 0: int64 [count], in plain torch.

    Args:
        seed: int64 [1].
    """
    return random_tiles(seed, torch.arange(-(-count // (2 * _TILE)), device=seed.device)).view(-1)[:count]


def random_tiles(seed: Tensor, tiles: Tensor) -> Tensor:
    """The 128 16-bit numbers from ``128 * tile`` on, of a seed's stream 0: int64 [..., 128], in plain torch.

    Args:
        seed: int64 [1].
        tiles: int64 [...].
    """
    words = _words(seed, torch.zeros_like(seed), tiles)
    return torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten(-2)


def random_words(seed: Tensor, number: Tensor, count: int) -> Tensor:
    """The first ``count`` 32-bit numbers of stream ``number`` of a seed: int64 [count], in plain torch.

    Args:
        seed, number: int64 [1].
    """
    return _words(seed, number, torch.arange(-(-count // _TILE), device=seed.device)).view(-1)[:count]


def _words(seed: Tensor, number: Tensor, tiles: Tensor) -> Tensor:
    """The words of some tiles of a stream: int64 [..., 64]."""
    block = tiles.unsqueeze(-1) * 16 + torch.arange(16, device=seed.device)
    place = [_low(block), _high(block), _low(number).expand_as(block), _high(number).expand_as(block)]
    return torch.stack(_philox(place, _low(seed), _high(seed)), dim=-2).flatten(-2)


def _low(number: Tensor) -> Tensor:
    return number & _MASK


def _high(number: Tensor) -> Tensor:
    return (number >> 32) & _MASK


def _philox(counter: list[Tensor], key0: Tensor, key1: Tensor) -> list[Tensor]:
    c0, c1, c2, c3 = counter
    for _ in range(_ROUNDS):
        # Products wrap around in 64 bits, which leaves both halves of their 64 bits right.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ key0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ key1, p0 & _MASK
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return [c0, c1, c2, c3]
