"""Several batches at a time: the same results in the same order, and an end when something goes wrong."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

from pyseq.errors import UserError
from pyseq.generation import SequenceGenerator
from pyseq.generation.workers import in_order, replicas


class Generator(nn.Module):
    """Something with a weight, and with a state of its own for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.batch = -1


def workers(count: int) -> list[tuple[Any, list[Any]]]:
    generator = Generator()
    return replicas(generator, [generator], count)


def test_replicas_share_weights_and_nothing_else():
    (one, [model]), (two, [other]) = workers(2)
    assert two is not one and other is two and model is one
    assert two.weight is one.weight
    two.batch = 5
    assert one.batch == -1


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batches", [0, 1, 5, 20])
def test_order_is_that_of_the_batches(count, batches):
    """Early batches take longest; each must keep its generator to itself, and torch its one thread."""

    def generate(generator: Generator, models: list[Any], batch: int) -> tuple[int, int]:
        generator.batch = batch
        time.sleep(0.002 * (batches - batch))
        return generator.batch, torch.get_num_threads()

    before = torch.get_num_threads()
    found = list(in_order(range(batches), generate, workers(count)))
    assert [(batch, result[0]) for batch, result in found] == [(batch, batch) for batch in range(batches)]
    assert {result[1] for _, result in found} <= {before if count == 1 else 1}
    assert torch.get_num_threads() == before


def test_an_error_ends_the_other_workers():
    """At once, not when they have done their batches."""
    stopped = threading.Event()

    def generate(generator: Generator, models: list[Any], batch: int) -> None:
        if batch == 0:
            raise UserError("batch 0 is not to be")
        try:
            for _ in range(1000):
                time.sleep(0.01)
        except KeyboardInterrupt:
            stopped.set()
            raise

    begin = time.perf_counter()
    with pytest.raises(UserError, match="batch 0"):
        for _ in in_order(range(8), generate, workers(2)):
            pass
    assert time.perf_counter() - begin < 5
    assert stopped.is_set()


def test_a_caller_that_gives_up_ends_the_workers():
    def generate(generator: Generator, models: list[Any], batch: int) -> int:
        for _ in range(1000 if batch > 0 else 1):
            time.sleep(0.01)
        return batch

    begin = time.perf_counter()
    results = in_order(range(8), generate, workers(2))
    with pytest.raises(KeyboardInterrupt):
        for _ in results:
            raise KeyboardInterrupt
    results.close()
    assert time.perf_counter() - begin < 5


def test_generators_of_two_batches_do_not_meet(make_dictionary, make_model, make_sample):
    dictionary = make_dictionary(30)
    models = [make_model(dictionary, seed=3, sharpness=2.0)]
    generator = SequenceGenerator(models, dictionary, beam_size=3, max_len_b=15)
    samples = [make_sample(dictionary, [9, 3, 5], seed) for seed in range(6)]

    def generate(generator: SequenceGenerator, models: list[Any], sample: dict[str, Any]) -> Any:
        return generator.generate(models, sample)

    def run(count: int) -> list[Any]:
        return [found for _, found in in_order(samples, generate, replicas(generator, models, count, dictionary))]

    for one, other in zip(run(1), run(3), strict=True):
        for hypotheses, expected in zip(one, other, strict=True):
            assert [h["tokens"].tolist() for h in hypotheses] == [h["tokens"].tolist() for h in expected]
            # Torch's own products round differently on several threads.
            scores = [float(h["score"]) for h in expected]
            assert [float(h["score"]) for h in hypotheses] == pytest.approx(scores, abs=1e-5)
