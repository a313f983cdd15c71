"""Generation by faster ways, beside the same by the model's layers."""

from __future__ import annotations

from typing import Any

import torch

import pyseq.ops as ops
from pyseq.generation import SequenceGenerator

VOCAB = 90


def is_fast(model: Any) -> bool:
    """Whether a decoder has a faster way than its layers."""
    with torch.no_grad():
        return bool(model.decoder.new_incremental_state())


def assert_as_by_layers(generator: SequenceGenerator, sample: dict[str, Any], **kwargs: Any) -> None:
    """The hypotheses are those that the layers find, with all logits."""
    found = generator.generate(None, sample, **kwargs)
    with ops.backend("torch"):
        expected = generator.generate(None, sample, **kwargs)
    for hypotheses, others in zip(found, expected, strict=True):
        assert [h["tokens"].tolist() for h in hypotheses] == [h["tokens"].tolist() for h in others]
        for one, other in zip(hypotheses, others):
            torch.testing.assert_close(one["positional_scores"], other["positional_scores"], rtol=0, atol=1e-4)
            torch.testing.assert_close(one["score"], other["score"], rtol=0, atol=1e-4)
