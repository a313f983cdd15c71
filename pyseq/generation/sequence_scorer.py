"""Scoring given targets with one model or an ensemble."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyseq.data.dictionary import Dictionary
from pyseq.errors import ConfigError
from pyseq.generation.alignment import hard_alignment
from pyseq.generation.beams import Hypothesis
from pyseq.generation.ensemble import attention_of, log_mean_exp
from pyseq.models.decoder import Decoder
from pyseq.models.model import BaseModel


class SequenceScorer:
    """The log-probability of each target token, in the shape of a generator's hypotheses.

    Args:
        tgt_dict: target dictionary.
        softmax_batch: normalise at most this many positions at once.
        compute_alignment: read a hard alignment off the attention.
        eos: end of sentence; default: the dictionary's.
        symbols_to_strip_from_output: ids that text output leaves out; eos is always among them.
    """

    def __init__(
        self,
        tgt_dict: Dictionary,
        softmax_batch: int | None = None,
        compute_alignment: bool = False,
        eos: int | None = None,
        symbols_to_strip_from_output: set[int] | None = None,
    ) -> None:
        self.pad = tgt_dict.pad()
        self.eos = tgt_dict.eos() if eos is None else eos
        self.softmax_batch = softmax_batch or sys.maxsize
        if self.softmax_batch < 1:
            raise ConfigError(f"--softmax-batch is {softmax_batch}; it must be at least 1")
        self.compute_alignment = compute_alignment
        self.symbols_to_strip_from_output = (symbols_to_strip_from_output or set()) | {self.eos}

    @torch.no_grad()
    def generate(self, models: Sequence[nn.Module], sample: dict[str, Any], **kwargs: Any) -> list[list[Hypothesis]]:
        """Score the targets of a batch.

        Args:
            models: the ensemble.
            sample: a batch with ``net_input`` and ``target`` [B, T], and perhaps ``start_indices``: for each row the first
                position that counts (those before it are context).

        Returns:
            For each row a list of one dict: ``tokens`` (without padding), ``positional_scores`` (natural logarithms), their
            mean ``score``, and ``attention`` [T, S] and ``alignment`` or None.
        """
        target = sample["target"]
        lprobs, attentions = [], []
        for model in models:
            model.eval()
            net_output = model(**sample["net_input"])
            lprobs.append(self._target_lprobs(model, net_output, target, sample))
            attention = attention_of(net_output[1]) if isinstance(net_output, (tuple, list)) and len(net_output) > 1 else None
            if attention is not None:
                attentions.append(attention)
        attention = torch.stack(attentions).sum(0) / len(models) if attentions else None
        return self._hypotheses(log_mean_exp(lprobs), attention, sample)

    def _target_lprobs(self, model: nn.Module, net_output: Any, target: Tensor, sample: dict[str, Any]) -> Tensor:
        """Log-probability [B, T] of each target token; padding gets that of the padding symbol."""
        logits = net_output[0]
        rows = logits.flatten(0, 1) if target.numel() > self.softmax_batch else None
        if rows is None:
            return target_lprobs(model, net_output, target, sample)
        parts = [
            target_lprobs(model, (part.unsqueeze(0), *net_output[1:]), tokens.unsqueeze(0), sample).flatten()
            for part, tokens in zip(rows.split(self.softmax_batch), target.flatten().split(self.softmax_batch))
        ]
        return torch.cat(parts).view_as(target)

    def _hypotheses(self, lprobs: Tensor, attention: Tensor | None, sample: dict[str, Any]) -> list[list[Hypothesis]]:
        target = sample["target"]
        return [
            [self._hypothesis(i, start, end, lprobs, attention, sample)]
            for i, (start, end) in enumerate(self._spans(target, sample.get("start_indices")))
        ]

    def _spans(self, target: Tensor, start_indices: Any) -> Iterator[tuple[int, int]]:
        """For each row the first position that counts and the first after it that is padding."""
        starts = [0] * target.size(0) if start_indices is None else [int(start) for start in start_indices]
        words = target.ne(self.pad)
        for start, row in zip(starts, words.cpu().unbind()):
            yield start, start + int(row[start:].sum())

    def _hypothesis(
        self, i: int, start: int, end: int, lprobs: Tensor, attention: Tensor | None, sample: dict[str, Any]
    ) -> Hypothesis:
        tokens, scores = sample["target"][i, start:end], lprobs[i, start:end]
        alignment = None
        if attention is not None and self.compute_alignment:
            source = sample["net_input"]["src_tokens"][i]
            alignment = hard_alignment(attention[i, start:end], source, tokens, self.pad, self.eos)
        return {
            "tokens": tokens,
            "score": scores.sum() / max(end - start, 1),
            "attention": None if attention is None else attention[i],
            "alignment": alignment,
            "positional_scores": scores,
        }


def target_lprobs(model: nn.Module, net_output: Any, target: Tensor, sample: dict[str, Any]) -> Tensor:
    """The log-probability [B, T] of each token of ``target`` under ``net_output``'s logits [B, T, V]."""
    if normalizes_by_softmax(model):
        return -F.cross_entropy(net_output[0].flatten(0, -2).float(), target.flatten(), reduction="none").view_as(target)
    lprobs = model.get_normalized_probs(net_output, log_probs=True, sample={**sample, "target": target})
    return lprobs.view(*target.shape, -1).gather(-1, target.unsqueeze(-1)).squeeze(-1)


def normalizes_by_softmax(model: nn.Module) -> bool:
    """Whether the model's probabilities are the plain softmax of its logits: neither it nor its decoder says otherwise."""
    decoder = getattr(model, "decoder", None)
    return (
        type(model).get_normalized_probs is BaseModel.get_normalized_probs
        and isinstance(decoder, Decoder)
        and type(decoder).get_normalized_probs is Decoder.get_normalized_probs
        and decoder.adaptive_softmax is None
    )
