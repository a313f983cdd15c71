from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_builder import MMapDatasetBuilder
from pyseq.data.indexed_dataset import IndexedDataset, MMapIndexedDataset
from pyseq.data.language_pair_dataset import LanguagePairDataset, collate
from pyseq.data.seeding import numpy_seed
from pyseq.errors import DataError

PAD, EOS = 1, 2


def padded(rows, left, width=0, multiple=1):
    width = max([width, *map(len, rows)])
    width += -width % multiple
    return [[PAD] * (width - len(r)) + r if left else r + [PAD] * (width - len(r)) for r in rows]


def brute_force(ids, src, tgt, left_src=True, left_tgt=False, feed=True, multiple=1, eos=EOS):
    """The batch, from lists of tokens, with rows in the order of ``ids``."""
    src = [src[i] for i in ids]
    batch = {
        "id": list(ids),
        "nsentences": len(ids),
        "ntokens": sum(map(len, src)),
        "net_input": {
            "src_tokens": padded(src, left_src, multiple=multiple),
            "src_lengths": [len(s) for s in src],
        },
        "target": None,
    }
    if tgt is not None:
        tgt = [tgt[i] for i in ids]
        batch["ntokens"] = sum(map(len, tgt))
        batch["target"] = padded(tgt, left_tgt, multiple=multiple)
        if feed:
            shifted = [[eos, *t[:-1]] if t else [] for t in tgt]
            batch["net_input"]["prev_output_tokens"] = padded(shifted, left_tgt, multiple=multiple)
    return batch


def lists(value):
    if isinstance(value, dict):
        return {key: lists(entry) for key, entry in value.items()}
    if isinstance(value, torch.Tensor):
        assert value.dtype == torch.long
        return value.tolist()
    return value


def pairs(src, tgt=None, kind=LanguagePairDataset, **options):
    words = Dictionary()
    sides = [[torch.tensor(s, dtype=torch.long) for s in side] for side in (src, tgt or [])]
    sizes = [[len(s) for s in side] for side in (src, tgt or [])]
    if tgt is None:
        return kind(sides[0], sizes[0], words, **options)
    return kind(sides[0], sizes[0], words, sides[1], sizes[1], words, **options)


def written(folder, name, sentences, dtype=np.uint16):
    path = str(folder / name)
    with MMapDatasetBuilder(path + ".bin", dtype) as builder:
        for sentence in sentences:
            builder.add_item(torch.tensor(sentence, dtype=torch.long))
        builder.finalize(path + ".idx")
    return MMapIndexedDataset(path)


SRC = [[10, 11, 2], [12, 2], [13, 14, 15, 16, 2], [17, 18, 19, 2]]
TGT = [[20, 2], [21, 22, 23, 2], [24, 25, 2], [2]]
DESCENDING = [2, 3, 0, 1]


@pytest.mark.parametrize(
    "options, brute",
    [
        ({}, {}),
        ({"left_pad_source": False, "left_pad_target": True}, {"left_src": False, "left_tgt": True}),
        ({"input_feeding": False}, {"feed": False}),
        ({"pad_to_multiple": 4}, {"multiple": 4}),
        ({"eos": 9}, {"eos": 9}),
    ],
)
def test_a_batch_is_padded_shifted_and_sorted_by_source_length(options, brute):
    batch = pairs(SRC, TGT, **options).collate_indices([0, 1, 2, 3])
    assert lists(batch) == brute_force(DESCENDING, SRC, TGT, **brute)


def test_a_batch_without_targets():
    assert lists(pairs(SRC).collate_indices([0, 1, 2, 3])) == brute_force(DESCENDING, SRC, None)


def test_no_samples_give_an_empty_dict():
    assert pairs(SRC, TGT, src_lang_id=5).collate_indices([]) == {}
    assert pairs(SRC, TGT).collater([]) == {}


def test_pad_to_length_and_language_ids():
    data = pairs(SRC, TGT, src_lang_id=7, tgt_lang_id=8)
    batch = data.collater([data[0], data[1]], pad_to_length={"source": 6, "target": 5})
    assert batch["net_input"]["src_tokens"].shape == (2, 6)
    assert batch["target"].shape == batch["net_input"]["prev_output_tokens"].shape == (2, 5)
    assert lists(batch["net_input"]["src_lang_id"]) == [[7], [7]]
    assert lists(batch["tgt_lang_id"]) == [[8], [8]]


