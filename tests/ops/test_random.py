"""Streams of random numbers: known answers, and the statistics that dropout and rounding rely on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.random import _philox, draw_seed, random_halves

# From the known-answer tests that the authors of Philox publish with Random123: counter, key, result.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def halves(seed: int, count: int) -> Tensor:
    return random_halves(torch.tensor([seed]), count)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter: list[int], key: list[int], result: list[int]) -> None:
    words = _philox([torch.tensor([c]) for c in counter], *(torch.tensor([k]) for k in key))
    assert [int(word) for word in words] == result


def test_order_of_a_stream() -> None:
    stream = halves(0, 256)
    assert stream[:2].tolist() == [0xE8D5, 0x6627]  # the halves of word 0 of block 0
    assert stream[32:34].tolist() == [0xC58D, 0xE169]  # word 1 comes after word 0 of sixteen blocks
    for count in (0, 1, 127, 129):
        assert torch.equal(halves(0, count), stream[:count])


def test_halves_are_uniform_and_independent_of_their_neighbours_and_other_seeds() -> None:
    count = 1 << 18
    stream = halves(1, count).double() / 65536 - 0.5
    assert abs(float(stream.mean())) < 5 * (1 / 12 / count) ** 0.5
    counts = torch.bincount(halves(1, count) >> 8, minlength=256).double()
    expected = count / 256
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - 255) < 5 * (2 * 255) ** 0.5
    others = [stream.roll(lag) for lag in (1, 2, 32, 64, 128, 512)]
    others += [halves(seed, count).double() / 65536 - 0.5 for seed in (0, 2, 3, 1 + 2**32, 1 + 2**62)]
    for other in others:
        correlation = float((stream * other).mean() * 12)
        assert abs(correlation) < 5 / count**0.5


def test_seeds_follow_the_generator_of_torch() -> None:
    def seeds() -> list[int]:
        torch.manual_seed(7)
        return [int(draw_seed(torch.device("cpu"))) for _ in range(100)]

    assert seeds() == seeds()
    assert len(set(seeds())) == 100
    assert min(seeds()) >= 0 and max(seeds()) > 2**61


@pytest.mark.skipif(not dispatch.status("triton").available, reason=dispatch.status("triton").detail)
@pytest.mark.parametrize("seed", [0, 123456789012345678, 2**63 - 1])
def test_triton_draws_the_same_numbers_at_any_place(seed: int) -> None:
    """Tile 2^33 has elements beyond 2^40 and blocks beyond 2^32."""
    import triton
    import triton.language as tl

    from pyseq.kernels.random import random_halves as in_order
    from pyseq.kernels.random import random_halves_at as at

    @triton.jit
    def both(seed, first, ordered, placed):
        offsets = tl.arange(0, 256)
        tl.store(ordered + offsets, in_order(tl.load(seed), tl.load(first), 2))
        tl.store(placed + offsets, at(tl.load(seed), tl.load(first) * 128 + offsets))

    device = "cpu" if dispatch.interpreting() else "cuda"
    both.fn.__globals__.update(tl=tl, in_order=in_order, at=at)
    for tile in (0, 5, 2**33 - 1):
        ordered, placed = torch.empty(2, 256, dtype=torch.int32, device=device).unbind()
        both[(1,)](torch.tensor([seed], device=device), torch.tensor([tile], device=device), ordered, placed)
        block = torch.arange(tile * 16, tile * 16 + 32)
        zero = torch.zeros_like(block)
        key = torch.tensor([seed])
        words = _philox([block & 0xFFFFFFFF, block >> 32, zero, zero], key & 0xFFFFFFFF, key >> 32)
        stream = torch.stack(words, dim=1).view(2, 16, 4).transpose(1, 2).reshape(-1)
        expected = torch.stack([stream & 0xFFFF, stream >> 16], dim=1).view(-1).int()
        assert torch.equal(ordered.cpu(), expected)
        assert torch.equal(placed.cpu(), expected)
