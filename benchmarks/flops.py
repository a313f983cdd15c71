"""Operations that a model cannot do without, from real tokens alone: padding is no work.

Each weight of a layer's matrices and of the output projection takes part in 2 operations a token of a forward pass;
attention in 4 C for each pair of a query and a key it may see, a layer. An update takes three times as many (Kaplan et
al., 2020, section 2.1). Embeddings are looked up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

MULTIPLY_ADD = 2
FORWARD_AND_BACKWARD = 3  # the gradients of both factors of a product are products of its size


class Counter:
    """Counts for one model; ``of`` takes the lengths of a batch."""

    def __init__(self, model: nn.Module) -> None:
        self.encoder = self.decoder = self.cross = 0
        for name, parameter in model.named_parameters():
            if parameter.dim() != 2 or ".layers." not in name:
                continue
            if name.startswith("encoder."):
                self.encoder += parameter.numel()
            elif ".encoder_attn.k_proj" in name or ".encoder_attn.v_proj" in name:
                self.cross += parameter.numel()
            else:
                self.decoder += parameter.numel()
        decoder: Any = model.decoder
        self.decoder += decoder.embed_tokens.weight.numel()  # as large as the projection, tied or not
        self.decoder_width = decoder.embed_dim * len(decoder.layers)
        encoder: Any = getattr(model, "encoder", None)
        self.encoder_width = 0 if encoder is None else encoder.embed_tokens.weight.size(1) * len(encoder.layers)

    def of(self, sources: Any, targets: Any) -> float:
        """Of an update. Args: lengths of the sentences on both sides, [B]; of a language model, sources are None."""
        return FORWARD_AND_BACKWARD * self.forward(sources, targets)

    def forward(self, sources: Any, targets: Any, beam: int = 1) -> float:
        """Of a forward pass, or of the steps of a search with a key/value cache for ``beam`` hypotheses a sentence."""
        t = np.asarray(targets, dtype=np.float64)
        total = beam * (self.decoder * t.sum() + self.decoder_width * (t * (t + 1)).sum())  # half of the pairs: causal
        if sources is not None:
            s = np.asarray(sources, dtype=np.float64)
            total += (self.encoder + self.cross) * s.sum()
            total += 2 * (self.encoder_width * (s * s).sum() + beam * self.decoder_width * (s * t).sum())
        return float(MULTIPLY_ADD * total)


def lengths_of(sample: dict[str, Any], padding: int, pairs: bool) -> tuple[Any, Any]:
    """Lengths on both sides of a batch on the host, (sources or None, targets)."""
    targets = sample["target"].ne(padding).sum(1).numpy()
    return (sample["net_input"]["src_lengths"].numpy() if pairs else None), targets
