from __future__ import annotations

import math

import pytest
import torch

from pyseq.generation.search import BeamSearch, largest


@pytest.mark.parametrize("vocab", [3, 79, 80, 81, 1000, 9736])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_largest_are_the_largest(vocab, k):
    """Sizes on both sides of where groups begin to pay, and with a rest that fills no group."""
    k = min(k, vocab)
    x = torch.randn(4, 3, vocab, generator=torch.Generator().manual_seed(vocab + k))
    x[0, 0, : vocab // 2] = -math.inf
    x[1, 2] = -math.inf
    x[2, 1, vocab // 3] = math.inf
    values, index = largest(x, k)
    assert torch.equal(values, x.sort(dim=-1, descending=True).values[..., :k])
    assert torch.equal(x.gather(-1, index), values)
    assert index.sort(dim=-1).values.diff(dim=-1).gt(0).all()


@pytest.mark.parametrize("normalized", [True, False])
def test_beam_search_picks_the_best_sums(make_dictionary, normalized):
    dictionary = make_dictionary(50)
    search, beam = BeamSearch(dictionary), 3
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, beam, 50, generator=generator) * 3
    lprobs, normalizer = logits.log_softmax(-1), logits.logsumexp(-1)
    history = torch.randn(2, beam, 4, generator=generator)
    if normalized:
        scores, tokens, beams = search.step(4, lprobs, history)
    else:
        scores, tokens, beams = search.step_unnormalized(4, logits, normalizer, history)
    totals = (lprobs.double() + history[:, :, 3:]).flatten(1)
    best, index = totals.sort(dim=1, descending=True)
    assert torch.allclose(scores.double(), best[:, : 2 * beam], atol=1e-5)
    assert torch.equal(beams * 50 + tokens, index[:, : 2 * beam])


def test_the_first_step_uses_one_hypothesis(make_dictionary):
    """All hypotheses are then equal: taking the best of each would fill the beam with copies of one."""
    dictionary = make_dictionary(12)
    lprobs = torch.randn(2, 1, 12).log_softmax(-1).expand(2, 4, 12)
    scores, tokens, beams = BeamSearch(dictionary).step(0, lprobs, torch.empty(2, 4, 0))
    assert tokens.shape == (2, 8)
    assert beams.eq(0).all()
    assert all(len(set(row)) == 8 for row in tokens.tolist())


def test_rows_that_are_not_finite_lose(make_dictionary):
    dictionary = make_dictionary(12)
    logits = torch.randn(1, 2, 12)
    logits[0, 1, 5] = math.nan
    normalizer = logits.logsumexp(-1)
    scores, _, beams = BeamSearch(dictionary).step_unnormalized(1, logits, normalizer, torch.zeros(1, 2, 1))
    assert beams[scores.isfinite()].eq(0).all()
    assert not scores.isnan().any()
