"""Cross-entropy with label smoothing, in fairseq's form. The formula is in :mod:`pyseq.ops.cross_entropy`."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from pyseq import metrics, ops
from pyseq.config import II, ConfigGroup
from pyseq.criterions import register_criterion
from pyseq.criterions.criterion import (
    Criterion,
    LinearFeatures,
    Logging,
    linear_features_of,
    log_bits,
    log_perplexity,
    logits_of,
    sample_size_of,
    total,
)
from pyseq.errors import ConfigError
from pyseq.metrics.meters import to_number
from pyseq.utils import inherits


@dataclass
class LabelSmoothedCrossEntropyConfig(ConfigGroup):
    label_smoothing: float = field(
        default=0.0, metadata={"help": "probability that is spread evenly over all classes but the target (0: none)"}
    )
    report_accuracy: bool = field(default=False, metadata={"help": "log how many targets have the largest logit, in %"})
    ignore_prefix_size: int = field(default=0, metadata={"help": "leave the first N target tokens out of the loss"})
    sentence_avg: bool = II("optimization.sentence_avg")


def label_smoothed_nll_loss(
    lprobs: Tensor, target: Tensor, epsilon: float, ignore_index: int | None = None, reduce: bool = True
) -> tuple[Tensor, Tensor]:
    """The smoothed loss and the nll of log-probabilities, for models that have no logits.

    Args:
        lprobs: [..., V] log-probabilities.
        target: [...] or [..., 1] classes.
        epsilon: probability that is spread over the other classes.
        ignore_index: targets that count for nothing.
        reduce: sum over all targets; otherwise the shape is [..., 1], or [...] without ``ignore_index``.
    """
    if target.dim() == lprobs.dim() - 1:
        target = target.unsqueeze(-1)
    ignored = None if ignore_index is None else target.eq(ignore_index)
    nll = -lprobs.gather(-1, target if ignored is None else target.masked_fill(ignored, 0))
    smooth = -lprobs.sum(dim=-1, keepdim=True)
    if ignored is None:
        nll, smooth = nll.squeeze(-1), smooth.squeeze(-1)
    else:
        nll, smooth = nll.masked_fill(ignored, 0.0), smooth.masked_fill(ignored, 0.0)
    if reduce:
        nll, smooth = nll.sum(), smooth.sum()
    each = epsilon / max(lprobs.size(-1) - 1, 1)
    return (1.0 - epsilon - each) * nll + each * smooth, nll


@register_criterion("label_smoothed_cross_entropy", dataclass=LabelSmoothedCrossEntropyConfig)
class LabelSmoothedCrossEntropyCriterion(Criterion):
    """Subclasses may override ``compute_loss``, ``get_lprobs_and_target`` and ``compute_accuracy``."""

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
    ) -> None:
        super().__init__(task)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ConfigError(f"--label-smoothing must be between 0 and 1, not {label_smoothing}")
        if ignore_prefix_size < 0:
            raise ConfigError(f"--ignore-prefix-size must not be negative, not {ignore_prefix_size}")
        self.sentence_avg = sentence_avg
        self.eps = label_smoothing
        self.ignore_prefix_size = ignore_prefix_size
        self.report_accuracy = report_accuracy
        self._counted: tuple[weakref.ref[Tensor], Tensor] | None = None  # logits and how many of their rows are right

    def forward(self, model: nn.Module, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, Any, Logging]:
        linear = self._linear_features(model, sample)
        if linear is None:
            net_output = model(**sample["net_input"])
            loss, nll_loss = self.compute_loss(model, net_output, sample, reduce=reduce)
        else:
            loss, nll_loss, n_correct = self._linear_loss(linear, sample["target"], reduce)
        sample_size = sample_size_of(sample, self.sentence_avg)
        logging_output = {
            "loss": loss.detach(),
            "nll_loss": nll_loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        if self.report_accuracy and linear is None:
            logging_output["n_correct"], logging_output["total"] = self.compute_accuracy(model, net_output, sample)
        elif self.report_accuracy:
            counts = self._without_prefix(sample["target"]).ne(self.padding_idx)
            logging_output["n_correct"], logging_output["total"] = n_correct, counts.sum()
        return loss, sample_size, logging_output

    def compute_loss(
        self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The loss and the nll: 0-d, or [N x 1] where ``reduce`` is false."""
        logits = self._logits(model, net_output, sample)
        if logits is None:
            lprobs, target = self.get_lprobs_and_target(model, net_output, sample)
            return label_smoothed_nll_loss(lprobs, target, self.eps, ignore_index=self.padding_idx, reduce=reduce)
        target = self._without_prefix(model.get_targets(sample, net_output))
        arguments = logits.reshape(-1, logits.size(-1)), target.reshape(-1)
        options: dict[str, Any] = {"label_smoothing": self.eps, "ignore_index": self.padding_idx}
        if reduce:
            sums = ops.cross_entropy_sums(*arguments, **options)
            if self.report_accuracy:
                self._counted = weakref.ref(logits), sums.n_correct
            return sums.loss, sums.nll_loss
        rows = ops.cross_entropy_rows(*arguments, **options)
        return self._column(rows.loss, target), self._column(rows.nll_loss, target)

    def get_lprobs_and_target(self, model: Any, net_output: Any, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N x V] and targets [N], without the prefix that is left out."""
        lprobs = model.get_normalized_probs(net_output, log_probs=True, sample=sample)
        target = model.get_targets(sample, net_output)
        if self.ignore_prefix_size > 0:
            lprobs, target = lprobs[:, self.ignore_prefix_size :], target[:, self.ignore_prefix_size :]
        return lprobs.reshape(-1, lprobs.size(-1)), target.reshape(-1)

    def compute_accuracy(self, model: Any, net_output: Any, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """How many targets have the largest logit, and how many targets there are: 0-d, on the device."""
        logits = self._logits(model, net_output, sample)
        if logits is None:
            lprobs, target = self.get_lprobs_and_target(model, net_output, sample)
            counts = target.ne(self.padding_idx)
            return (lprobs.argmax(dim=1).eq(target) & counts).sum(), counts.sum()
        target = self._without_prefix(model.get_targets(sample, net_output))
        counts = target.ne(self.padding_idx)
        counted, self._counted = self._counted, None
        if counted is not None and counted[0]() is logits:  # the pass for the loss has seen it
            return counted[1], counts.sum()
        return (logits.argmax(dim=-1).view(target.shape).eq(target) & counts).sum(), counts.sum()

    def _logits(self, model: Any, net_output: Any, sample: dict[str, Any]) -> Tensor | None:
        """Logits, unless the model has none or a subclass has its own way to log-probabilities."""
        if type(self).get_lprobs_and_target is not LabelSmoothedCrossEntropyCriterion.get_lprobs_and_target:
            return None
        return logits_of(model, net_output, sample)

    def _linear_features(self, model: nn.Module, sample: dict[str, Any]) -> LinearFeatures | None:
        """What the model has before its output layer, unless a subclass has a use for what comes after."""
        own = "compute_loss", "get_lprobs_and_target", "compute_accuracy"
        return linear_features_of(model, sample) if inherits(self, LabelSmoothedCrossEntropyCriterion, *own) else None

    def _linear_loss(self, linear: LinearFeatures, target: Tensor, reduce: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and the nll as :meth:`compute_loss` has them, and how many targets have the largest logit."""
        target = self._without_prefix(target)
        arguments, options = linear.arguments(target)
        options |= {"label_smoothing": self.eps, "ignore_index": self.padding_idx}
        if reduce:
            sums = ops.linear_cross_entropy_sums(*arguments, **options)
            return sums.loss, sums.nll_loss, sums.n_correct
        rows = ops.linear_cross_entropy_rows(*arguments, **options)
        return self._column(rows.loss, target), self._column(rows.nll_loss, target), rows.correct.sum()

    def _column(self, rows: Tensor, target: Tensor) -> Tensor:
        """``rows`` of the positions [B x T] of ``target`` as [N x 1], without the prefix that is left out."""
        return rows.view(target.shape)[:, self.ignore_prefix_size :].reshape(-1, 1)

    def _without_prefix(self, target: Tensor) -> Tensor:
        """``target`` [B x T] with padding in place of the first tokens, which costs less than a copy of the logits."""
        if self.ignore_prefix_size == 0:
            return target
        target = target.clone()
        target[:, : self.ignore_prefix_size] = self.padding_idx
        return target

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[Logging]) -> None:
        """``loss`` in bits by sample size; ``nll_loss`` in bits by token; ``ppl``; where counted, ``accuracy`` in %."""
        ntokens = total(logging_outputs, "ntokens")
        log_bits("loss", total(logging_outputs, "loss"), total(logging_outputs, "sample_size"))
        log_bits("nll_loss", total(logging_outputs, "nll_loss"), ntokens)
        log_perplexity("nll_loss")
        if any("total" in output for output in logging_outputs):
            metrics.log_scalar("total", total(logging_outputs, "total"))
            metrics.log_scalar("n_correct", total(logging_outputs, "n_correct"))
            metrics.log_derived("accuracy", accuracy)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def accuracy(meters: Any) -> float:
    """Per cent of all targets so far. Waits for the device."""
    count = to_number(meters["total"].sum)
    return round(to_number(meters["n_correct"].sum) * 100.0 / count, 3) if count > 0 else math.nan
