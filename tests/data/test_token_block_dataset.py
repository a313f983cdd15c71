from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseq.data.indexed_builder import MMapDatasetBuilder
from pyseq.data.indexed_dataset import MMapIndexedDataset
from pyseq.data.token_block_dataset import TokenBlockDataset
from pyseq.errors import ConfigError, DataError

PAD, EOS = 1, 2


def numbered(lengths):
    """Sentences in which every token of the corpus is another number."""
    ends = np.cumsum(lengths).tolist()
    return [list(range(100 + end - n, 100 + end)) for n, end in zip(lengths, ends)]


def expected_blocks(sentences, mode, size):
    """Blocks as lists of (sentence, place in it)."""
    stream = [(s, p) for s, sentence in enumerate(sentences) for p in range(len(sentence))]
    if mode == "none":
        return [stream[i : i + size] for i in range(0, len(stream), size)]
    by_sentence = [[t for t in stream if t[0] == s] for s in range(len(sentences))]
    if mode == "eos":
        return by_sentence
    blocks, block = [], []
    for tokens in by_sentence:
        separator = mode == "complete_doc" and len(tokens) == 1
        if separator or (block and len(block) + len(tokens) > size):
            blocks.append(block)
            block = []
        if not separator:
            block = block + tokens
    blocks.append(block)
    return [b for b in blocks if len(b) > (mode == "complete_doc")]


def expected_views(sentences, block):
    """(source, target, past target): what stands one and two before each token, from the first one's sentence on."""
    first, start = block[0]
    before = ([PAD, EOS, *sentences[first][:start]])[-2:]
    target = [sentences[s][p] for s, p in block]
    shifted = before + target
    return shifted[1:-1], target, shifted[:-2]


@settings(max_examples=120, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=12),
    mode=st.sampled_from([None, "none", "complete", "complete_doc", "eos"]),
    size=st.integers(1, 9),
)
def test_blocks_and_their_shifted_views(lengths, mode, size):
    sentences = numbered(lengths)
    data = TokenBlockDataset(
        [torch.tensor(s) for s in sentences], lengths, size, PAD, EOS, break_mode=mode, include_targets=True
    )
    expected = expected_blocks(sentences, mode or "none", size)
    assert [tuple(v.tolist() for v in data[i]) for i in range(len(data))] == [
        expected_views(sentences, block) for block in expected
    ]
    assert data.sizes.tolist() == [len(block) for block in expected]
    assert [data.num_tokens(i) for i in range(len(data))] == data.num_tokens_vec(np.arange(len(data))).tolist()
    plain = TokenBlockDataset([torch.tensor(s) for s in sentences], lengths, size, PAD, EOS, break_mode=mode)
    assert [plain[i].tolist() for i in range(len(plain))] == [expected_views(sentences, b)[1] for b in expected]


def test_rows_of_a_token_file_are_the_blocks(tmp_path):
    sentences = numbered([3, 1, 5, 2, 8])
    path = str(tmp_path / "text")
    with MMapDatasetBuilder(path + ".bin", np.uint16) as builder:
        for sentence in sentences:
            builder.add_item(torch.tensor(sentence))
        builder.finalize(path + ".idx")
    text = MMapIndexedDataset(path)
    data = TokenBlockDataset(text, text.sizes, 4, PAD, EOS, break_mode="none")
    rows = data.rows(np.array([4, 0, 2]))
    found = [rows.tokens[s : s + n].tolist() for s, n in zip(rows.starts, rows.lengths)]
    assert found == [data[i].tolist() for i in (4, 0, 2)]
    assert rows.at_sentence_start.tolist() == [False, True, False]
    shorter = TokenBlockDataset(text, text.sizes - 1, 4, PAD, EOS)
    assert shorter.rows(np.array([0])) is None
    text.starts = text.starts[::-1]
    assert TokenBlockDataset(text, text.sizes, 4, PAD, EOS).rows(np.array([0])) is None


@pytest.mark.parametrize(
    "size, longest, dtype", [(10, 20, np.uint16), (70000, 69999, np.uint32), (10, 70000, np.uint32)]
)
def test_sizes_do_not_overflow(size, longest, dtype):
    sizes = np.array([3, longest])
    data = TokenBlockDataset([None, None], sizes, size, PAD, EOS, break_mode="complete")
    assert data.sizes.dtype == dtype
    assert data.sizes.tolist() == [3, longest]


def test_text_that_cannot_be_cut():
    sentences = [torch.tensor([4, 5])]
    with pytest.raises(DataError, match="dataset is empty"):
        TokenBlockDataset([], [], 4, PAD, EOS)
    with pytest.raises(DataError, match="1 sentences but 2 sizes"):
        TokenBlockDataset(sentences, [2, 2], 4, PAD, EOS)
    with pytest.raises(ConfigError, match="block size"):
        TokenBlockDataset(sentences, [2], None, PAD, EOS, break_mode="complete")
    with pytest.raises(ConfigError, match="unknown break mode 'lines'"):
        TokenBlockDataset(sentences, [2], 4, PAD, EOS, break_mode="lines")
