"""The registry of criterions, and how a criterion's constructor gets its arguments."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from pyseq import metrics
from pyseq.config import ConfigGroup
from pyseq.criterions import CRITERIONS, Criterion, build_criterion
from pyseq.criterions.criterion import perplexity
from pyseq.errors import ConfigError


def task(pad: int | None = 1) -> Any:
    dictionary = None if pad is None else SimpleNamespace(pad=lambda: pad)
    return SimpleNamespace(target_dictionary=dictionary)


def test_padding_is_that_of_the_target_dictionary() -> None:
    assert Criterion(task(7)).padding_idx == 7
    assert Criterion(task(None)).padding_idx == -100
    assert Criterion(SimpleNamespace()).padding_idx == -100


class Inferred(Criterion):
    def __init__(self, task: Any, cfg: Any, alpha: float, beta: float = 2.0, **kwargs: Any) -> None:
        super().__init__(task)
        self.got = (cfg, alpha, beta)


def test_constructor_arguments_are_inferred() -> None:
    # A flat namespace has a task of its own: its name.
    cfg, for_task = Namespace(alpha=0.5, task="translation"), task()
    criterion = Inferred.build_criterion(cfg, for_task)
    assert isinstance(criterion, Inferred) and criterion.task is for_task
    assert criterion.got == (cfg, 0.5, 2.0)
    assert Inferred.build_criterion(Namespace(alpha=0.5, beta=3.0), for_task).got[2] == 3.0  # type: ignore[attr-defined]


def test_an_argument_that_cannot_be_inferred_is_named() -> None:
    with pytest.raises(ConfigError, match="Inferred.*'alpha'"):
        Inferred.build_criterion(Namespace(beta=1.0), task())


def test_names_and_default() -> None:
    assert {"cross_entropy", "label_smoothed_cross_entropy"} <= set(CRITERIONS.names())
    assert CRITERIONS.default == "cross_entropy"
    with pytest.raises(ConfigError, match="Did you mean 'label_smoothed_cross_entropy'"):
        build_criterion(Namespace(criterion="label_smooth_cross_entropy"), task())


def test_options_of_a_dataclass_reach_the_constructor() -> None:
    cfg = Namespace(
        criterion="label_smoothed_cross_entropy", label_smoothing=0.1, report_accuracy=True, sentence_avg=True
    )
    criterion: Any = build_criterion(cfg, task())
    assert (criterion.eps, criterion.report_accuracy, criterion.sentence_avg) == (0.1, True, True)
    assert criterion.ignore_prefix_size == 0
    # fairseq's checkpoints name the class, and its loader compares the name.
    assert type(criterion).__name__ == "LabelSmoothedCrossEntropyCriterion"
    assert type(build_criterion("cross_entropy", task())).__name__ == "CrossEntropyCriterion"


@dataclass
class PluginConfig(ConfigGroup):
    weight: float = 3.0


class Plugin(Criterion):
    def __init__(self, task: Any, weight: float) -> None:
        super().__init__(task)
        self.weight = weight


def test_a_plugin_registers_and_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CRITERIONS, "_entries", dict(CRITERIONS._entries))
    CRITERIONS.register("plugin_for_this_test", dataclass=PluginConfig)(Plugin)
    assert build_criterion(Namespace(criterion="plugin_for_this_test", weight=4.0), task()).weight == 4.0
    assert build_criterion("plugin_for_this_test", task()).weight == 3.0
    with pytest.raises(ConfigError, match="must extend"):
        CRITERIONS.register("not_a_criterion")(nn.Linear)


class Old(Criterion):
    @staticmethod
    def aggregate_logging_outputs(outputs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"loss": sum(output["loss"] for output in outputs), "ntokens": 5}


def test_older_aggregation_is_logged() -> None:
    with metrics.aggregate() as logged:
        Old.reduce_metrics([{"loss": 1.0}, {"loss": 2.5}])
    assert logged.get_smoothed_values() == {"loss": 3.5}
    with pytest.raises(NotImplementedError, match="Plugin has no reduce_metrics"):
        Plugin.reduce_metrics([])
    assert not Plugin.logging_outputs_can_be_summed()


def test_perplexity() -> None:
    assert perplexity(3.0) == 8.0
    assert perplexity(1.2345) == 2.35
    assert perplexity(1e6) == float("inf")
