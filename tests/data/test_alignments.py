from __future__ import annotations

import logging

import pytest
import torch

from pyseq.data.dictionary import Dictionary
from pyseq.data.language_pair_dataset import LanguagePairDataset

PAIRS = [[(0, 0), (1, 2), (2, 2)], [(0, 1), (1, 0)], []]
SRC = [[10, 11, 12, 2], [20, 21, 22, 23, 2], [30, 2]]
TGT = [[50, 51, 52, 2], [60, 61, 2], [70, 2]]


def dataset(pairs=PAIRS, **options):
    words = Dictionary()
    src, tgt = ([torch.tensor(s) for s in side] for side in (SRC, TGT))
    flat = [torch.tensor([n for pair in p for n in pair], dtype=torch.long) for p in pairs]
    sizes = ([len(s) for s in side] for side in (SRC, TGT))
    return LanguagePairDataset(src, next(sizes), words, tgt, next(sizes), words, align_dataset=flat, **options)


@pytest.mark.parametrize("left_pad_source", [True, False])
@pytest.mark.parametrize("left_pad_target", [True, False])
def test_positions_point_at_the_aligned_words(left_pad_source, left_pad_target):
    data = dataset(left_pad_source=left_pad_source, left_pad_target=left_pad_target)
    batch = data.collate_indices([0, 1, 2])
    assert batch["id"].tolist() == [1, 0, 2]
    flat_target, width = batch["target"].reshape(-1), batch["target"].size(1)
    words = [
        (int(batch["net_input"]["src_tokens"][t // width, s]), int(flat_target[t]))
        for s, t in batch["alignments"].tolist()
    ]
    assert words == [(20, 61), (21, 60), (10, 50), (11, 52), (12, 52)]
    assert batch["align_weights"].tolist() == [1, 1, 1, 0.5, 0.5]


def test_an_alignment_beyond_its_sentence_is_left_out_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        batch = dataset([[(3, 0)], [(0, 1)], []]).collate_indices([0, 1, 2])
    assert len(batch["alignments"]) == 1
    assert "alignment size mismatch" in caplog.text


def test_a_batch_without_any_alignment_has_no_entry():
    assert "alignments" not in dataset().collate_indices([2])
