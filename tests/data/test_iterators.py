from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseq.data import data_utils
from pyseq.data.dictionary import Dictionary
from pyseq.data.iterators import EpochBatchIterator
from pyseq.data.language_pair_dataset import LanguagePairDataset
from pyseq.errors import CheckpointError, ConfigError, DataError


class Numbers:
    """Sample i is i."""

    supports_prefetch = False

    def __init__(self):
        self.epochs = []
        self.prefetched = []

    def __getitem__(self, index):
        return index

    def collater(self, samples):
        return list(samples)

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def prefetch(self, indices):
        self.prefetched.append(indices)


def batches_of(count):
    return [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(count)]


def epoch_iterator(count=10, dataset=None, **options):
    dataset = dataset or Numbers()
    return EpochBatchIterator(dataset, dataset.collater, options.pop("batches", batches_of(count)), **options)


def fairseq_order(count, seed, epoch):
    batches = batches_of(count)
    np.random.RandomState(seed + epoch).shuffle(batches)
    return batches


# The order of an epoch


@pytest.mark.parametrize("count", [1, 2, 10, 301])
def test_order_follows_from_seed_and_epoch(count):
    np.random.seed(count)  # must not matter
    iterator = epoch_iterator(count, seed=3)
    for epoch in (1, 2, 3):
        assert list(iterator.next_epoch_itr()) == fairseq_order(count, 3, epoch)
        np.random.rand(5)


def test_order_without_shuffling():
    assert list(epoch_iterator().next_epoch_itr(shuffle=False)) == batches_of(10)
    assert list(epoch_iterator(disable_shuffling=True).next_epoch_itr()) == batches_of(10)


def test_shards_share_an_epoch():
    shards = [list(epoch_iterator(11, num_shards=3, shard_id=k).next_epoch_itr()) for k in range(3)]
    order = fairseq_order(11, 1, 1)
    assert shards == [order[0::3], order[1::3], [*order[2::3], []]]
    assert len(epoch_iterator(11, num_shards=3)) == 4


def test_grouped_shuffling_keeps_groups_and_drops_nothing():
    shards = [
        list(epoch_iterator(11, num_shards=3, shard_id=k, grouped_shuffling=True).next_epoch_itr()) for k in range(3)
    ]
    groups = [batches_of(11)[i : i + 3] for i in (0, 3, 6)]
    np.random.RandomState(2).shuffle(groups)
    groups.append([*batches_of(11)[9:], []])  # what does not fill a group comes last
    assert [list(group) for group in zip(*shards)] == groups


def test_batches_that_stay_on_their_device():
    class Prefetching(Numbers):
        supports_prefetch = True

    data = Prefetching()
    iterator = epoch_iterator(10, data, num_shards=2, shard_id=1)
    expected = batches_of(10)[1::2]
    np.random.RandomState(1 + 1 + 1).shuffle(expected)
    assert list(iterator.next_epoch_itr(fix_batches_to_gpus=True)) == expected
    assert sorted(data.prefetched[0]) == sorted(i for batch in expected for i in batch)
    without_prefetch = epoch_iterator(10, num_shards=2, shard_id=1)
    assert list(without_prefetch.next_epoch_itr(fix_batches_to_gpus=True)) == fairseq_order(10, 1, 1)[1::2]


@pytest.mark.parametrize("shard", [-1, 2])
def test_a_shard_that_is_not_there(shard):
    with pytest.raises(ConfigError, match="--shard-id must be between 0 and --num-shards - 1 = 1"):
        epoch_iterator(num_shards=2, shard_id=shard)


def test_skip_remainder_batch_leaves_out_the_last_one():
    iterator = epoch_iterator(skip_remainder_batch=True)
    epoch = iterator.next_epoch_itr()
    assert len(epoch) == 9 and list(epoch) == fairseq_order(10, 1, 1)[:-1]
    assert iterator.end_of_epoch()


def test_batches_made_for_each_epoch():
    calls = []

    def sampler(dataset, epoch):
        calls.append(epoch)
        return [[epoch]]

    iterator = epoch_iterator(batches=sampler, epoch=4)
    assert len(iterator) == 1
    assert [list(iterator.next_epoch_itr()) for _ in range(2)] == [[[4]], [[5]]]
    state = iterator.state_dict()
    resumed = epoch_iterator(batches=sampler)
    resumed.load_state_dict(state)
    assert list(resumed.next_epoch_itr()) == [[6]]
    assert calls == [4, 5, 6]


