"""Layers that models are made of."""

from pyseq.modules.checkpoint_activations import checkpoint_activations
from pyseq.modules.dropout import Dropout
from pyseq.modules.embedding import Embedding, load_embedding
from pyseq.modules.incremental_state import IncrementalState, with_incremental_state
from pyseq.modules.layer_drop import LayerDropModuleList
from pyseq.modules.layer_norm import LayerNorm
from pyseq.modules.linear import xavier_linear
from pyseq.modules.multihead_attention import MultiheadAttention
from pyseq.modules.positional_embedding import (
    LearnedPositionalEmbedding,
    PositionalEmbedding,
    SinusoidalPositionalEmbedding,
)
from pyseq.modules.transformer_layer import TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [
    "Dropout",
    "Embedding",
    "IncrementalState",
    "LayerDropModuleList",
    "LayerNorm",
    "LearnedPositionalEmbedding",
    "MultiheadAttention",
    "PositionalEmbedding",
    "SinusoidalPositionalEmbedding",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "checkpoint_activations",
    "load_embedding",
    "with_incremental_state",
    "xavier_linear",
]
