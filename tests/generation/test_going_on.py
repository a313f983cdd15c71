"""Generation on a GPU: the host does not wait for it between two steps, and learns late which sentences have ended."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from torch import Tensor

from pyseq.generation import SequenceGenerator, going_on
from pyseq.generation.going_on import GoingOn
from pyseq.models import build_model


def places(going: GoingOn, *goes_on: bool) -> list[int]:
    return going.among(torch.tensor(goes_on)).tolist()


def test_at_once_on_a_cpu() -> None:
    going = GoingOn(4, torch.device("cpu"))
    assert places(going, True, False, True, True) == [0, 2, 3]
    assert places(going, False, True, False) == [1]


def test_what_was_true_some_steps_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(going_on.LAG, "cpu", 2)
    going = GoingOn(4, torch.device("cpu"))
    assert places(going, True, False, True, True) == [0, 1, 2, 3]
    assert places(going, True, False, True, False) == [0, 1, 2, 3]
    assert places(going, True, False, True, False) == [0, 2, 3]  # of the first answer; left are the sentences 0, 2, 3
    assert places(going, False, True, False) == [0, 1]  # of the second: the sentence 3 has ended
    assert places(going, False, True) == [0, 1]  # of the third, which says nothing new
    assert places(going, False, True) == [1]  # of the fourth: the sentence 0, too


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix": True},
        {"no_repeat_ngram_size": 2},
        {"need_attention": True},
        {"temperature": 0.5, "unk_penalty": 1.0},
    ],
    ids=["plain", "prefix", "ngrams", "attention", "penalties"],
)
def test_nothing_waits_for_the_device_between_two_steps(
    options: dict[str, Any], make_dictionary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without memory: to read one would be an error."""
    dictionary, steps = make_dictionary(30), []
    options = dict(options)
    prefix = options.pop("prefix", False)

    def among(going: GoingOn, goes_on: Tensor) -> Tensor:
        steps.append(goes_on.numel())
        return torch.arange(4 if len(steps) < 3 else 2, device=goes_on.device)  # two leave at the third step

    monkeypatch.setitem(going_on.LAG, "meta", 2)
    monkeypatch.setattr(GoingOn, "among", among)
    monkeypatch.setattr(SequenceGenerator, "_complete", lambda generator, ended, batch: ended.count.device.type)
    task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = build_model(argparse.Namespace(arch="transformer_tiny"), task).eval().to("meta")
    generator = SequenceGenerator([model], dictionary, beam_size=3, max_len_b=6, **options)
    net_input = {"src_tokens": torch.full((4, 7), 5, device="meta"), "src_lengths": torch.full((4,), 7, device="meta")}
    prefix_tokens = torch.full((4, 2), 5, device="meta") if prefix else None
    assert generator.generate(None, {"net_input": net_input}, prefix_tokens=prefix_tokens) == "meta"
    assert steps == [4, 4, 4, 2, 2, 2]


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_and_the_hypotheses_are_those_of_the_cpu(
    make_dictionary: Any, make_sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictionary = make_dictionary(30)
    task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    torch.manual_seed(1)
    model = build_model(argparse.Namespace(arch="transformer_tiny"), task).eval()
    sample = make_sample(dictionary, [5, 3, 7, 4, 2, 6])
    options: dict[str, Any] = {"beam_size": 3, "max_len_b": 12}
    expected = SequenceGenerator([model], dictionary, **options).generate(None, sample)
    complete = SequenceGenerator._complete

    def waiting_again(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        return complete(*args)

    monkeypatch.setattr(SequenceGenerator, "_complete", waiting_again)
    sample = {"net_input": {key: value.cuda() for key, value in sample["net_input"].items()}}
    generator = SequenceGenerator([model.cuda()], dictionary, **options)
    generator.generate(None, sample)  # what is done once for all batches may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = generator.generate(None, sample)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for some, others in zip(found, expected, strict=True):
        assert [h["tokens"].tolist() for h in some] == [h["tokens"].tolist() for h in others]
