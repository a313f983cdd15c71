from __future__ import annotations

import pytest
import torch

from pyseq.data.dictionary import Dictionary
from pyseq.data.lm_context_window_dataset import LMContextWindowDataset
from pyseq.data.monolingual_dataset import MonolingualDataset
from pyseq.data.token_block_dataset import TokenBlockDataset

PAD, EOS = 1, 2
SENTENCES = [[10, 11, 12, EOS], [13, EOS], [14, 15, 16, 17, 18, EOS], [19, 20, EOS]]


def lm(mode, size):
    blocks = TokenBlockDataset(
        [torch.tensor(s) for s in SENTENCES],
        [len(s) for s in SENTENCES],
        size,
        PAD,
        EOS,
        break_mode=mode,
        include_targets=True,
    )
    return MonolingualDataset(blocks, blocks.sizes, Dictionary(), targets=["future"])


@pytest.mark.parametrize("mode, size", [("none", 4), ("complete", 4), ("eos", 6)])
@pytest.mark.parametrize("window", [0, 1, 3, 5])
def test_each_token_is_scored_once_and_sees_what_was_before_it(mode, size, window):
    data = lm(mode, size)
    with_context = LMContextWindowDataset(data, size, window, PAD)
    assert with_context.ordered_indices().tolist() == list(range(len(data)))
    scored, stream = [], []
    for indices in ([0, 1], list(range(2, len(data)))):
        batch = with_context.collate_indices(indices)
        for row, index in enumerate(indices):
            source, target = data[index]["source"].tolist(), data[index]["target"].tolist()
            room = max(min(window, size + window - len(source)), 0)
            context = stream[max(len(stream) - room, 0) :]
            stream += source
            start = batch["start_indices"][row]
            length = int(batch["net_input"]["src_lengths"][row])
            assert start == len(context)
            assert batch["net_input"]["src_tokens"][row, :length].tolist() == context + source
            assert (batch["net_input"]["src_tokens"][row, length:] == PAD).all()
            assert (batch["target"][row, :start] == PAD).all()
            assert batch["target"][row, start:length].tolist() == target
            scored += batch["target"][row][batch["target"][row] != PAD].tolist()
    assert scored == [token for sentence in SENTENCES for token in sentence]


def test_no_samples_give_an_empty_dict():
    assert LMContextWindowDataset(lm("none", 4), 4, 2, PAD).collate_indices([]) == {}
