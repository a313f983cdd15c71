"""The base of decoders that generate a token at a time, keeping what they computed for the tokens before."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyseq.models.decoder import Decoder
from pyseq.modules.incremental_state import IncrementalState


class IncrementalDecoder(Decoder, IncrementalState):
    """A decoder whose ``forward`` takes an ``incremental_state``.

    With one, ``prev_output_tokens`` still holds the whole prefix, of which only the last token is new, and the output
    is that of the last position alone. The state is a dict that begins empty and that modules fill; whatever they keep
    must follow :meth:`reorder_incremental_state` when the search reorders its hypotheses.
    """

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """Logits [B x T x V], T = 1 with an incremental state, and anything else (a dict)."""
        raise NotImplementedError

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """Features [B x T x C], T = 1 with an incremental state, and anything else (a dict)."""
        raise NotImplementedError

    def new_incremental_state(self) -> dict[str, Any]:
        """The state that generation begins a batch with: empty, or with what makes this decoder's steps faster."""
        return {}

    def reads_encoder_out(self, incremental_state: dict[str, Any]) -> bool:
        """Whether the steps to come need the encoder's output, which then has a row for each row of the state."""
        return True

    def reorder_incremental_state(self, incremental_state: dict[str, Any], new_order: Tensor) -> dict[str, Any] | None:
        """Keep the rows ``new_order`` [B'] of what this module itself stored, in that order.

        Returns:
            The state, if it is another object than before.
        """
        return None

    def reorder_incremental_state_scripting(self, incremental_state: dict[str, Any], new_order: Tensor) -> None:
        """Reorder what this module and all below it stored. Generation calls this."""
        for module in self.modules():
            reorder = getattr(module, "reorder_incremental_state", None)
            changed = None if reorder is None else reorder(incremental_state, new_order)
            if changed is not None and changed is not incremental_state:
                incremental_state.update(changed)

    def set_beam_size(self, beam_size: int) -> None:
        """Tell every module below how many hypotheses of one sentence come in a row."""
        if getattr(self, "_beam_size", -1) == beam_size:
            return
        for module in self.modules():
            set_beam_size = getattr(module, "set_beam_size", None)
            if module is not self and set_beam_size is not None:
                set_beam_size(beam_size)
        self._beam_size = beam_size
