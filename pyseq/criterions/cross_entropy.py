"""Cross-entropy: the negative log-probability of the target, summed over target tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pyseq import ops
from pyseq.config import II, ConfigGroup
from pyseq.criterions import register_criterion
from pyseq.criterions.criterion import (
    Criterion,
    Logging,
    linear_features_of,
    log_bits,
    log_perplexity,
    logits_of,
    sample_size_of,
    total,
)
from pyseq.utils import inherits


@dataclass
class CrossEntropyConfig(ConfigGroup):
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("cross_entropy", dataclass=CrossEntropyConfig)
class CrossEntropyCriterion(Criterion):
    def __init__(self, task: Any, sentence_avg: bool) -> None:
        super().__init__(task)
        self.sentence_avg = sentence_avg

    def forward(self, model: nn.Module, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, Any, Logging]:
        linear = linear_features_of(model, sample) if inherits(self, CrossEntropyCriterion, "compute_loss") else None
        if linear is None:
            loss, _ = self.compute_loss(model, model(**sample["net_input"]), sample, reduce=reduce)
        else:
            arguments, options = linear.arguments(sample["target"])
            reduction: ops.Reduction = "sum" if reduce else "none"
            loss = ops.linear_cross_entropy(*arguments, **options, ignore_index=self.padding_idx, reduction=reduction)
        sample_size = sample_size_of(sample, self.sentence_avg)
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        return loss, sample_size, logging_output

    def compute_loss(
        self, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The loss twice, for criterions that tell a training loss from it: 0-d, or [N] where ``reduce`` is false."""
        target = model.get_targets(sample, net_output).reshape(-1)
        reduction: ops.Reduction = "sum" if reduce else "none"
        logits = logits_of(model, net_output, sample)
        if logits is not None:
            rows = logits.reshape(-1, logits.size(-1))
            loss = ops.cross_entropy(rows, target, ignore_index=self.padding_idx, reduction=reduction)
        else:
            lprobs = model.get_normalized_probs(net_output, log_probs=True, sample=sample)
            rows = lprobs.reshape(-1, lprobs.size(-1))
            loss = F.nll_loss(rows, target, ignore_index=self.padding_idx, reduction=reduction)
        return loss, loss

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[Logging]) -> None:
        """``loss`` in bits by sample size; ``nll_loss`` in bits by token where that is another number; ``ppl``."""
        loss, ntokens, sample_size = (total(logging_outputs, key) for key in ("loss", "ntokens", "sample_size"))
        log_bits("loss", loss, sample_size)
        if sample_size != ntokens:
            log_bits("nll_loss", loss, ntokens)
            log_perplexity("nll_loss")
        else:
            log_perplexity("loss")

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
