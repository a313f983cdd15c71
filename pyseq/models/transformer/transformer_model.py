"""The transformer model: an encoder and a decoder from the options and the task's dictionaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pyseq.config.flags import add_group_arguments
from pyseq.errors import ConfigError
from pyseq.models import register_model
from pyseq.models.linear_output import LinearOutput
from pyseq.models.model import EncoderDecoderModel
from pyseq.models.transformer.packed import can_pack, packs, unpacked
from pyseq.models.transformer.transformer_decoder import TransformerDecoder
from pyseq.models.transformer.transformer_encoder import TransformerEncoder
from pyseq.modules.embedding import Embedding, load_embedding
from pyseq.modules.packing import Packing
from pyseq.modules.transformer_config import TransformerConfig, layers_to_keep, refuse_unavailable

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyseq.data.dictionary import Dictionary
    from pyseq.models.decoder import Decoder
    from pyseq.models.encoder import Encoder


@register_model("transformer")
class TransformerModel(EncoderDecoderModel):
    """The transformer of "Attention Is All You Need" (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762).

    A subclass overrides ``build_embedding``, ``build_encoder``, ``build_decoder`` or ``add_args``.
    """

    def __init__(self, args: Any, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__(encoder, decoder)
        self.args = args
        self.cfg = TransformerConfig.from_namespace(args)
        self.supports_align_args = True

    @classmethod
    def add_args(cls, parser: Any) -> None:
        add_group_arguments(parser, TransformerConfig, suppress_defaults=True)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> Self:
        """Make the model. ``args`` is the namespace of all options; what follows from others is set in it.

        Raises:
            ConfigError: options that do not fit together, or that are not available.
        """
        refuse_unavailable(args)
        for side in ("encoder", "decoder"):
            kept = layers_to_keep(getattr(args, f"{side}_layers_to_keep", None))
            if kept is not None:
                setattr(args, f"{side}_layers", len(kept))
        if getattr(args, "share_all_embeddings", False):
            args.share_decoder_input_output_embed = True
        cfg = TransformerConfig.from_namespace(args)
        source, target = task.source_dictionary, task.target_dictionary
        encoder_embed_tokens = cls.build_embedding(cfg, source, cfg.encoder_embed_dim, cfg.encoder_embed_path)
        if cfg.share_all_embeddings:
            _check_shareable(cfg, source, target)
            decoder_embed_tokens = encoder_embed_tokens
        else:
            decoder_embed_tokens = cls.build_embedding(cfg, target, cfg.decoder_embed_dim, cfg.decoder_embed_path)
        encoder = cls.build_encoder(cfg, source, encoder_embed_tokens)
        decoder = cls.build_decoder(cfg, target, decoder_embed_tokens)
        return cls(cfg, encoder, decoder)

    @classmethod
    def build_embedding(
        cls, args: Any, dictionary: Dictionary, embed_dim: int, path: str | None = None
    ) -> nn.Embedding:
        """The token embeddings; the symbols that the text file ``path`` has get their vectors from there."""
        table = Embedding(len(dictionary), embed_dim, dictionary.pad())
        if path:
            load_embedding(path, dictionary, table)
        return table

    @classmethod
    def build_encoder(cls, args: Any, src_dict: Dictionary, embed_tokens: nn.Embedding) -> Encoder:
        return TransformerEncoder(args, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, args: Any, tgt_dict: Dictionary, embed_tokens: nn.Embedding) -> Decoder:
        return TransformerDecoder(args, tgt_dict, embed_tokens, no_encoder_attn=args.no_cross_attention)

    def forward(  # type: ignore[override]
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None,
        prev_output_tokens: Tensor,
        return_all_hiddens: bool = True,
        features_only: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B x T x V] and the decoder's dict; see :meth:`TransformerDecoder.forward`.

        Args:
            src_tokens: [B x S].
            src_lengths: [B].
            prev_output_tokens: [B x T], the target shifted right by one.
            return_all_hiddens: have the encoder return the states between its layers.
            features_only: return features [B x T x C] instead of logits.
            alignment_layer: return the attention of this decoder layer to the encoder.
            alignment_heads: return the mean over this many of its heads.
        """
        asked = alignment_layer is not None or alignment_heads is not None
        if not asked and packs(self, prev_output_tokens):
            source, target = (Packing(tokens, self.decoder.padding_idx) for tokens in (src_tokens, prev_output_tokens))
            x, states = self.decoder.forward_packed(target, self.encoder.forward_packed(source), source)
            return unpacked(self.decoder, target, x, states, features_only)
        encoder_out = self.encoder(src_tokens, src_lengths=src_lengths, return_all_hiddens=return_all_hiddens)
        return self.decoder(
            prev_output_tokens,
            encoder_out=encoder_out,
            features_only=features_only,
            alignment_layer=alignment_layer,
            alignment_heads=alignment_heads,
            src_lengths=src_lengths,
            return_all_hiddens=return_all_hiddens,
        )

    def can_pack(self) -> bool:
        return can_pack(self, self.encoder, self.decoder)

    def linear_output(self) -> LinearOutput | None:
        return self._linear_output_of_decoder(TransformerModel)


def _check_shareable(cfg: TransformerConfig, source: Dictionary, target: Dictionary) -> None:
    """Raise ConfigError unless one embedding table can serve source and target."""
    if source != target:
        raise ConfigError(
            "--share-all-embeddings needs a joined dictionary: preprocess with --joined-dictionary, or leave it out"
        )
    if cfg.encoder_embed_dim != cfg.decoder_embed_dim:
        raise ConfigError(
            f"--share-all-embeddings needs --encoder-embed-dim ({cfg.encoder_embed_dim}) and --decoder-embed-dim "
            f"({cfg.decoder_embed_dim}) to be equal"
        )
    if cfg.decoder_embed_path and cfg.decoder_embed_path != cfg.encoder_embed_path:
        raise ConfigError("--share-all-embeddings reads --encoder-embed-path alone: leave --decoder-embed-path out")
