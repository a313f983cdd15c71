from __future__ import annotations

import gc
import multiprocessing
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from pyseq.data.batch_loader import MOST_BYTES_BY_VALUE, BatchFetcher, BatchLoader, BufferedIterator
from pyseq.errors import DataError


class Numbers:
    """Sample i is i; index -1 and others of the kind misbehave."""

    def __getitem__(self, index):
        if index == -1:
            raise DataError("corpus.txt, line 7: no such word")
        if index == -2:
            raise StopIteration("early")
        if index == -3:
            raise Unpicklable("cannot travel", lambda: 0)
        if index == -4:
            signal.raise_signal(signal.SIGKILL)
        return index


class Unpicklable(Exception):
    def __init__(self, text, extra):
        super().__init__(text)
        self.extra = extra


def collate(samples):
    return {"id": torch.tensor(samples), "nested": {"pair": (torch.ones(2), "text")}}


def loader(batches, **options):
    return BatchLoader(Numbers(), collate, [np.array(batch) for batch in batches], **options)


def prefetched(batches, size=3):
    return BufferedIterator(size, loader(batches))


MAKERS = {
    "here": lambda batches: iter(loader(batches)),
    "thread": prefetched,
    "worker": lambda batches: iter(loader(batches, num_workers=1)),
    "workers": lambda batches: iter(loader(batches, num_workers=2, prefetch=10)),
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def helpers():
    """Threads and processes that make batches now."""
    threads = [t for t in threading.enumerate() if t.name == "pyseq batches"]
    return threads + multiprocessing.active_children()


def wait_until_gone(patience=10.0):
    end = time.monotonic() + patience
    while helpers() and time.monotonic() < end:
        time.sleep(0.02)
    assert not helpers()


@every_maker
def test_batches_come_whole_and_in_order_and_nothing_is_left_behind(make):
    batches = [[i, i + 1] for i in range(25)] + [[7]]
    iterator = make(batches)
    found = list(iterator)
    assert [batch["id"].tolist() for batch in found] == batches
    assert all(batch["id"].dtype == torch.long for batch in found)
    assert found[3]["nested"]["pair"][0].tolist() == [1, 1] and found[3]["nested"]["pair"][1] == "text"
    found[0]["id"].add_(1)  # what arrives can be written to
    assert list(iterator) == []
    wait_until_gone()


@every_maker
def test_workers_and_threads_end_with_the_last_batch_even_if_nobody_asks_for_more(make):
    iterator = make([[0], [1]])
    next(iterator), next(iterator)
    wait_until_gone()


@every_maker
def test_an_exception_reaches_the_consumer_as_it_was_raised(make):
    iterator = make([[0], [-1], [2]])
    assert next(iterator)["id"].tolist() == [0]
    with pytest.raises(DataError) as caught:
        next(iterator)
    assert str(caught.value) == "corpus.txt, line 7: no such word"
    del iterator, caught
    gc.collect()
    wait_until_gone()


@pytest.mark.parametrize("kind", ["thread", "worker"])
def test_where_it_was_raised_can_be_read(kind):
    with pytest.raises(DataError) as caught:
        list(MAKERS[kind]([[-1]]))
    assert "__getitem__" in str(caught.value.__cause__)


@every_maker
def test_stop_iteration_in_a_dataset_does_not_end_the_epoch_silently(make):
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(make([[0], [-2], [1]]))


def test_an_exception_that_cannot_be_pickled_keeps_its_message():
    with pytest.raises(RuntimeError, match="Unpicklable: cannot travel"):
        list(MAKERS["worker"]([[-3]]))


def test_a_worker_that_is_killed_is_told_with_what_to_do():
    with pytest.raises(DataError, match=r"worker.*\(--num-workers 1\).*or --num-workers 0"):
        list(MAKERS["worker"]([[-4]]))


@pytest.mark.parametrize("kind", ["thread", "worker", "workers"])
def test_an_abandoned_iterator_leaves_nothing_behind(kind):
    iterator = MAKERS[kind]([[i] for i in range(100)])
    next(iterator)
    assert helpers()
    del iterator
    gc.collect()
    wait_until_gone()


def test_an_iterator_that_was_not_begun_starts_nothing():
    iterator = prefetched([[0]])
    started = helpers()
    iterator.close()
    assert not started and list(iterator) == []


def test_a_thread_is_at_most_its_buffer_ahead():
    made = []

    class Source:
        def __len__(self):
            return 50

        def __iter__(self):
            for i in range(50):
                made.append(i)
                yield i

    iterator = BufferedIterator(4, Source())
    assert next(iterator) == 0
    time.sleep(0.2)
    assert len(made) == 6  # one taken, four ready, one in hand
    iterator.close()


def test_take_ends_earlier():
    iterator = prefetched([[i] for i in range(10)]).take(3)
    assert len(iterator) == 3 and [b["id"].item() for b in iterator] == [0, 1, 2]
    wait_until_gone()


def test_random_generators_of_this_process_are_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(MAKERS["workers"]([[0], [1]]))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("kind", ["worker", "here"])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).view(2, 3).t(),
        torch.tensor(3),
        torch.zeros(0, 4),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(MOST_BYTES_BY_VALUE // 4 + 1),
        torch.ones(1).expand(5),
    ],
    ids=["transposed", "0-d", "empty", "bfloat16", "large", "expanded"],
)
def test_tensors_of_every_kind_arrive(kind, tensor):
    batches = BatchLoader(Numbers(), lambda _: tensor, [[0]], num_workers=int(kind == "worker"))
    (found,) = batches
    assert found.dtype == tensor.dtype and torch.equal(found, tensor)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", MAKERS)
def test_memory_is_pinned_where_cuda_is_in_use(kind):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.cuda.init()
    for batch in MAKERS[kind]([[0, 1], [2]]):
        assert batch["id"].is_pinned() and batch["nested"]["pair"][0].is_pinned()


def test_the_datasets_own_way_is_taken_only_for_its_own_collater():
    class Data(Numbers):
        def collater(self, samples):
            return "by sample"

        def collate_indices(self, indices):
            return "at once"

    data = Data()
    assert BatchFetcher(data, data.collater)[[0]] == "at once"
    assert BatchFetcher(data, lambda samples: "other")[[0]] == "other"
    assert BatchFetcher(data, Data().collater)[[0]] == "by sample"


SCRIPT = """
import sys, time
from pyseq.data.batch_loader import BatchLoader, BufferedIterator

class Slow:
    def __getitem__(self, index):
        time.sleep(0.01 if index < 3 else 60)
        return index

workers, interrupt = int(sys.argv[1]), sys.argv[2] == "interrupt"
batches = BatchLoader(Slow(), list, [[i] for i in range(9)], num_workers=workers)
batches = iter(batches) if workers else BufferedIterator(2, batches)
next(batches), next(batches), next(batches)
print("ready", flush=True)
if interrupt:
    next(batches)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", ["interrupt", "exit"])
def test_ctrl_c_and_the_end_of_the_program_do_not_wait_for_a_batch(workers, how):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(workers), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    if how == "interrupt":
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    if how == "interrupt":
        assert "KeyboardInterrupt" in errors and process.returncode != 0
    else:
        assert process.returncode == 0, errors
