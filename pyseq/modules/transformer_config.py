"""The options of transformers: what the layers, the encoder and the decoder read.

Names are flat (``encoder_embed_dim``). A default that refers to the ``model`` group is the value of another option.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pyseq.config import II, ConfigGroup
from pyseq.config.group import reference_of
from pyseq.config.groups import opt
from pyseq.errors import ConfigError
from pyseq.utils import get_available_activation_fns

DEFAULT_MAX_SOURCE_POSITIONS = 1024
DEFAULT_MAX_TARGET_POSITIONS = 1024

# Options of fairseq's transformers that are not available, which a command line, a checkpoint or a plug-in may ask for.
_UNAVAILABLE = {
    "adaptive_input": "adaptive input embeddings are not available yet",
    "adaptive_softmax_cutoff": "the adaptive softmax is not available yet",
    "tie_adaptive_weights": "adaptive embeddings and softmax are not available yet",
    "tie_adaptive_proj": "adaptive embeddings and softmax are not available yet",
    "character_embeddings": "character embeddings are not available; use sub-words",
    "char_inputs": "character inputs are not available; use sub-words",
    "base_layers": "BASE layers are not available",
    "quant_noise_pq": "quantisation noise is not available",
    "quant_noise_scalar": "quantisation noise is not available",
    "offload_activations": "offloading is not available; use --checkpoint-activations, which recomputes activations",
    "merge_src_tgt_embed": "use a joined dictionary and --share-all-embeddings",
}


@dataclass
class DecoderConfig(ConfigGroup):
    """What a decoder reads, with or without an encoder."""

    activation_fn: str = opt(
        "relu", "activation between the two layers of a block", choices=get_available_activation_fns()
    )
    dropout: float = opt(0.1, "dropout probability")
    attention_dropout: float = opt(0.0, "dropout probability of attention weights")
    activation_dropout: float = opt(
        0.0, "dropout probability after the activation in a block", argparse_alias="--relu-dropout"
    )
    decoder_embed_dim: int = opt(512, "decoder: size of embeddings and layers")
    decoder_ffn_embed_dim: int = opt(2048, "decoder: inner size of a feed-forward block")
    decoder_layers: int = opt(6, "decoder: number of layers")
    decoder_attention_heads: int = opt(8, "decoder: number of attention heads")
    decoder_normalize_before: bool = opt(False, "decoder: layer norm before each block instead of after it")
    decoder_learned_pos: bool = opt(False, "decoder: learn position embeddings instead of using sinusoids")
    decoder_input_dim: int = opt(
        II("model.decoder_embed_dim"), "decoder: size of input embeddings, if not of the layers"
    )
    decoder_output_dim: int = opt(II("model.decoder_embed_dim"), "decoder: size of features, if not of the layers")
    decoder_layerdrop: float = opt(0.0, "decoder: probability of leaving out a layer in training")
    decoder_layers_to_keep: str | None = opt(None, "decoder: layers to keep of a checkpoint with more, as in 0,2,4")
    no_decoder_final_norm: bool = opt(
        False, "decoder: no layer norm after the last layer, with --decoder-normalize-before"
    )
    share_decoder_input_output_embed: bool = opt(False, "use the decoder's embeddings as output projection")
    no_token_positional_embeddings: bool = opt(False, "no position embeddings")
    layernorm_embedding: bool = opt(False, "layer norm after the embeddings")
    no_scale_embedding: bool = opt(False, "do not multiply embeddings by the square root of their size")
    checkpoint_activations: bool = opt(False, "recompute each layer in the backward pass: less memory, more time")
    scale_fc: bool = opt(False, "decoder: layer norm inside feed-forward blocks (NormFormer)")
    scale_attn: bool = opt(False, "decoder: layer norm after self-attention (NormFormer)")
    scale_heads: bool = opt(False, "decoder: learned scale of each self-attention head (NormFormer)")
    scale_resids: bool = opt(
        False, "decoder: learned scale of residual connections around feed-forward blocks (NormFormer)"
    )


@dataclass
class TransformerConfig(DecoderConfig):
    """Encoder and decoder."""

    encoder_embed_path: str | None = opt(None, "encoder: text file with pretrained embeddings")
    encoder_embed_dim: int = opt(512, "encoder: size of embeddings and layers")
    encoder_ffn_embed_dim: int = opt(2048, "encoder: inner size of a feed-forward block")
    encoder_layers: int = opt(6, "encoder: number of layers")
    encoder_attention_heads: int = opt(8, "encoder: number of attention heads")
    encoder_normalize_before: bool = opt(False, "encoder: layer norm before each block instead of after it")
    encoder_learned_pos: bool = opt(False, "encoder: learn position embeddings instead of using sinusoids")
    encoder_layerdrop: float = opt(0.0, "encoder: probability of leaving out a layer in training")
    encoder_layers_to_keep: str | None = opt(None, "encoder: layers to keep of a checkpoint with more, as in 0,2,4")
    decoder_embed_path: str | None = opt(None, "decoder: text file with pretrained embeddings")
    decoder_embed_dim: int = opt(II("model.encoder_embed_dim"), "decoder: size of embeddings and layers")
    decoder_ffn_embed_dim: int = opt(II("model.encoder_ffn_embed_dim"), "decoder: inner size of a feed-forward block")
    share_all_embeddings: bool = opt(
        False, "one table for source, target and output projection (needs a joined dictionary)"
    )
    no_cross_attention: bool = opt(False, "decoder: no attention to the encoder")
    cross_self_attention: bool = opt(False, "decoder: one attention over encoder and decoder states together")
    max_source_positions: int = II("task.max_source_positions")
    max_target_positions: int = II("task.max_target_positions")
    left_pad_target: bool = II("task.left_pad_target")

    @classmethod
    def from_namespace(cls, args: Any) -> TransformerConfig:
        """The options in ``args``, with defaults for what it lacks. Options of plug-ins stay on it as attributes."""
        if isinstance(args, cls):
            return args
        cfg = cls()
        vars(cfg).update({name: value for name, value in vars(args).items() if not reference_of(value)})
        for field in dataclasses.fields(cls):
            path = reference_of(getattr(cfg, field.name)) or ""
            if path.startswith("model."):
                setattr(cfg, field.name, getattr(cfg, path.removeprefix("model.")))
        cfg.max_source_positions = known(cfg.max_source_positions) or DEFAULT_MAX_SOURCE_POSITIONS
        cfg.max_target_positions = known(cfg.max_target_positions) or DEFAULT_MAX_TARGET_POSITIONS
        cfg.left_pad_target = bool(known(cfg.left_pad_target))
        cfg.activation_dropout = cfg.activation_dropout or getattr(args, "relu_dropout", 0.0) or 0.0
        return cfg

    @property
    def encoder(self) -> Side:
        return Side(self, "encoder_")

    @property
    def decoder(self) -> Side:
        return Side(self, "decoder_")


class Side:
    """The options of one side without their prefix: ``cfg.encoder.layers`` is ``cfg.encoder_layers``."""

    def __init__(self, cfg: TransformerConfig, prefix: str) -> None:
        self._cfg, self._prefix = cfg, prefix

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, self._prefix + name)


def known(value: Any) -> Any:
    """``value``, or None if it is a reference to another group that nothing was put in for."""
    return None if reference_of(value) else value


def refuse_unavailable(args: Any) -> None:
    """Raise ConfigError, for all of them at once, if ``args`` asks for options that are not available."""
    asked = [f"{name}: {why}" for name, why in _UNAVAILABLE.items() if getattr(args, name, None)]
    if asked:
        raise ConfigError("the model asks for what pyseq does not have:\n" + "\n".join(f"  {line}" for line in asked))


def layers_to_keep(value: str | list[int] | None) -> list[int] | None:
    """``"0,2,4"`` as sorted numbers; None if nothing is to be left out. Raises ConfigError if it is no such list."""
    if not value:
        return None
    try:
        return sorted(int(layer) for layer in (value.split(",") if isinstance(value, str) else value))
    except ValueError:
        raise ConfigError(f"'{value}' is not a list of layer numbers, like 0,2,4") from None
