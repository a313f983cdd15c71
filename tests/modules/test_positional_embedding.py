from __future__ import annotations

import numpy as np
import pytest
import torch

from pyseq.modules import LearnedPositionalEmbedding, PositionalEmbedding, SinusoidalPositionalEmbedding

PAD = 1
TOKENS = torch.tensor([[5, 6, 7, 8], [PAD, PAD, 5, 6], [5, 6, PAD, PAD]])
POSITIONS = [[2, 3, 4, 5], [PAD, PAD, 2, 3], [2, 3, PAD, PAD]]


@pytest.mark.parametrize("dim", [2, 6, 7, 16])
def test_sinusoids_are_those_of_the_formula(dim: int) -> None:
    half = dim // 2
    frequencies = np.exp(-np.arange(half) * np.log(1e4) / max(half - 1, 1))
    table = np.zeros((6, dim))
    for position in range(2, 6):
        table[position, :half] = np.sin(position * frequencies)
        table[position, half : 2 * half] = np.cos(position * frequencies)
    embed = PositionalEmbedding(4, dim, PAD)
    np.testing.assert_allclose(embed(TOKENS).numpy(), table[np.array(POSITIONS)], atol=1e-6)
    assert not embed.state_dict() and not list(embed.parameters())


def test_learned_positions_skip_padding() -> None:
    embed = PositionalEmbedding(4, 8, PAD, learned=True)
    assert isinstance(embed, LearnedPositionalEmbedding)
    assert embed.weight.shape == (6, 8) and embed.max_positions == 4
    assert torch.equal(embed(TOKENS), embed.weight[torch.tensor(POSITIONS)])
    assert torch.all(embed.weight[PAD] == 0)


@pytest.mark.parametrize("learned", [False, True])
def test_a_step_of_generation_has_the_vector_of_its_position(learned: bool) -> None:
    embed = PositionalEmbedding(8, 6, PAD, learned=learned)
    tokens = torch.tensor([[5, 6, 7], [8, 9, 5]])
    full = embed(tokens)
    for length in (1, 2, 3):
        step = embed(tokens[:, :length], incremental_state={})
        assert torch.equal(step.expand(2, 1, -1), full[:, length - 1 : length])


def test_the_sinusoidal_table_grows() -> None:
    small, large = (
        SinusoidalPositionalEmbedding(6, PAD, init_size=3),
        SinusoidalPositionalEmbedding(6, PAD, init_size=99),
    )
    tokens = torch.full((2, 40), 5)
    assert torch.equal(small.double()(tokens), large.double()(tokens))
    assert small.weights.dtype == torch.float64
    small, half = SinusoidalPositionalEmbedding(6, PAD, init_size=3), large.to(torch.bfloat16)
    assert torch.equal(small.to(torch.bfloat16)(tokens, incremental_state={})[:, 0], half(tokens)[:, -1])


def test_sentences_one_after_another_need_a_table_for_the_longest() -> None:
    embed = SinusoidalPositionalEmbedding(6, PAD, init_size=9)
    positions = torch.arange(PAD + 1, 9).repeat(50).unsqueeze(0)  # as Packing numbers them
    assert torch.equal(embed(torch.full_like(positions, 5), positions=positions), embed.weights[positions])
    assert len(embed.weights) == 9
    embed(torch.full_like(positions, 5), positions=positions + 20)
    assert len(embed.weights) == 29
