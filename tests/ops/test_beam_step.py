"""A step of a beam search: the kernel and its reference, and both against what the words of the definition say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyseq.ops import backend
from pyseq.ops.beam_step import BeamStep, NextBeams, beam_step, reference
from support.backends import needs_core

EOS = 2
INF = math.inf


def some_step(seed: int, sentences: int, width: int, beam: int, count: int, first: bool) -> list[Tensor | None]:
    """Arguments with many equal numbers, ends of sentence, -inf and nan."""
    g = torch.Generator().manual_seed(seed)
    rows = sentences * width
    lprobs = -torch.randint(0, 5, (rows, count), generator=g).float() / 2
    lprobs = lprobs.masked_fill(torch.rand(rows, count, generator=g) < 0.2, -INF).sort(descending=True).values
    lprobs[:, -1:] = lprobs[:, -1:].masked_fill(torch.rand(rows, 1, generator=g) < 0.1, math.nan)
    tokens = torch.randint(0, 5, (rows, count), generator=g)
    totals = -torch.randint(0, 4, (rows,), generator=g).float()
    totals = totals.masked_fill(torch.rand(rows, generator=g) < 0.2, -INF)
    batch = sentences + 3
    sentence = torch.randperm(batch, generator=g)[:sentences].sort().values
    ended = torch.randint(0, beam, (batch,), generator=g)
    return [lprobs, tokens, None if first else totals, sentence, ended]


def same(a: NextBeams, b: NextBeams) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@needs_core
@given(
    seed=st.integers(0, 10_000),
    sentences=st.integers(1, 4),
    beam=st.integers(1, 4),
    extra=st.integers(0, 6),
    first=st.booleans(),
    more=st.integers(0, 8),
)
def test_the_kernel_does_what_the_reference_does(
    seed: int, sentences: int, beam: int, extra: int, first: bool, more: int
) -> None:
    width = 1 if first else beam
    count = -(-beam // width) + extra
    lprobs, tokens, totals, sentence, ended = some_step(seed, sentences, width, beam, count, first)
    assert lprobs is not None and tokens is not None and sentence is not None and ended is not None
    most = min(beam + more, width * count)
    counted, expected_count = ended.clone(), ended.clone()
    with backend("cpp"):
        found = beam_step(BeamStep(lprobs, tokens, totals, sentence, counted, beam, EOS, most))
    expected = reference(BeamStep(lprobs, tokens, totals, sentence, expected_count, beam, EOS, most))
    assert same(found, expected), (found, expected)
    assert torch.equal(counted, expected_count)


@pytest.mark.parametrize("name", ["torch", pytest.param("cpp", marks=needs_core)])
def test_one_sentence_by_hand(name: str) -> None:
    lprobs = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.75, -4.0]])
    tokens = torch.tensor([[7, EOS, 8], [EOS, 9, 7]])
    totals = torch.tensor([-1.0, -2.0])
    ended = torch.tensor([0, 1])
    with backend(name):
        # -2 (7, row 0), -2.5 (end, row 1), -2.75 (9, row 1), -3 (end, row 0: not among the best two)
        found = beam_step(BeamStep(lprobs, tokens, totals, torch.tensor([0]), ended, 2, EOS, 4))
    assert found.totals.tolist() == [[-2.0, -2.75]]
    assert found.tokens.tolist() == [[7, 9]] and found.rows.tolist() == [[0, 1]]
    assert found.sentences.tolist() == [0]
    assert (found.place.tolist(), found.ended_rows.tolist(), found.ended_totals.tolist()) == ([0], [1], [-2.5])
    assert ended.tolist() == [1, 1], "another sentence of the batch is left alone"


@pytest.mark.parametrize("name", ["torch", pytest.param("cpp", marks=needs_core)])
def test_a_sentence_with_all_its_hypotheses_leaves_and_the_others_close_up(name: str) -> None:
    lprobs = torch.tensor([[-1.0, -2.0], [-1.0, -2.0], [-INF, -INF]])
    tokens = torch.tensor([[EOS, 5], [6, 5], [4, 5]])
    ended = torch.tensor([0, 0, 0, 0])
    with backend(name):
        found = beam_step(BeamStep(lprobs, tokens, torch.zeros(3), torch.tensor([0, 2, 3]), ended, 1, EOS, 2))
        assert found.sentences.tolist() == [1], "the first has ended, the third has nothing possible"
        assert found.tokens.tolist() == [[6]] and found.rows.tolist() == [[1]]
        assert found.place.tolist() == [0] and ended.tolist() == [1, 0, 0, 0]
        ended.zero_()
        first = beam_step(BeamStep(lprobs, tokens, None, torch.tensor([0, 2, 3]), ended, 1, EOS, 2))
    assert first.sentences.tolist() == [0, 1, 2], "at the first step all go on where one does"


@needs_core
def test_sizes_that_do_not_fit_are_errors() -> None:
    good = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2)
    ended = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="candidates"):
        beam_step(BeamStep(*good, torch.tensor([0]), ended, 2, EOS, 7))
    with pytest.raises(IndexError, match="sentence"):
        beam_step(BeamStep(*good, torch.tensor([1]), ended, 2, EOS, 4))