# Where a run stands


def test_progress_through_epochs():
    data = Numbers()
    iterator = epoch_iterator(2, data)
    assert (iterator.epoch, iterator.next_epoch_idx, iterator.n, iterator.end_of_epoch()) == (1, 1, 0, False)
    epoch = iterator.next_epoch_itr()
    next(epoch)
    assert (iterator.epoch, iterator.next_epoch_idx, iterator.n, iterator.iterations_in_epoch) == (1, 1, 1, 1)
    next(epoch)
    assert iterator.end_of_epoch() and iterator.next_epoch_idx == 2
    iterator.next_epoch_itr()
    assert (iterator.epoch, iterator.n, data.epochs) == (2, 0, [2])


def test_state_at_the_beginning_in_the_middle_and_at_the_end_of_an_epoch():
    iterator = epoch_iterator(2)

    def state(epoch, done):
        return {"version": 2, "epoch": epoch, "iterations_in_epoch": done, "shuffle": True}

    assert iterator.state_dict() == state(1, 0)
    epoch = iterator.next_epoch_itr()
    assert iterator.state_dict() == state(1, 0)
    next(epoch)
    assert iterator.state_dict() == state(1, 1)
    next(epoch)
    assert iterator.state_dict() == state(2, 0)
    iterator.next_epoch_itr(shuffle=False)
    assert iterator.state_dict() == {**state(2, 0), "shuffle": False}


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 12),
    epoch=st.integers(1, 3),
    done=st.integers(0, 12),
    shards=st.integers(1, 3),
    shuffle=st.booleans(),
    grouped=st.booleans(),
    skip_remainder=st.booleans(),
)
def test_a_resumed_run_reads_what_the_uninterrupted_one_would(
    count, epoch, done, shards, shuffle, grouped, skip_remainder
):
    options = {"num_shards": shards, "grouped_shuffling": grouped, "skip_remainder_batch": skip_remainder, "seed": 5}
    run = epoch_iterator(count, **options)
    for _ in range(epoch - 1):
        list(run.next_epoch_itr(shuffle=shuffle))
    itr = run.next_epoch_itr(shuffle=shuffle)
    itr.skip(min(done, len(itr)))
    state = json.loads(json.dumps(run.state_dict()))
    rest = list(itr) + list(run.next_epoch_itr(shuffle=shuffle))

    resumed = epoch_iterator(count, **options)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    found: list[list[int]] = []
    while len(found) < len(rest):
        found += list(resumed.next_epoch_itr(shuffle=shuffle))
    assert found == rest


def test_resuming_reads_no_sample_twice_and_none_of_those_before():
    class Recording(Numbers):
        def __init__(self):
            super().__init__()
            self.read = []

        def __getitem__(self, index):
            self.read.append(index)
            return index

    data = Recording()
    iterator = epoch_iterator(10, data)
    iterator.load_state_dict({"version": 2, "epoch": 3, "iterations_in_epoch": 7, "shuffle": True})
    assert data.epochs == [3] and iterator.iterations_in_epoch == 7
    itr = iterator.next_epoch_itr()
    assert (itr.n, len(itr)) == (7, 10)
    assert list(itr) == fairseq_order(10, 1, 3)[7:]
    assert len(data.read) == 9
    assert list(iterator.next_epoch_itr()) == fairseq_order(10, 1, 4)


@pytest.mark.parametrize("done", [10, 11, 400])
def test_a_place_beyond_the_end_is_an_error_that_says_what_to_do(done):
    state = {"version": 2, "epoch": 2, "iterations_in_epoch": done, "shuffle": True}
    with pytest.raises(CheckpointError, match=f"after {done} batches of epoch 2.*has 10.*--reset-dataloader"):
        epoch_iterator().load_state_dict(state)


def test_the_first_version_of_the_state_counted_the_end_of_an_epoch():
    iterator = epoch_iterator()
    iterator.load_state_dict({"epoch": 2, "iterations_in_epoch": 10})
    assert list(iterator.next_epoch_itr()) == fairseq_order(10, 1, 3)


def test_loading_a_state_into_an_iterator_in_use():
    iterator = epoch_iterator()
    list(iterator.next_epoch_itr())
    iterator.load_state_dict({"version": 2, "epoch": 1, "iterations_in_epoch": 4, "shuffle": True})
    assert not iterator.end_of_epoch() and iterator.iterations_in_epoch == 4
    assert list(iterator.next_epoch_itr()) == fairseq_order(10, 1, 1)[4:]


