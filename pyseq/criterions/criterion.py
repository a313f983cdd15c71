"""The base class of criterions."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

from torch import Tensor, nn

from pyseq import metrics
from pyseq.errors import ConfigError
from pyseq.registry import Optioned

Logging = dict[str, Any]


class Criterion(nn.Module, Optioned):
    """Turns a model's output for a batch into a loss, and says what to log of it.

    Attributes:
        task: the task that the criterion was built for.
        padding_idx: the index of padding in ``task.target_dictionary``; -100 where the task has none. Targets with this
            index count for nothing.
    """

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task
        dictionary = getattr(task, "target_dictionary", None)
        self.padding_idx: int = dictionary.pad() if dictionary is not None else -100

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> Criterion:
        """Call the constructor with what its parameters are named after: ``task``, ``cfg``, or an attribute of ``cfg``.

        Raises:
            ConfigError: a parameter is none of these and has no default.
        """
        arguments: dict[str, Any] = {}
        for parameter in inspect.signature(cls).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.name in ("task", "cfg"):
                arguments[parameter.name] = task if parameter.name == "task" else cfg
            elif hasattr(cfg, parameter.name):
                arguments[parameter.name] = getattr(cfg, parameter.name)
            elif parameter.default is parameter.empty:
                raise ConfigError(
                    f"criterion {cls.__module__}.{cls.__qualname__}: cannot infer the argument '{parameter.name}'. "
                    "It is neither 'task' nor 'cfg' nor an option, and has no default. Give it one, or define "
                    "build_criterion."
                )
        return cls(**arguments)

    def forward(self, model: nn.Module, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, Any, Logging]:
        """Compute the loss of a batch.

        Args:
            model: called with ``sample["net_input"]``.
            sample: a batch as the task's dataset collates it.
            reduce: sum the loss over the batch; otherwise it is that of each token.

        Returns:
            The loss; the sample size, which the trainer divides the gradient by; and what to log. Logged values may be
            tensors: reading them here would wait for the device.
        """
        raise NotImplementedError

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[Logging]) -> None:
        """Log the values of one update (several batches, several workers) with :mod:`pyseq.metrics`.

        A criterion that defines the older ``aggregate_logging_outputs(logging_outputs) -> dict`` has that logged.
        """
        aggregate = getattr(cls, "aggregate_logging_outputs", None)
        if aggregate is None:
            raise NotImplementedError(f"{cls.__qualname__} has no reduce_metrics")
        for key, value in aggregate(logging_outputs).items():
            if key not in ("nsentences", "ntokens", "sample_size"):
                metrics.log_scalar(key, value, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Whether logging outputs of several workers may be added key by key, which is faster than gathering them."""
        return False


def logits_of(model: nn.Module, net_output: Any, sample: dict[str, Any]) -> Tensor | None:
    """The logits [..., V] of ``net_output`` if the model's log-probabilities are their plain log-softmax, else None.

    The model says so by its method ``get_logits(net_output, sample)``, which may itself return None.
    """
    get_logits = getattr(model, "get_logits", None)
    return None if get_logits is None else get_logits(net_output, sample)


class LinearFeatures(NamedTuple):
    """What a model returned with ``features_only``, and the output layer that the criterion applies to it."""

    features: Tensor  # [B x T x C]
    weight: Tensor  # [V x C]
    bias: Tensor | None  # [V]

    def arguments(self, target: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
        """Positional and keyword arguments of the operations, for [B x T] targets."""
        rows = self.features.reshape(-1, self.features.size(-1))
        # In training the logits of a few hundred rows are little beside what the backward pass keeps.
        return (rows, self.weight, target.reshape(-1)), {"linear_bias": self.bias, "chunk_rows": "large"}


def linear_features_of(model: nn.Module, sample: dict[str, Any]) -> LinearFeatures | None:
    """Call the model without its output layer, if it says by ``linear_output()`` that it can do without; else None."""
    offered = getattr(model, "linear_output", None)
    output = None if offered is None else offered()
    if output is None:
        return None
    return LinearFeatures(model(**sample["net_input"], features_only=True)[0], *output)


def sample_size_of(sample: dict[str, Any], sentence_avg: bool) -> Any:
    """What the gradient is divided by: sentences, or target tokens that are not padding."""
    return sample["target"].size(0) if sentence_avg else sample["ntokens"]


def total(logging_outputs: list[Logging], key: str) -> Any:
    return sum(output.get(key, 0) for output in logging_outputs)


def log_bits(key: str, sum_in_nats: Any, count: Any) -> None:
    """Log the mean over ``count`` of a sum in nats, in bits."""
    metrics.log_scalar(key, sum_in_nats / count / math.log(2), count, round=3)


def log_perplexity(of: str) -> None:
    """Log ``ppl``, two to the power of the mean ``of``, which is in bits."""
    metrics.log_derived("ppl", lambda meters: perplexity(meters[of].avg))  # type: ignore[attr-defined]


def perplexity(bits: Any) -> float:
    """2 ** bits to two digits. Waits for the device where ``bits`` is on one."""
    try:
        return round(2.0 ** float(bits), 2)
    except OverflowError:
        return math.inf
