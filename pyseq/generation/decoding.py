"""One batch on its way through an ensemble's decoders."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor

from pyseq.generation.ensemble import EnsembleModel, NextToken, Shortlist
from pyseq.ops.packed_linear import PackedLinear


class Decoding:
    """Encoder outputs and the decoders' incremental states of one batch, rows reordered together.

    Decoding begins with one row for each sentence. The first :meth:`reorder` makes several of each; from then on the
    rows of a sentence stay next to each other, and decoders with ``set_beam_size`` keep one copy of its source.

    Args:
        models: the ensemble.
        net_input: the batch.
        lm: a language model whose log-probabilities are added, or None.
        lm_weight: its weight.
    """

    def __init__(
        self,
        models: EnsembleModel,
        net_input: dict[str, Tensor],
        lm: EnsembleModel | None = None,
        lm_weight: float = 1.0,
    ) -> None:
        self.models, self.lm, self.lm_weight = models, lm, lm_weight
        self.sources: list[Any] = models.forward_encoder(net_input)
        self.states = models.new_incremental_states()
        self.lm_states = None if lm is None else lm.new_incremental_states()
        self.at_start = True

    def __enter__(self) -> Decoding:
        self.models.set_beam_size(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.models.set_beam_size(1)

    def step(self, tokens: Tensor, temperature: float = 1.0) -> NextToken:
        """What follows ``tokens`` [R, L]. The caller may write to the result."""
        token = self.models.next_token(tokens, self.sources, self.states, temperature, normalize=self.lm is not None)
        if self.lm is None:
            return token
        lm_lprobs, _ = self.lm.forward_decoder(tokens, [None], self.lm_states)
        return token._replace(scores=token.scores + self.lm_weight * lm_lprobs)

    def shortlist(
        self, tokens: Tensor, weights: PackedLinear, count: int, adjustments: dict[int, float], filler: int
    ) -> Shortlist:
        """The most probable tokens after ``tokens`` [R, L]; see :meth:`EnsembleModel.shortlist`."""
        assert self.states is not None and self.lm is None
        return self.models.shortlist(tokens, self.sources, self.states, weights, count, adjustments, filler)

    def reorder(self, rows: Tensor, beam: int, sentences_left: bool) -> None:
        """Make row i what row ``rows[i]`` was.

        Args:
            rows: [R'] rows of the step before, the ``beam`` rows of a sentence next to each other.
            beam: rows of a sentence from now on.
            sentences_left: whether sentences have left the batch. If none has, a row's source stays what it was.
        """
        if self.at_start:
            self.models.set_beam_size(beam)
        if self.at_start or sentences_left:
            self.sources = self.models.reorder_encoder_out(self.sources, rows, self.states)
        self.at_start = False
        self.models.reorder_incremental_state(self.states, rows)
        if self.lm is not None:
            self.lm.reorder_incremental_state(self.lm_states, rows)