def test_first_batch():
    assert epoch_iterator().first_batch == [0, 1, 2]
    with pytest.raises(DataError, match="The dataset is empty"):
        _ = epoch_iterator(0).first_batch
    data = Numbers()
    data.supports_fetch_outside_dataloader = False
    assert epoch_iterator(3, data).first_batch == "DUMMY"


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"buffer_size": 99}, {"num_workers": 1, "buffer_size": 4}])
def test_batches_made_ahead_are_the_same(options):
    iterator = epoch_iterator(30, **options)
    for epoch in (1, 2):
        assert list(iterator.next_epoch_itr()) == fairseq_order(30, 1, epoch)
    itr = iterator.next_epoch_itr()
    itr.skip(5)
    resumed = epoch_iterator(30, **options)
    resumed.load_state_dict(iterator.state_dict())
    assert list(resumed.next_epoch_itr()) == list(itr) == fairseq_order(30, 1, 3)[5:]


def test_workers_see_the_epoch_of_the_dataset():
    class OfEpoch(Numbers):
        def __getitem__(self, index):
            return self.epochs[-1] if self.epochs else 1

    iterator = epoch_iterator(2, OfEpoch(), num_workers=1)
    assert [list(iterator.next_epoch_itr())[0][0] for _ in range(3)] == [1, 2, 3]


# Against fairseq's own record


@pytest.fixture(scope="module")
def pairs(reference):
    folder = reference / "data-bin"
    words = Dictionary.load(str(folder / "dict.en.txt"))
    src, tgt = (data_utils.load_indexed_dataset(str(folder / f"train.en-de.{lang}")) for lang in ("en", "de"))
    return LanguagePairDataset(src, src.sizes, words, tgt, tgt.sizes, words)


@pytest.fixture(scope="module")
def batches(pairs):
    with data_utils.numpy_seed(1 + 1):
        order = pairs.ordered_indices()
    order, ignored = pairs.filter_indices_by_size(order, (1024, 1024))
    assert not ignored
    return pairs.batch_by_size(order, max_tokens=4096, required_batch_size_multiple=8)


def same_rows(ours, theirs):
    """Whether two lists of ids are the same.

    Rows of equal length are where torch's sort leaves them, which depends on the instructions it has: elsewhere than on
    the machines like the one that made the record the order within a batch can only be compared as a set.
    """
    exact = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return ours == theirs if exact else sorted(ours) == sorted(theirs)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_batches_of_three_epochs_are_fairseqs(reference, pairs, batches, shards):
    record = json.loads(gzip.decompress((reference / "runs" / "epoch_orders.json.gz").read_bytes()))
    for shard in range(shards):
        iterator = EpochBatchIterator(pairs, pairs.collater, batches, seed=1, num_shards=shards, shard_id=shard)
        for epoch in (1, 2, 3):
            expected = record[f"epoch{epoch} shard{shard}/{shards}"]
            found = [batch["id"].tolist() for batch in iterator.next_epoch_itr()]
            assert len(found) == len(expected)
            assert all(same_rows(ours, theirs) for ours, theirs in zip(found, expected))


def test_the_first_micro_batches_have_fairseqs_shapes(reference, pairs, batches):
    record = json.loads((reference / "runs" / "plain.json").read_text())
    iterator = EpochBatchIterator(pairs, pairs.collater, batches, seed=1).next_epoch_itr()
    for update in record["updates"]:
        (expected,), batch = update["micro_batches"], next(iterator)
        assert same_rows(batch["id"].tolist(), expected["ids"])
        assert list(batch["net_input"]["src_tokens"].shape) == expected["src_shape"]
        assert list(batch["target"].shape) == expected["tgt_shape"]
        assert (batch["ntokens"], batch["nsentences"]) == (expected["ntokens"], expected["nsentences"])
        assert torch.equal(batch["net_input"]["prev_output_tokens"][:, 0], torch.full((batch["nsentences"],), 2))


def test_a_short_last_batch_is_kept(pairs):
    order = pairs.ordered_indices()[:83]
    batches = pairs.batch_by_size(order, max_sentences=16, required_batch_size_multiple=8)
    assert sum(map(len, batches)) == 83