def test_constraints_are_padded_with_zero():
    data = pairs(SRC, constraints=[torch.tensor([1, 5]), torch.tensor([0]), torch.tensor([2, 3, 4]), torch.tensor([6])])
    assert lists(data.collate_indices([0, 1, 2])["constraints"]) == [[2, 3, 4], [1, 5, 0], [0, 0, 0]]


def test_previous_output_tokens_of_a_sample_are_kept():
    samples = [
        {"id": i, "source": torch.tensor(s), "target": torch.tensor(t), "prev_output_tokens": torch.tensor([0, *t])}
        for i, (s, t) in enumerate(zip(SRC, TGT))
    ]
    batch = collate(samples, PAD, EOS)
    assert lists(batch["net_input"]["prev_output_tokens"]) == padded([[0, *TGT[i]] for i in DESCENDING], False)


def test_a_sample_of_source_alone_as_the_classification_tutorial_makes_it():
    batch = collate([{"id": -1, "source": torch.tensor([5, 6])}], PAD, EOS, left_pad_source=False, input_feeding=False)
    assert lists(batch) == brute_force([-1], {-1: [5, 6]}, None)


def test_plain_lists_with_sizes_of_any_type_as_the_classification_tutorial_makes_them():
    words, labels = Dictionary(), Dictionary()
    src = [torch.tensor(s, dtype=torch.int32) for s in SRC]
    tgt = [torch.tensor([label]) for label in (4, 5, 6, 7)]
    data = LanguagePairDataset(
        src=src,
        src_sizes=[len(s) for s in src],
        src_dict=words,
        tgt=tgt,
        tgt_sizes=torch.ones(4),
        tgt_dict=labels,
        left_pad_source=False,
        input_feeding=False,
    )
    with numpy_seed(1):
        order = data.ordered_indices()
    order, ignored = data.filter_indices_by_size(order, (4, 1))
    assert ignored == [2]
    batches = data.batch_by_size(order, max_tokens=8)
    assert [b.tolist() for b in batches] == [[1, 0], [3]]
    batch = data.collate_indices(batches[0])
    assert lists(batch) == brute_force([0, 1], SRC, [[4], [5], [6], [7]], left_src=False, feed=False)


def test_end_and_beginning_symbols_are_added_and_removed():
    src, tgt = [[10, 2], [11]], [[20], [21, 2]]
    data = pairs(src, tgt, remove_eos_from_source=True, append_eos_to_target=True, append_bos=True)
    assert [data[i]["source"].tolist() for i in range(2)] == [[0, 10], [0, 11]]
    assert [data[i]["target"].tolist() for i in range(2)] == [[0, 20, 2], [0, 21, 2]]


def test_order_is_by_source_then_target_length_then_permutation():
    rng = np.random.RandomState(0)
    src, tgt = ([[4] * n for n in rng.randint(1, 5, 200)] for _ in range(2))
    data = pairs(src, tgt)
    with numpy_seed(2):
        order = data.ordered_indices()
    permutation = np.random.RandomState(2).permutation(200).tolist()
    place = {index: position for position, index in enumerate(permutation)}
    assert order.tolist() == sorted(range(200), key=lambda i: (len(src[i]), len(tgt[i]), place[i]))
    unshuffled = pairs(src, tgt, shuffle=False).ordered_indices().tolist()
    assert unshuffled == sorted(range(200), key=lambda i: (len(src[i]), len(tgt[i]), i))


@pytest.mark.parametrize(
    "max_sizes, ignored", [((4, 9), [2]), ((9, 3), [1]), (4, [2]), (None, []), ((None, 3), [1]), ((4.0, None), [2])]
)
def test_filtering_by_both_lengths(max_sizes, ignored):
    kept, left_out = pairs(SRC, TGT).filter_indices_by_size(np.arange(4), max_sizes)
    assert left_out == ignored and kept.tolist() == [i for i in range(4) if i not in ignored]


