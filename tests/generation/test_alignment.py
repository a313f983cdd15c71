from __future__ import annotations

import torch

from pyseq.generation.alignment import hard_alignment, soft_alignment

PAD, EOS = 1, 2


def test_hard_alignment_ignores_padding_and_end_of_sentence():
    source = torch.tensor([PAD, PAD, 5, 6, 7, EOS])
    target = torch.tensor([8, 9, EOS])
    attn = torch.tensor([
        [0.9, 0.0, 0.0, 0.0, 0.1, 0.0],  # mostly on padding: the third word is next
        [0.0, 0.0, 0.3, 0.2, 0.1, 0.4],  # mostly on the end of sentence
        [0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
    ])  # fmt: skip
    assert hard_alignment(attn, source, target, PAD, EOS) == [(2, 0), (0, 1)]


def test_nothing_to_align():
    attn = torch.ones(2, 2)
    words, none = torch.tensor([5, EOS]), torch.tensor([PAD, EOS])
    assert hard_alignment(attn, none, words, PAD, EOS) == []
    assert hard_alignment(attn, words, none, PAD, EOS) == []


def test_soft_alignment_keeps_the_end_of_sentence():
    attn = torch.tensor([[0.0, 0.25, 0.75], [0.0, 1.0, 0.0]])
    source, target = torch.tensor([PAD, 5, EOS]), torch.tensor([8, EOS])
    assert soft_alignment(attn, source, target, PAD) == [["0.250000", "0.750000"], ["1.000000", "0.000000"]]
