from __future__ import annotations

import numpy as np
import pytest
import torch

from pyseq.data.nested_dictionary_dataset import (
    IdDataset,
    LeftPadDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    RightPadDataset,
)
from pyseq.data.token_block_dataset import TokenBlockDataset

PAD = 1
SENTENCES = [torch.tensor(s) for s in ([4, 5, 2], [6, 2], [7, 8, 9, 2])]
SIZES = [3, 2, 4]


def blocks():
    return TokenBlockDataset(SENTENCES, SIZES, None, PAD, 2, break_mode="eos")


def test_a_batch_has_the_shape_of_the_definition():
    text = blocks()
    data = NestedDictionaryDataset(
        {
            "id": IdDataset(),
            "nsentences": NumSamplesDataset(),
            "ntokens": NumelDataset(text, reduce=True),
            "net_input": {
                "src_tokens": RightPadDataset(text, PAD),
                "src_lengths": NumelDataset(text),
            },
            "target": LeftPadDataset(text, PAD, pad_length=5),
        },
        sizes=[np.array(SIZES)],
    )
    assert len(data) == 3 and data.size(2) == 4
    assert data.num_tokens_vec(np.array([2, 0])).tolist() == [4, 3]
    batch = data.collate_indices([2, 1])
    assert batch["id"].tolist() == [2, 1]
    assert (batch["nsentences"], batch["ntokens"]) == (2, 6)
    assert batch["net_input"]["src_tokens"].tolist() == [[7, 8, 9, 2], [6, 2, 1, 1]]
    assert batch["net_input"]["src_lengths"].tolist() == [4, 2]
    assert batch["target"].tolist() == [[1, 7, 8, 9, 2], [1, 1, 1, 6, 2]]
    assert data.collater([]) == {}


def test_an_error_in_a_part_is_not_hidden():
    class Broken(RightPadDataset):
        def collater(self, samples):
            return samples[0].no_such_attribute

    data = NestedDictionaryDataset({"a": Broken(blocks(), PAD)}, sizes=np.array(SIZES))
    with pytest.raises(AttributeError, match="no_such_attribute"):
        data.collate_indices([0])


def test_parts_must_be_datasets_of_one_length():
    with pytest.raises(ValueError, match="a.b: expected a dataset, not list"):
        NestedDictionaryDataset({"a": {"b": [1, 2]}})
    shorter = TokenBlockDataset(SENTENCES[:2], SIZES[:2], None, PAD, 2, break_mode="eos")
    with pytest.raises(ValueError, match="differ in length"):
        NestedDictionaryDataset({"a": blocks(), "b": shorter})