def test_buckets_give_a_few_shapes():
    rng = np.random.RandomState(1)
    src, tgt = ([[5] * (n - 1) + [2] for n in rng.randint(1, 40, 300)] for _ in range(2))
    data = pairs(src, tgt, num_buckets=4)
    with numpy_seed(1):
        order = data.ordered_indices()
    batches = data.batch_by_size(order, max_tokens=400, required_batch_size_multiple=8)
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    shapes = set()
    for indices in batches:
        batch = data.collate_indices(indices)
        shapes.add((batch["net_input"]["src_tokens"].size(1), batch["target"].size(1)))
        assert batch["nsentences"] * max(batch["net_input"]["src_tokens"].size(1), batch["target"].size(1)) <= 400
        assert batch["ntokens"] == sum(len(tgt[i]) for i in indices)
    assert len({source for source, _ in shapes}) <= 4 and len({target for _, target in shapes}) <= 4
    assert {max(shape) for shape in shapes} <= {tokens for _, tokens in data.get_batch_shapes()}


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda d: LanguagePairDataset(SRC, [1] * 4, d, TGT[:3], [1] * 3, d), "source has 4 sentences and target 3"),
        (lambda d: LanguagePairDataset(SRC, [1] * 3, d), "source: 4 sentences but 3 sizes"),
        (lambda d: LanguagePairDataset(SRC, [1] * 4, d, align_dataset=[0] * 4), "alignments need both"),
    ],
)
def test_sides_that_do_not_fit(build, message):
    with pytest.raises(DataError, match=message):
        build(Dictionary())


def test_dictionaries_with_other_special_symbols_are_refused():
    other = Dictionary(add_special_symbols=False)
    other.pad_index, other.eos_index, other.unk_index = 0, 2, 3
    with pytest.raises(DataError, match="the pad symbol is 1 in the source dictionary, 0 in the target's"):
        LanguagePairDataset(SRC, [1] * 4, Dictionary(), TGT, [1] * 4, other)


sentence = st.lists(st.integers(0, 12), max_size=6).map(lambda words: [*words, EOS])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(sentence, sentence), min_size=1, max_size=8),
    data=st.data(),
    options=st.fixed_dictionaries(
        {
            "left_pad_source": st.booleans(),
            "left_pad_target": st.booleans(),
            "input_feeding": st.booleans(),
            "pad_to_multiple": st.sampled_from([1, 8]),
            "src_lang_id": st.sampled_from([None, 4]),
        }
    ),
    dtype=st.sampled_from([np.uint16, np.int64]),
)
def test_batches_from_memory_maps_equal_those_of_samples(tmp_path_factory, rows, data, options, dtype):
    # Token 1 is padding: texts that hold it are part of the cases.
    folder = tmp_path_factory.mktemp("maps")
    src, tgt = ([list(row[side]) for row in rows] for side in (0, 1))
    maps = [written(folder, name, side, dtype) for name, side in (("src", src), ("tgt", tgt))]
    words = Dictionary()
    fast = LanguagePairDataset(maps[0], maps[0].sizes, words, maps[1], maps[1].sizes, words, **options)
    assert fast.is_plain
    indices = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=12)))
    assert lists(fast.collate_indices(indices)) == lists(fast.collater([fast[int(i)] for i in indices]))
    without_target = LanguagePairDataset(maps[0], maps[0].sizes, words, **options)
    expected = without_target.collater([without_target[int(i)] for i in indices])
    assert lists(without_target.collate_indices(indices)) == lists(expected)


def test_a_plain_pair_never_makes_a_tensor_for_each_sample(tmp_path, monkeypatch):
    maps = [written(tmp_path, name, side) for name, side in (("src", SRC), ("tgt", TGT))]
    words = Dictionary()
    data = LanguagePairDataset(maps[0], maps[0].sizes, words, maps[1], maps[1].sizes, words)
    monkeypatch.setattr(IndexedDataset, "__getitem__", lambda self, index: 1 / 0)
    assert lists(data.collate_indices(np.arange(4))) == brute_force(DESCENDING, SRC, TGT)


def test_what_a_subclass_replaces_is_used(tmp_path):
    class Doubled(LanguagePairDataset):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return {**sample, "source": torch.cat([sample["source"], sample["source"]])}

    class Marked(LanguagePairDataset):
        def collater(self, samples, pad_to_length=None):
            return {**super().collater(samples, pad_to_length), "mark": 1}

    maps = [written(tmp_path, name, side) for name, side in (("src", SRC), ("tgt", TGT))]
    words = Dictionary()
    arguments = (maps[0], maps[0].sizes, words, maps[1], maps[1].sizes, words)
    assert Doubled(*arguments).collate_indices([0])["net_input"]["src_tokens"].tolist() == [SRC[0] * 2]
    assert Marked(*arguments).collate_indices([0])["mark"] == 1
