"""The transformer for sequence to sequence (Vaswani et al., 2017)."""

from pyseq.models.transformer.transformer_decoder import TransformerDecoder
from pyseq.models.transformer.transformer_encoder import TransformerEncoder
from pyseq.models.transformer.transformer_model import TransformerModel
from pyseq.modules import Embedding
from pyseq.modules.transformer_config import (
    DEFAULT_MAX_SOURCE_POSITIONS,
    DEFAULT_MAX_TARGET_POSITIONS,
    TransformerConfig,
)

# isort: split
from pyseq.models.transformer.architectures import (
    base_architecture,
    transformer_iwslt_de_en,
    transformer_tiny,
    transformer_vaswani_wmt_en_de_big,
    transformer_vaswani_wmt_en_fr_big,
    transformer_wmt_en_de,
    transformer_wmt_en_de_big,
    transformer_wmt_en_de_big_t2t,
)

__all__ = [
    "DEFAULT_MAX_SOURCE_POSITIONS",
    "DEFAULT_MAX_TARGET_POSITIONS",
    "Embedding",
    "TransformerConfig",
    "TransformerDecoder",
    "TransformerEncoder",
    "TransformerModel",
    "base_architecture",
    "transformer_iwslt_de_en",
    "transformer_tiny",
    "transformer_vaswani_wmt_en_de_big",
    "transformer_vaswani_wmt_en_fr_big",
    "transformer_wmt_en_de",
    "transformer_wmt_en_de_big",
    "transformer_wmt_en_de_big_t2t",
]
