"""One batch on its way through an ensemble's decoders."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor

from pyseq.generation.ensemble import EnsembleModel, IncrementalState


class Decoding:
    """Encoder outputs and the decoders' incremental states of one batch, rows reordered together.

    Decoding begins with one row for each sentence. The first :meth:`reorder` makes several of each; from then on all rows of
    a sentence are in a row, and decoders that understand ``set_beam_size`` keep what they know of the source once.

    Args:
        models: the ensemble.
        net_input: the batch.
        lm_models: a language model to fuse in, or None.
    """

    def __init__(self, models: EnsembleModel, net_input: dict[str, Tensor], lm_models: EnsembleModel | None) -> None:
        self.models, self.lm_models = models, lm_models
        self.sources: list[Any] = models.forward_encoder(net_input)
        self.states = models.new_incremental_states()
        self.lm_states = None if lm_models is None else lm_models.new_incremental_states()
        self.at_start = True

    def __enter__(self) -> Decoding:
        self.models.set_beam_size(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.models.set_beam_size(1)

    def step(
        self, tokens: Tensor, temperature: float, lm_weight: float, need_attn: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [R, V] of the token after ``tokens`` [R, L], which the caller may write to, and attention [R, S]."""
        lprobs, attn = self.models.forward_decoder(tokens, self.sources, self.states, temperature, need_attn)
        if self.lm_models is not None:
            lm_lprobs, _ = self.lm_models.forward_decoder(tokens, [None], self.lm_states)
            lprobs = lprobs.add_(lm_lprobs, alpha=lm_weight)
        return lprobs, attn

    def reorder(self, rows: Tensor, beam: int, sentences_left: bool) -> None:
        """Make row i what row ``rows[i]`` was.

        Args:
            rows: [R'] rows of the step before; the ``beam`` rows of a sentence in a row.
            beam: rows of a sentence from now on.
            sentences_left: whether sentences have left the batch. If none has, a row's source stays what it was.
        """
        if self.at_start:
            self.models.set_beam_size(beam)
        if self.at_start or sentences_left:
            self.sources = self.models.reorder_encoder_out(self.sources, rows)
        self.at_start = False
        self.models.reorder_incremental_state(self.states, rows)
        if self.lm_models is not None:
            self.lm_models.reorder_incremental_state(self.lm_states, rows)
