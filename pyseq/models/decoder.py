"""The base of decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pyseq import utils
from pyseq.models.linear_output import LinearOutput

if TYPE_CHECKING:
    from pyseq.data.dictionary import Dictionary


class Decoder(nn.Module):
    """Predicts each next token from the ones before it and, usually, an encoder's output."""

    adaptive_softmax: nn.Module | None

    def __init__(self, dictionary: Dictionary | None) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.adaptive_softmax = None

    def forward(self, prev_output_tokens: Tensor, encoder_out: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        """Decode.

        Args:
            prev_output_tokens: [B x T], the target shifted right by one.
            encoder_out: what the encoder returned.

        Returns:
            Logits [B x T x V], and anything else (a dict).
        """
        x, extra = self.extract_features(prev_output_tokens, encoder_out=encoder_out, **kwargs)
        return self.output_layer(x), extra

    def extract_features(
        self, prev_output_tokens: Tensor, encoder_out: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """What :meth:`output_layer` turns into logits [B x T x C], and anything else."""
        raise NotImplementedError

    def output_layer(self, features: Tensor) -> Tensor:
        """Features [B x T x C] to logits [B x T x V]."""
        raise NotImplementedError

    def linear_output(self) -> LinearOutput | None:
        """Weight and bias of the output layer, if ``forward`` can leave it out: see ``BaseModel.linear_output``."""
        return None

    def get_normalized_probs(
        self, net_output: tuple[Tensor, Any], log_probs: bool, sample: dict[str, Any] | None = None
    ) -> Tensor:
        """Probabilities, or their logarithms, of the logits ``net_output[0]`` [... x V], in fp32."""
        logits = net_output[0]
        return utils.log_softmax(logits, dim=-1) if log_probs else utils.softmax(logits, dim=-1)

    def max_positions(self) -> Any:
        """The longest target, in tokens."""
        return 1e6

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Bring an old checkpoint's entries below ``name`` up to date, in place."""
