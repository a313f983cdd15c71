"""Log-probabilities out of logits without writing all of them, for models whose probabilities are a plain softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyseq.models.decoder import Decoder
from pyseq.models.model import BaseModel
from pyseq.ops import cross_entropy_rows


def normalizes_by_softmax(model: nn.Module) -> bool:
    """Whether neither the model nor its decoder makes probabilities in a way of its own."""
    decoder = getattr(model, "decoder", None)
    return (
        getattr(type(model), "get_normalized_probs", None) is BaseModel.get_normalized_probs
        and isinstance(decoder, Decoder)
        and type(decoder).get_normalized_probs is Decoder.get_normalized_probs
        and decoder.adaptive_softmax is None
    )


def log_normalizer(logits: Tensor, column: int) -> Tensor:
    """log sum exp of each row of ``logits`` [R, V], as [R].

    The cross-entropy of any class is that minus the class's logit, and there is a kernel for it that writes nothing else.

    Args:
        column: a class whose logits are finite; where they are not, a slower way is taken.
    """
    target = torch.full((logits.size(0),), column, device=logits.device)
    result = cross_entropy_rows(logits, target).nll_loss + logits[:, column]
    return result if bool(result.isfinite().all()) else logits.logsumexp(dim=-1)


def target_lprobs(model: nn.Module, net_output: Any, target: Tensor, sample: dict[str, Any]) -> Tensor:
    """The log-probability [B, T] of each token of ``target``, given the model's output with logits [B, T, V]."""
    if normalizes_by_softmax(model):
        return -cross_entropy_rows(net_output[0], target).nll_loss
    lprobs = model.get_normalized_probs(net_output, log_probs=True, sample={**sample, "target": target})
    return lprobs.view(*target.shape, -1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
