"""Scoring given targets with one model or an ensemble."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyseq.data.dictionary import Dictionary
from pyseq.errors import ConfigError
from pyseq.generation.alignment import hard_alignment
from pyseq.generation.beams import Hypothesis
from pyseq.generation.ensemble import asked_for, attention_of, log_mean_exp, mean_attention
from pyseq.generation.normalization import is_plain_softmax, target_lprobs

LOGITS_AT_ONCE = 2**26  # 256 MB in fp32


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
        self.vocab_size = len(tgt_dict)
        self.softmax_batch = softmax_batch or sys.maxsize
        if self.softmax_batch < 1:
            raise ConfigError(f"--softmax-batch is {softmax_batch}; it must be at least 1")
        self.compute_alignment = compute_alignment
        self.symbols_to_strip_from_output = (symbols_to_strip_from_output or set()) | {self.eos}

    @torch.no_grad()
    def generate(self, models: Sequence[Any], sample: dict[str, Any], **kwargs: Any) -> list[list[Hypothesis]]:
        """Score the targets of a batch.

        Args:
            models: the ensemble.
            sample: a batch with ``net_input`` and ``target`` [B, T], padded at the end, and perhaps ``start_indices``:
                for each row the first position that counts (those before it are context).

        Returns:
            For each row a list of one dict: ``tokens`` (without padding), ``positional_scores`` (natural logarithms),
            their mean ``score``, and ``attention`` [T, S] and ``alignment`` or None.
        """
        lprobs, attentions = [], []
        with asked_for(models, {"need_attn": self.compute_alignment}):
            for model in models:
                model.eval()
                scores, attention = self._score(model, sample)
                lprobs.append(scores)
                attentions.append(attention)
        return self._hypotheses(log_mean_exp(lprobs), mean_attention(attentions), sample)

    def _score(self, model: Any, sample: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """One model's log-probability [B, T] of each target token, and its attention [B, T, S] or None."""
        target, at_once = sample["target"], self.softmax_batch
        project = output_layer(model)
        if project is None:
            output, project = model(**sample["net_input"]), same
        else:
            # The logits are by far the largest tensor: they are made piece by piece.
            output = model(**sample["net_input"], features_only=True)
            at_once = min(at_once, max(1, LOGITS_AT_ONCE // self.vocab_size))
        rows, extra = output[0], tuple(output[1:])
        if target.numel() <= at_once:
            lprobs = target_lprobs(model, (project(rows), *extra), target, sample)
        else:
            parts = zip(rows.flatten(0, 1).unsqueeze(0).split(at_once, 1), target.view(1, -1).split(at_once, 1))
            scored = [target_lprobs(model, (project(part), *extra), tokens, sample) for part, tokens in parts]
            lprobs = torch.cat(scored, dim=1).view_as(target)
        return lprobs, attention_of(extra[0]) if extra else None

    def _hypotheses(self, lprobs: Tensor, attention: Tensor | None, sample: dict[str, Any]) -> list[list[Hypothesis]]:
        target = sample["target"]
        starts = sample.get("start_indices")
        starts = [0] * target.size(0) if starts is None else [int(start) for start in starts]
        counted = torch.arange(target.size(1), device=target.device) >= target.new_tensor(starts).unsqueeze(1)
        lengths = (target.ne(self.pad) & counted).sum(dim=1).tolist()
        return [
            [self._hypothesis(i, slice(start, start + length), lprobs, attention, sample)]
            for i, (start, length) in enumerate(zip(starts, lengths))
        ]

    def _hypothesis(
        self, i: int, span: slice, lprobs: Tensor, attention: Tensor | None, sample: dict[str, Any]
    ) -> Hypothesis:
        tokens, scores = sample["target"][i, span], lprobs[i, span]
        alignment = None
        if attention is not None and self.compute_alignment:
            source = sample["net_input"]["src_tokens"][i]
            alignment = hard_alignment(attention[i, span], source, tokens, self.pad, self.eos)
        return {
            "tokens": tokens,
            "score": scores.sum() / max(len(tokens), 1),
            "attention": None if attention is None else attention[i],
            "alignment": alignment,
            "positional_scores": scores,
        }


def output_layer(model: Any) -> Callable[[Tensor], Tensor] | None:
    """The decoder's last layer, if the model can be called without it and nothing but a softmax comes after it."""
    if not is_plain_softmax(model) or "features_only" not in inspect.signature(model.decoder.forward).parameters:
        return None
    layer: Callable[[Tensor], Tensor] = model.decoder.output_layer
    return layer


def same(logits: Tensor) -> Tensor:
    return logits
