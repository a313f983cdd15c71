"""From a trained model to text and scores: searches, the generator, the scorer of given targets."""

from __future__ import annotations

from pyseq.generation.ensemble import EnsembleModel
from pyseq.generation.generator import SequenceGenerator
from pyseq.generation.generator_with_alignment import SequenceGeneratorWithAlignment
from pyseq.generation.search import BeamSearch, Search
from pyseq.generation.sequence_scorer import SequenceScorer

__all__ = [
    "BeamSearch",
    "EnsembleModel",
    "Search",
    "SequenceGenerator",
    "SequenceGeneratorWithAlignment",
    "SequenceScorer",
]
