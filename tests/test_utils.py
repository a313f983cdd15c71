"""Helpers against brute force."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyseq import utils
from pyseq.errors import ConfigError

PAD = 1
rows = st.lists(st.lists(st.integers(2, 9), max_size=5), min_size=1, max_size=4)


def padded(sentences: list[list[int]], left: bool) -> torch.Tensor:
    width = max(map(len, sentences)) or 1
    fill = [[PAD] * (width - len(s)) for s in sentences]
    return torch.tensor([f + s if left else s + f for f, s in zip(fill, sentences)])


@given(rows)
def test_convert_padding_direction_moves_padding_and_nothing_else(sentences):
    right, left = padded(sentences, left=False), padded(sentences, left=True)
    assert torch.equal(utils.convert_padding_direction(right, PAD, right_to_left=True), left)
    assert torch.equal(utils.convert_padding_direction(left, PAD, left_to_right=True), right)
    assert torch.equal(utils.convert_padding_direction(left, PAD, right_to_left=True), left)


@given(rows, st.booleans())
def test_positions_count_real_tokens_from_padding_plus_one(sentences, left):
    tokens = padded(sentences, left)
    expected = torch.full_like(tokens, PAD)
    for i, row in enumerate(tokens.tolist()):
        position = PAD
        for j, token in enumerate(row):
            if token != PAD:
                position += 1
                expected[i, j] = position
    assert torch.equal(utils.make_positions(tokens, PAD), expected)


def test_resolve_max_positions_takes_the_tightest_of_every_kind():
    assert utils.resolve_max_positions(None, 5) == 5
    assert utils.resolve_max_positions((1024, 512), 600) == (600, 512)
    assert utils.resolve_max_positions((1024, None), (None, 7), 9) == (9, 7)
    assert utils.resolve_max_positions({"a": 3, "b": (4, 5)}, {"a": 2}) == {"a": 2, "b": (4, 5)}


def test_unknown_activation_names_the_nearest():
    with pytest.raises(ConfigError, match="'gelu'"):
        utils.get_activation_fn("glu_")


def test_apply_keeps_the_structure():
    sample = {"a": torch.ones(1), "b": [torch.ones(1), 3, None], "c": (torch.ones(1), {"d": "text"})}
    doubled = utils.apply_to_sample(lambda t: t * 2, sample)
    assert doubled["a"].item() == 2 and doubled["b"][0].item() == 2 and doubled["c"][0].item() == 2
    assert doubled["b"][1:] == [3, None] and doubled["c"][1] == {"d": "text"}


def test_a_moved_batch_remembers_its_integers_until_they_are_written_to():
    sample = {"tokens": torch.tensor([[4, 5, PAD]]), "weights": torch.ones(2)}
    moved = utils.move_to_device(sample, "meta")
    assert utils.host_copy(moved["tokens"]) is sample["tokens"]
    assert utils.host_copy(moved["weights"]) is moved["weights"]
    assert utils.host_copy(sample["tokens"]) is sample["tokens"]
    assert utils.host_copy(moved["tokens"].clone()).device.type == "meta"
    copied = copy.deepcopy(moved["tokens"])
    assert utils.host_copy(copied) is copied
    moved["tokens"][:, 0] = 7  # as a task may, which masks words
    assert utils.host_copy(moved["tokens"]) is moved["tokens"]
    with torch.inference_mode():
        inferred = utils.move_to_device(sample, "meta")["tokens"]
        assert utils.host_copy(inferred) is inferred
