"""The transformer language model: a decoder without an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pyseq.config import II
from pyseq.config.groups import opt
from pyseq.models import register_model
from pyseq.models.linear_output import LinearOutput
from pyseq.models.model import LanguageModel
from pyseq.models.row import Row, defaults
from pyseq.models.transformer import DEFAULT_MAX_TARGET_POSITIONS, TransformerDecoder
from pyseq.models.transformer.packed import can_pack, packs, unpacked
from pyseq.modules import Embedding
from pyseq.modules.packing import Packing
from pyseq.modules.transformer_config import DecoderConfig, known, layers_to_keep, refuse_unavailable

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyseq.data.dictionary import Dictionary


@dataclass
class TransformerLanguageModelConfig(DecoderConfig):
    """Options of the language model. Input and output dimension have defaults of their own, as the flags always had."""

    decoder_input_dim: int = opt(512, "decoder: size of input embeddings")
    decoder_output_dim: int = opt(512, "decoder: size of features")
    add_bos_token: bool = II("task.add_bos_token")
    tokens_per_sample: int = II("task.tokens_per_sample")
    max_target_positions: int | None = II("task.max_target_positions")


@register_model("transformer_lm", dataclass=TransformerLanguageModelConfig)
class TransformerLanguageModel(LanguageModel):
    """A transformer decoder over its own past (Radford et al., 2018)."""

    @classmethod
    def build_model(cls, args: Any, task: Any) -> Self:
        """Make the model. What follows from other options is set in ``args``.

        Raises:
            ConfigError: options that are not available.
        """
        refuse_unavailable(args)
        kept = layers_to_keep(args.decoder_layers_to_keep)
        if kept is not None:
            args.decoder_layers = len(kept)
        if not known(args.max_target_positions):
            args.max_target_positions = known(args.tokens_per_sample) or DEFAULT_MAX_TARGET_POSITIONS
        embed_tokens = cls.build_embedding(args, task.source_dictionary, args.decoder_input_dim)
        return cls(TransformerDecoder(args, task.target_dictionary, embed_tokens, no_encoder_attn=True))

    @classmethod
    def build_embedding(
        cls, args: Any, dictionary: Dictionary, embed_dim: int, path: str | None = None
    ) -> nn.Embedding:
        return Embedding(len(dictionary), embed_dim, dictionary.pad())

    def forward(self, src_tokens: Tensor, features_only: bool = False, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B x T x V] and the decoder's dict; see :meth:`TransformerDecoder.forward`.

        Args:
            src_tokens: [B x T], the target shifted right by one.
            features_only: return features [B x T x C] instead of logits.
        """
        plain = set(kwargs) <= {"src_lengths"}
        if plain and packs(self, src_tokens):
            target = Packing(src_tokens, self.decoder.padding_idx)
            x, states = self.decoder.forward_packed(target)
            return unpacked(self.decoder, target, x, states, features_only)
        return self.decoder(src_tokens, features_only=features_only, **kwargs)

    def can_pack(self) -> bool:
        return can_pack(self, self.decoder)

    def linear_output(self) -> LinearOutput | None:
        return self._linear_output_of_decoder(TransformerLanguageModel)


# Every architecture of its own name is pre-norm; `--arch transformer_lm` itself, which sets nothing, is post-norm.
base_lm_architecture = Row(
    "transformer_lm",
    defaults(TransformerLanguageModelConfig)
    | {"decoder_input_dim": II("model.decoder_embed_dim"), "decoder_output_dim": II("model.decoder_embed_dim")},
    always={"decoder_normalize_before": True},
)

# Radford et al., 2018 and 2019
base_gpt_architecture = base_lm_architecture.row(dropout=0.1, attention_dropout=0.1, activation_fn="gelu")

# Brown et al., 2020, table 2.1
base_gpt3_architecture = base_lm_architecture.row(
    decoder_ffn_embed_dim=lambda args: 4 * args.decoder_embed_dim,
    decoder_learned_pos=True,
    dropout=0.0,
    attention_dropout=0.0,
    activation_fn="gelu",
    share_decoder_input_output_embed=True,
)


def _size(dim: int, layers: int, heads: int, ffn: int | None = None) -> dict[str, int]:
    size = {"decoder_embed_dim": dim, "decoder_layers": layers, "decoder_attention_heads": heads}
    return size if ffn is None else size | {"decoder_ffn_embed_dim": ffn}


lm, gpt, gpt3 = base_lm_architecture.row, base_gpt_architecture.row, base_gpt3_architecture.row
transformer_lm_big = lm("transformer_lm_big", **_size(1024, layers=12, heads=16, ffn=4096))

transformer_lm_gpt = gpt("transformer_lm_gpt", **_size(768, layers=12, heads=12, ffn=3072))
transformer_lm_gpt2_tiny = gpt("transformer_lm_gpt2_tiny", **_size(64, layers=2, heads=1, ffn=64))
transformer_lm_gpt2_small = gpt("transformer_lm_gpt2_small", **_size(1024, layers=24, heads=16, ffn=4096))
transformer_lm_gpt2_medium = gpt("transformer_lm_gpt2_medium", **_size(1280, layers=36, heads=20, ffn=5120))
transformer_lm_gpt2_big = gpt("transformer_lm_gpt2_big", **_size(1600, layers=48, heads=25, ffn=6400))
transformer_lm_gpt2_big_wide = gpt("transformer_lm_gpt2_big_wide", **_size(2048, layers=24, heads=32, ffn=8192))
transformer_lm_gpt2_bigger = gpt("transformer_lm_gpt2_bigger", **_size(2048, layers=48, heads=32, ffn=8192))

transformer_lm_gpt3_small = gpt3("transformer_lm_gpt3_small", **_size(768, layers=12, heads=12))
transformer_lm_gpt3_medium = gpt3("transformer_lm_gpt3_medium", **_size(1024, layers=24, heads=16))
transformer_lm_gpt3_large = gpt3("transformer_lm_gpt3_large", **_size(1536, layers=24, heads=16))
transformer_lm_gpt3_xl = gpt3("transformer_lm_gpt3_xl", **_size(2048, layers=24, heads=32))
transformer_lm_gpt3_2_7 = gpt3("transformer_lm_gpt3_2_7", **_size(2560, layers=32, heads=32))
transformer_lm_gpt3_6_7 = gpt3("transformer_lm_gpt3_6_7", **_size(4096, layers=32, heads=32))
transformer_lm_gpt3_13 = gpt3("transformer_lm_gpt3_13", **_size(5120, layers=40, heads=40))
transformer_lm_gpt3_175 = gpt3("transformer_lm_gpt3_175", **_size(12288, layers=96, heads=96))
