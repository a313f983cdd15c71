"""The base of encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from pyseq.data.dictionary import Dictionary


class Encoder(nn.Module):
    """Turns source tokens into what a decoder attends to."""

    def __init__(self, dictionary: Dictionary | None) -> None:
        super().__init__()
        self.dictionary = dictionary

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **kwargs: Any) -> Any:
        """Encode.

        Args:
            src_tokens: [B x S].
            src_lengths: [B].

        Returns:
            Anything that the decoder understands.
        """
        raise NotImplementedError

    def forward_torchscript(self, net_input: dict[str, Any]) -> Any:
        """Encode a batch's ``net_input``, of which the decoder's part is left out. Generation calls this."""
        return self(**{name: value for name, value in net_input.items() if name != "prev_output_tokens"})

    def reorder_encoder_out(self, encoder_out: Any, new_order: Tensor) -> Any:
        """The rows ``new_order`` [B'] of the encoder's output, in that order."""
        raise NotImplementedError

    def max_positions(self) -> Any:
        """The longest input, in tokens."""
        return 1e6

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Bring an old checkpoint's entries below ``name`` up to date, in place."""
