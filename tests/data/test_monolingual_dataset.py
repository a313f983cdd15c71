from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_builder import MMapDatasetBuilder
from pyseq.data.indexed_dataset import IndexedDataset, MMapIndexedDataset
from pyseq.data.monolingual_dataset import MonolingualDataset
from pyseq.data.seeding import numpy_seed
from pyseq.data.token_block_dataset import TokenBlockDataset
from pyseq.errors import ConfigError

BOS, PAD, EOS, UNK = 0, 1, 2, 3
SENTENCES = [[10, 11, 12, EOS], [13, EOS], [14, 15, 16, 17, EOS]]


def vocabulary(size=30):
    words = Dictionary()
    while len(words) < size:
        words.add_symbol(f"w{len(words)}")
    return words


def text(mode="none", size=4, sentences=SENTENCES):
    lengths = [len(s) for s in sentences]
    rows = [torch.tensor(s) for s in sentences]
    return TokenBlockDataset(rows, lengths, size, PAD, EOS, break_mode=mode, include_targets=True)


def dataset(mode="none", size=4, targets=("future",), **options):
    blocks = text(mode, size)
    return MonolingualDataset(blocks, blocks.sizes, vocabulary(), targets=targets, **options)


def lists(value):
    if isinstance(value, dict):
        return {key: lists(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [lists(entry) for entry in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def test_source_is_the_target_shifted_right_with_the_token_before_the_block():
    batch = dataset(size=3).collate_indices([0, 1, 2, 3])
    assert lists(batch) == {
        "id": [0, 1, 2, 3],
        "nsentences": 4,
        "ntokens": 11,
        "net_input": {
            "src_tokens": [[EOS, 10, 11], [12, EOS, 13], [EOS, 14, 15], [16, 17, PAD]],
            "src_lengths": [3, 3, 3, 2],
        },
        # The second block begins within the first sentence, the third with the third sentence.
        "target": [[10, 11, 12], [EOS, 13, EOS], [14, 15, 16], [17, EOS, PAD]],
    }


def test_self_and_past_targets_with_an_eos():
    data = dataset("complete", 6, targets=("past", "self", "future"), add_eos_for_other_targets=True)
    sample = data[0]
    assert sample["source"].tolist() == [EOS, 10, 11, 12, EOS, 13, EOS]
    past, own, future = (view.tolist() for view in sample["target"])
    assert own == [EOS, 10, 11, 12, EOS, 13, EOS]
    assert future == [10, 11, 12, EOS, 13, EOS, PAD]
    assert past == [PAD, EOS, 10, 11, 12, EOS, 13]  # each token's left neighbour in the source
    batch = data.collate_indices([0, 1])
    assert len(batch["target"]) == 3 and all(t.shape == (2, 7) for t in batch["target"])


def test_without_targets_the_target_is_the_source():
    rows = [torch.tensor(s) for s in SENTENCES]
    data = MonolingualDataset(rows, [len(s) for s in SENTENCES], vocabulary())
    batch = data.collate_indices([0, 1])
    assert batch["target"] is batch["net_input"]["src_tokens"]
    assert batch["target"].tolist() == [[10, 11, 12, EOS], [13, EOS, PAD, PAD]]


def test_beginning_of_sentence_fixed_width_and_fixed_number_of_rows():
    data = dataset("eos", None, add_bos_token=True, fixed_pad_length=7, pad_to_bsz=3)
    batch = data.collate_indices([1, 0])
    rows = [[BOS, EOS, 13] + [PAD] * 4, [BOS, EOS, 10, 11, 12, PAD, PAD], [PAD] * 7]
    assert batch["net_input"]["src_tokens"].tolist() == rows
    assert batch["target"].tolist()[0] == [BOS, 13, EOS] + [PAD] * 4
    assert batch["net_input"]["src_lengths"].tolist() == [3, 5]
    assert (batch["nsentences"], batch["ntokens"]) == (2, 8)


def test_words_beyond_the_output_dictionary_become_unknown_in_the_target_only():
    data = dataset("eos", None, tgt_vocab=vocabulary(12))
    assert data[0]["target"].tolist() == [10, 11, UNK, EOS]
    assert data[0]["source"].tolist() == [EOS, 10, 11, 12]
    assert data.collate_indices([0])["target"].tolist() == [[10, 11, UNK, EOS]]


def test_order_is_by_length_then_permutation():
    lengths = np.random.RandomState(0).randint(1, 5, 100)
    data = MonolingualDataset([None] * 100, lengths, vocabulary(), shuffle=True)
    with numpy_seed(2):
        order = data.ordered_indices()
    ties = np.random.RandomState(2).permutation(100)
    expected = sorted(range(100), key=lambda i: (lengths[i], ties[i]))
    assert order.tolist() == expected
    unshuffled = MonolingualDataset([None] * 100, lengths, vocabulary()).ordered_indices().tolist()
    assert unshuffled == sorted(range(100), key=lambda i: (lengths[i], i))


def test_no_samples_give_an_empty_dict():
    assert dataset().collate_indices([]) == {}


def test_an_unknown_target_is_refused():
    with pytest.raises(ConfigError, match="next"):
        dataset(targets=("next",))


@settings(max_examples=60, deadline=None)
@given(
    sentences=st.lists(st.lists(st.integers(0, 29), max_size=6).map(lambda w: [*w, EOS]), min_size=1, max_size=8),
    mode=st.sampled_from(["none", "complete", "complete_doc", "eos"]),
    size=st.integers(1, 9),
    options=st.fixed_dictionaries(
        {"fixed_pad_length": st.sampled_from([None, 12]), "pad_to_bsz": st.sampled_from([None, 9])}
    ),
    data=st.data(),
)
def test_batches_from_a_memory_map_equal_those_of_samples(tmp_path_factory, sentences, mode, size, options, data):
    path = str(tmp_path_factory.mktemp("map") / "text")
    with MMapDatasetBuilder(path + ".bin", np.uint16) as builder:
        for sentence in sentences:
            builder.add_item(torch.tensor(sentence))
        builder.finalize(path + ".idx")
    tokens = MMapIndexedDataset(path)
    blocks = TokenBlockDataset(tokens, tokens.sizes, size, PAD, EOS, break_mode=mode, include_targets=True)
    lm = MonolingualDataset(blocks, blocks.sizes, vocabulary(), targets=["future"], **options)
    if not len(lm):  # a corpus of nothing but document separators
        return
    assert lm.predicts_next_token_of_blocks and blocks.rows(np.array([0])) is not None
    indices = np.array(data.draw(st.lists(st.integers(0, len(lm) - 1), min_size=1, max_size=8)))
    assert lists(lm.collate_indices(indices)) == lists(lm.collater([lm[int(i)] for i in indices]))


def test_blocks_of_a_token_file_never_make_a_tensor_for_each_sample(tmp_path, monkeypatch):
    path = str(tmp_path / "text")
    with MMapDatasetBuilder(path + ".bin", np.uint16) as builder:
        for sentence in SENTENCES:
            builder.add_item(torch.tensor(sentence))
        builder.finalize(path + ".idx")
    tokens = MMapIndexedDataset(path)
    blocks = TokenBlockDataset(tokens, tokens.sizes, 3, PAD, EOS, include_targets=True)
    lm = MonolingualDataset(blocks, blocks.sizes, vocabulary(), targets=["future"])
    monkeypatch.setattr(IndexedDataset, "__getitem__", lambda self, index: 1 / 0)
    assert lists(lm.collate_indices(range(4))) == lists(dataset(size=3).collate_indices(range(4)))


def test_what_a_subclass_replaces_is_used():
    class Reversed(MonolingualDataset):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return {**sample, "source": sample["source"].flip(0)}

    blocks = text()
    data = Reversed(blocks, blocks.sizes, vocabulary(), targets=["future"])
    assert data.collate_indices([0])["net_input"]["src_tokens"].tolist() == [[12, 11, 10, EOS]]
