"""Generation that also says which source words the output comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pyseq.data.dictionary import Dictionary
from pyseq.errors import ConfigError
from pyseq.generation.alignment import hard_alignment, soft_alignment
from pyseq.generation.beams import Hypothesis
from pyseq.generation.ensemble import EnsembleModel
from pyseq.generation.generator import SequenceGenerator


class SequenceGeneratorWithAlignment(SequenceGenerator):
    """A :class:`SequenceGenerator` whose hypotheses have an ``alignment``.

    Args:
        models, tgt_dict, kwargs: as for :class:`SequenceGenerator`.
        left_pad_target: accepted for its callers; hypotheses have no padding.
        print_alignment: "hard" for pairs of positions, "soft" for the attention weights.
    """

    def __init__(
        self,
        models: EnsembleModel | Sequence[nn.Module],
        tgt_dict: Dictionary,
        left_pad_target: bool = False,
        print_alignment: str = "hard",
        **kwargs: Any,
    ) -> None:
        super().__init__(models, tgt_dict, **{**kwargs, "need_attention": True})
        if str(print_alignment) not in ("hard", "soft"):
            raise ConfigError(f"--print-alignment is hard or soft, not {print_alignment}")
        self.hard = str(print_alignment) == "hard"

    @torch.no_grad()
    def generate(self, models: Any, sample: dict[str, Any], **kwargs: Any) -> list[list[Hypothesis]]:
        """As :meth:`SequenceGenerator.generate`.

        ``alignment`` is a list of pairs (source position, target position) or, if soft, a list of weights (as text) for
        each target token. Raises ConfigError if the models return no attention.
        """
        hypotheses = super().generate(models, sample, **kwargs)
        sources = sample["net_input"]["src_tokens"].cpu()
        for source, found in zip(sources, hypotheses):
            for hypothesis in found:
                attn, tokens = hypothesis["attention"].t().cpu(), hypothesis["tokens"].cpu()
                if self.hard:
                    hypothesis["alignment"] = hard_alignment(attn, source, tokens, self.pad, self.eos)
                else:
                    hypothesis["alignment"] = soft_alignment(attn, source, tokens, self.pad)
        return hypotheses
