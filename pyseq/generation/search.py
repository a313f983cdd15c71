"""How the hypotheses of a beam are extended: the rule that picks candidates from the next token's log-probabilities."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyseq.data.dictionary import Dictionary

Candidates = tuple[Tensor, Tensor, Tensor]

GROUP = 8


class Search(ABC):
    """Base of all searches. One instance serves one batch at a time; :meth:`init_constraints` begins a batch.

    Attributes:
        supports_constraints: whether the search makes use of a batch's constraints.
        needs_src_lengths: whether :meth:`set_src_lengths` is to be called before every step.
    """

    supports_constraints = False
    needs_src_lengths = False

    def __init__(self, tgt_dict: Dictionary) -> None:
        self.pad = tgt_dict.pad()
        self.unk = tgt_dict.unk()
        self.eos = tgt_dict.eos()
        self.vocab_size = len(tgt_dict)
        self.src_lengths = torch.tensor(-1)

    @abstractmethod
    def step(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
    ) -> Candidates:
        """Choose the candidates for position ``step`` of every hypothesis.

        Args:
            step: position to fill, from 0. At 0 all hypotheses of a sentence are the same.
            lprobs: [B, beam, V] log-probabilities of the next token, fp32; tokens that may not follow have -inf.
                At step 0 the beam dimension may be a broadcast of one row.
            scores: [B, beam, step] cumulative scores of the hypotheses.
            prev_output_tokens: [B * beam, step + 1] the hypotheses, start symbol first.
            original_batch_idxs: [B] the sample ids of the sentences that are left in the batch.

        Returns:
            Three [B, N] tensors, best candidate first: cumulative scores, tokens, and the hypothesis (0 to beam - 1)
            that each extends. N is at least the beam, usually twice that, since a candidate that ends leaves the beam.
        """

    def step_unnormalized(
        self,
        step: int,
        logits: Tensor,
        log_normalizer: Tensor,
        scores: Tensor,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
    ) -> Candidates:
        """As :meth:`step`, where log-probabilities are ``logits`` minus ``log_normalizer`` [B, beam].

        A search that needs few of them overrides this, so that they are never all computed.
        """
        lprobs = (logits - log_normalizer.unsqueeze(-1)).nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        return self.step(step, lprobs, scores, prev_output_tokens, original_batch_idxs)

    def shortlist(self, step: int, beam: int) -> int | None:
        """How many of a hypothesis's most probable tokens are enough to choose from; None: all are needed.

        A search that returns a number has a :meth:`step_shortlist`.
        """
        return None

    def step_shortlist(self, step: int, lprobs: Tensor, tokens: Tensor, scores: Tensor) -> Candidates:
        """As :meth:`step`, from the :meth:`shortlist` of each hypothesis.

        Args:
            lprobs: [B, beam, K] the largest log-probabilities, descending. At step 0 of one row that is repeated.
            tokens: [B, beam, K] the tokens that have them.
            scores: [B, beam, step] cumulative scores of the hypotheses.
        """
        raise NotImplementedError

    def set_src_lengths(self, src_lengths: Tensor) -> None:
        """Take note of the source lengths [B] of the sentences that are left in the batch."""
        self.src_lengths = src_lengths

    def init_constraints(self, batch_constraints: Tensor | None, beam_size: int) -> None:  # noqa: B027
        """Begin a batch. ``batch_constraints`` is the batch's packed constraints, or None."""

    def prune_sentences(self, batch_idxs: Tensor) -> None:  # noqa: B027
        """Keep the state of these sentences (positions in the current batch) and no others."""

    def update_constraints(self, active_hypos: Tensor) -> None:  # noqa: B027
        """Take note of the candidates that became the new beam: [B, beam] positions among the candidates."""


class BeamSearch(Search):
    """The candidates with the best cumulative score, twice as many as the beam is wide."""

    def step(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
    ) -> Candidates:
        return self._best(step, lprobs, scores, None)

    def step_unnormalized(
        self,
        step: int,
        logits: Tensor,
        log_normalizer: Tensor,
        scores: Tensor,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
    ) -> Candidates:
        return self._best(step, logits, scores, log_normalizer)

    def shortlist(self, step: int, beam: int) -> int | None:
        kept = "step", "step_unnormalized"
        if any(getattr(type(self), name) is not getattr(BeamSearch, name) for name in kept):
            return None
        return min(self.candidates(step, beam), self.vocab_size)

    def candidates(self, step: int, beam: int) -> int:
        """Candidates of a sentence; one less than there are tokens at most, since padding is never a candidate."""
        return min(2 * beam, self.vocab_size - 1 if step == 0 else beam * self.vocab_size - 1)

    def _best(self, step: int, lprobs: Tensor, scores: Tensor, log_normalizer: Tensor | None) -> Candidates:
        _, beam, vocab = lprobs.shape
        rows = slice(0, 1) if step == 0 else slice(0, beam)
        # The best of all hypotheses are among the best of each, which are few enough to finish their scores.
        values, tokens = largest(lprobs[:, rows], min(self.candidates(step, beam), vocab))  # B x rows x k
        if log_normalizer is not None:
            values = (values - log_normalizer[:, rows].unsqueeze(-1)).nan_to_num(nan=-math.inf, neginf=-math.inf)
        return self._merge(step, beam, values, tokens, scores)

    def step_shortlist(self, step: int, lprobs: Tensor, tokens: Tensor, scores: Tensor) -> Candidates:
        rows = slice(0, 1) if step == 0 else slice(None)
        return self._merge(step, lprobs.size(1), lprobs[:, rows], tokens[:, rows], scores)

    def _merge(self, step: int, beam: int, lprobs: Tensor, tokens: Tensor, scores: Tensor) -> Candidates:
        """The best of what the hypotheses of each sentence are best at [B, rows, k]."""
        if step > 0:
            lprobs = lprobs + scores[:, :, step - 1].unsqueeze(-1)
        best, index = lprobs.flatten(1).topk(self.candidates(step, beam))
        return best, tokens.flatten(1).gather(1, index), index // tokens.size(-1)


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As ``x.topk(k)`` along the last dimension, in less time for long rows on a CPU.

    The k largest lie in the k groups with the largest maxima; a vector unit finds maxima of interleaved groups quickly.
    """
    size = GROUP
    groups = x.size(-1) // size
    if x.device.type != "cpu" or groups < 8 * k:
        return x.topk(k)
    body = x[..., : groups * size].unflatten(-1, (size, groups))
    chosen = body.amax(dim=-2).topk(k, sorted=False).indices  # ... x k
    index = (chosen.unsqueeze(-1) + torch.arange(0, groups * size, groups)).flatten(-2)
    rest = torch.arange(groups * size, x.size(-1)).expand(*x.shape[:-1], -1)
    index = torch.cat([index, rest], dim=-1)
    values, position = x.gather(-1, index).topk(k)
    return values, index.gather(-1, position)
