"""A criterion as a plug-in: pyseq-train ... --user-dir focal_loss --criterion focal_loss --focal-gamma 2"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyseq import metrics
from pyseq.config import II, ConfigGroup
from pyseq.criterions import Criterion, register_criterion
from pyseq.errors import ConfigError


@dataclass
class FocalLossConfig(ConfigGroup):
    focal_gamma: float = field(
        default=1.0, metadata={"help": "how much less a well predicted token counts (0: it counts as in cross_entropy)"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("focal_loss", dataclass=FocalLossConfig)
class FocalLoss(Criterion):
    """``(1 - p)^gamma * -log p`` of each target token of probability p (Lin et al., 2017, equation 4).

    The constructor's parameters are named after options, from which they are filled in.
    """

    def __init__(self, task: Any, focal_gamma: float, sentence_avg: bool) -> None:
        super().__init__(task)
        if focal_gamma < 0:
            raise ConfigError(f"--focal-gamma {focal_gamma:g}: cannot be negative")
        self.gamma, self.sentence_avg = focal_gamma, sentence_avg

    def forward(self, model: nn.Module, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, Any, dict]:
        net_output = model(**sample["net_input"])
        lprobs = model.get_normalized_probs(net_output, log_probs=True)  # B x T x V
        target = model.get_targets(sample, net_output)  # B x T
        is_token = target.ne(self.padding_idx)
        nll = -lprobs.gather(-1, target.unsqueeze(-1)).squeeze(-1)[is_token]
        # Not quite zero where p is one: the derivative of 0^gamma is infinite for gamma < 1.
        doubt = (-torch.expm1(-nll)).clamp(min=1e-6)
        loss = doubt.pow(self.gamma) * nll
        sample_size = target.size(0) if self.sentence_avg else sample["ntokens"]
        log = {
            "loss": loss.detach().sum(),
            "nll_loss": nll.detach().sum(),
            "ntokens": sample["ntokens"],
            "nsentences": target.size(0),
            "sample_size": sample_size,
        }
        return loss.sum() if reduce else loss, sample_size, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Called once an update with the outputs of all its batches; values are logged in bits."""
        total = {key: sum(log[key] for log in logging_outputs) for key in logging_outputs[0]}
        for key, count in (("loss", total["sample_size"]), ("nll_loss", total["ntokens"])):
            metrics.log_scalar(key, total[key] / count / math.log(2), count, round=3)
        metrics.log_derived("ppl", lambda meters: round(2 ** min(float(meters["nll_loss"].avg), 100), 2))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
