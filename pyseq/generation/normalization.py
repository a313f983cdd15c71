"""Log-probabilities out of logits without writing all of them, for models whose probabilities are a plain softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyseq.models.decoder import Decoder
from pyseq.models.model import BaseModel
from pyseq.ops import cross_entropy_rows

LARGE = 64.0


def is_plain_softmax(model: Any) -> bool:
    """Whether neither the model nor its decoder makes probabilities in a way of its own."""
    decoder = getattr(model, "decoder", None)
    return (
        getattr(type(model), "get_normalized_probs", None) is BaseModel.get_normalized_probs
        and isinstance(decoder, Decoder)
        and type(decoder).get_normalized_probs is Decoder.get_normalized_probs
        and decoder.adaptive_softmax is None
    )


def plain_logits(model: Any, net_output: Any, sample: dict[str, Any] | None = None) -> Tensor | None:
    """The logits [..., V] in the model's output if its probabilities are their plain softmax, else None.

    A model can say so by a method ``get_logits(net_output, sample)``.
    """
    get_logits = getattr(model, "get_logits", None)
    if get_logits is not None:
        logits: Tensor | None = get_logits(net_output, sample)
        return logits
    return net_output[0] if is_plain_softmax(model) else None


def log_normalizer(logits: Tensor) -> Tensor:
    """log sum exp of each row of ``logits`` [R, V], as [R].

    The cross-entropy of any class is that minus the class's logit, and a kernel computes it without writing anything
    else. The difference is only as exact as that logit is small.
    """
    logit = logits[:, 0]
    if not bool(logit.abs().lt(LARGE).all()):
        return logits.logsumexp(dim=-1)
    return cross_entropy_rows(logits, logits.new_zeros(logits.size(0), dtype=torch.long)).nll_loss + logit


def target_lprobs(model: Any, net_output: Any, target: Tensor, sample: dict[str, Any]) -> Tensor:
    """The log-probability [B, T] of each token of ``target``, given the model's output with logits [B, T, V]."""
    sample = {**sample, "target": target}
    logits = plain_logits(model, net_output, sample)
    if logits is not None:
        return -cross_entropy_rows(logits, target).nll_loss
    lprobs = model.get_normalized_probs(net_output, log_probs=True, sample=sample)
    return lprobs.view(*target.shape, -1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
