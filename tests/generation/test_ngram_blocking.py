from __future__ import annotations

import math

import pytest
import torch

from pyseq.generation.ngram_blocking import block_repeated_ngrams

PAD, EOS, VOCAB = 1, 2, 9


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 12])
def test_forbids_exactly_what_would_repeat(size, length):
    """Against a search for the n-gram in the list of earlier ones; few words, so that repetitions are many."""
    generator = torch.Generator().manual_seed(size * 100 + length)
    tokens = torch.randint(EOS, VOCAB, (30, length), generator=generator)
    tokens[:, 0] = EOS
    lprobs = torch.zeros(30, VOCAB)
    lprobs[:, PAD] = -math.inf
    block_repeated_ngrams(tokens, lprobs, size, PAD, EOS)
    for row, allowed in zip(tokens.tolist(), lprobs.eq(0).tolist()):
        earlier = [row[i : i + size] for i in range(length - size + 1)]
        for token in range(VOCAB):
            repeats = [*row, token][-size:] in earlier and len(row) + 1 >= size
            assert allowed[token] == (token != PAD and (token == EOS or not repeats))
