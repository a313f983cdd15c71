"""The sizes of published transformers, each a row of values over its parent.

A row is also a function that fills in a namespace, which a plug-in's architecture may call for what it does not set.
"""

from pyseq.models.row import Row, defaults
from pyseq.modules.transformer_config import TransformerConfig

base_architecture = Row("transformer", defaults(TransformerConfig), name="transformer")

transformer_tiny = base_architecture.row(
    "transformer_tiny",
    encoder_embed_dim=64,
    encoder_ffn_embed_dim=64,
    encoder_layers=2,
    encoder_attention_heads=2,
    decoder_layers=2,
    decoder_attention_heads=2,
)

transformer_iwslt_de_en = base_architecture.row(
    "transformer_iwslt_de_en",
    encoder_embed_dim=512,
    encoder_ffn_embed_dim=1024,
    encoder_layers=6,
    encoder_attention_heads=4,
    decoder_embed_dim=512,
    decoder_ffn_embed_dim=1024,
    decoder_layers=6,
    decoder_attention_heads=4,
)

transformer_wmt_en_de = base_architecture.row("transformer_wmt_en_de")

# Vaswani et al., 2017, table 3, "big"
transformer_vaswani_wmt_en_de_big = base_architecture.row(
    "transformer_vaswani_wmt_en_de_big",
    encoder_embed_dim=1024,
    encoder_ffn_embed_dim=4096,
    encoder_attention_heads=16,
    decoder_embed_dim=1024,
    decoder_ffn_embed_dim=4096,
    decoder_attention_heads=16,
    dropout=0.3,
)

transformer_vaswani_wmt_en_fr_big = transformer_vaswani_wmt_en_de_big.row(
    "transformer_vaswani_wmt_en_fr_big", dropout=0.1
)

transformer_wmt_en_de_big = transformer_vaswani_wmt_en_de_big.row("transformer_wmt_en_de_big", attention_dropout=0.1)

# the defaults of tensor2tensor
transformer_wmt_en_de_big_t2t = transformer_vaswani_wmt_en_de_big.row(
    "transformer_wmt_en_de_big_t2t",
    encoder_normalize_before=True,
    decoder_normalize_before=True,
    attention_dropout=0.1,
    activation_dropout=0.1,
)
