"""Encoder and decoder layers (Vaswani et al., 2017), post-norm or pre-norm.

Sizes: T target or S source positions, B sentences, C = embedding dimension, F = inner dimension.
Subclasses override the ``build_*`` methods and ``residual_connection``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyseq.modules.dropout import Dropout
from pyseq.modules.layer_norm import LayerNorm
from pyseq.modules.linear import Linear, is_plain, tokenwise
from pyseq.modules.multihead_attention import MultiheadAttention
from pyseq.modules.transformer_config import TransformerConfig
from pyseq.ops import linear
from pyseq.utils import get_activation_fn, inherits


class TransformerLayer(nn.Module):
    """What encoder and decoder layers share: the feed-forward block and how a block is wrapped."""

    embed_dim: int
    normalize_before: bool
    fc1: nn.Module
    fc2: nn.Module
    final_layer_norm: nn.Module

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.quant_noise = 0.0
        self.quant_noise_block_size = 8
        name = type(self).__name__
        self.dropout_module = Dropout(cfg.dropout, module_name=name)
        self.activation_dropout_module = Dropout(cfg.activation_dropout, module_name=name)
        self.activation_fn = get_activation_fn(cfg.activation_fn)

    def build_fc1(self, input_dim: int, output_dim: int, q_noise: float, qn_block_size: int) -> nn.Module:
        return Linear(input_dim, output_dim)

    def build_fc2(self, input_dim: int, output_dim: int, q_noise: float, qn_block_size: int) -> nn.Module:
        return Linear(input_dim, output_dim)

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + x

    def end_block(self, x: Tensor, residual: Tensor, norm: nn.Module) -> Tensor:
        """Dropout of ``x``, the residual connection and, in post-norm, ``norm``: in one pass if none was replaced."""
        dropout = self.dropout_module
        p = dropout.active_p if type(dropout) is Dropout else 0.0
        fuses = p > 0 and type(self).residual_connection is TransformerLayer.residual_connection
        if self.normalize_before:
            return dropout(x, residual=residual) if fuses else self.residual_connection(dropout(x), residual)
        if fuses and isinstance(norm, LayerNorm) and norm.fuses(x, residual) and not dropout._forward_hooks:
            result: Tensor = norm(x, residual=residual, p=p)
            return result
        return norm(self.residual_connection(dropout(x), residual))

    def _packs(self, base: type, *attentions: nn.Module | None) -> bool:
        """Whether the layer does what ``base`` does, with attentions that take packed sequences."""
        kept = "forward", "feed_forward", "end_block", "residual_connection", "inner_norm", "scale_residual"
        return inherits(self, base, *kept) and all(a is None or getattr(a, "packs", False) for a in attentions)

    def inner_norm(self, x: Tensor) -> Tensor:
        return x

    def scale_residual(self, residual: Tensor) -> Tensor:
        return residual

    def feed_forward(self, x: Tensor) -> Tensor:
        """The block after attention, with its norm and residual connection."""
        residual = x
        if self.normalize_before:
            x = self.final_layer_norm(x)
        x = self.activation_dropout_module(self.activated(x))  # T x B x F
        x = self.fc2(self.inner_norm(x))  # T x B x C
        return self.end_block(x, self.scale_residual(residual), self.final_layer_norm)

    def activated(self, x: Tensor) -> Tensor:
        """``fc1`` and the activation; in one pass where that is a rectifier."""
        fc1 = self.fc1
        if self.activation_fn is F.relu and isinstance(fc1, nn.Linear) and is_plain(fc1):
            return tokenwise(lambda y: linear(y, fc1.weight, fc1.bias, activation="relu"), x)
        result: Tensor = self.activation_fn(fc1(x))
        return result

    def rename_norms(self, state_dict: dict[str, Tensor], name: str, norms: tuple[str, ...]) -> None:
        """Give the ``layer_norms.N`` of old checkpoints their names."""
        for number, norm in enumerate(norms):
            for kind in ("weight", "bias"):
                old = state_dict.pop(f"{name}.layer_norms.{number}.{kind}", None)
                if old is not None:
                    state_dict[f"{name}.{norm}.{kind}"] = old


class TransformerEncoderLayer(TransformerLayer):
    """Self-attention, then a feed-forward block.

    Args:
        args: a :class:`TransformerConfig`, or a namespace with its options.
    """

    def __init__(self, args: Any) -> None:
        cfg = TransformerConfig.from_namespace(args)
        super().__init__(cfg)
        self.embed_dim = cfg.encoder_embed_dim
        self.normalize_before = cfg.encoder_normalize_before
        inner = cfg.encoder_ffn_embed_dim
        # The order of definition is the order of random draws and of parameters in optimizer states.
        self.self_attn = self.build_self_attention(self.embed_dim, cfg)
        self.self_attn_layer_norm = LayerNorm(self.embed_dim)
        self.fc1 = self.build_fc1(self.embed_dim, inner, self.quant_noise, self.quant_noise_block_size)
        self.fc2 = self.build_fc2(inner, self.embed_dim, self.quant_noise, self.quant_noise_block_size)
        self.final_layer_norm = LayerNorm(self.embed_dim)

    def build_self_attention(self, embed_dim: int, args: Any) -> nn.Module:
        return MultiheadAttention(
            embed_dim, args.encoder_attention_heads, dropout=args.attention_dropout, self_attention=True
        )

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """One layer.

        Args:
            x: [S x B x C].
            encoder_padding_mask: [B x S], True at padding.
            attn_mask: [S x S], nonzero where a query (row) may not look at a key (column).

        Returns:
            [S x B x C].
        """
        if attn_mask is not None:
            attn_mask = attn_mask.to(torch.bool)
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        x, _ = self.self_attn(
            query=x, key=x, value=x, key_padding_mask=encoder_padding_mask, need_weights=False, attn_mask=attn_mask
        )
        x = self.end_block(x, residual, self.self_attn_layer_norm)
        return self.feed_forward(x)

    @property
    def packs(self) -> bool:
        """Whether the layer takes packed sequences: S x 1 x C, with a :class:`PackedMask` for the padding mask."""
        return self._packs(TransformerEncoderLayer, self.self_attn)

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        self.rename_norms(state_dict, name, ("self_attn_layer_norm", "final_layer_norm"))


class TransformerDecoderLayer(TransformerLayer):
    """Self-attention, attention to the encoder, then a feed-forward block.

    Args:
        args: a :class:`TransformerConfig`, or a namespace with its options.
        no_encoder_attn: leave out the attention to the encoder.
        add_bias_kv, add_zero_attn: see :class:`MultiheadAttention`; of self-attention.
    """

    def __init__(
        self, args: Any, no_encoder_attn: bool = False, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> None:
        cfg = TransformerConfig.from_namespace(args)
        super().__init__(cfg)
        dim, inner = cfg.decoder_embed_dim, cfg.decoder_ffn_embed_dim
        self.embed_dim = dim
        self.normalize_before = cfg.decoder_normalize_before
        self.cross_self_attention = cfg.cross_self_attention
        self.nh = cfg.decoder_attention_heads
        # The order of definition is the order of random draws and of parameters in optimizer states.
        self.self_attn = self.build_self_attention(dim, cfg, add_bias_kv=add_bias_kv, add_zero_attn=add_zero_attn)
        self.attn_ln = LayerNorm(dim) if cfg.scale_attn else None
        self.c_attn = nn.Parameter(torch.ones(self.nh)) if cfg.scale_heads else None
        self.self_attn_layer_norm = LayerNorm(dim)
        self.encoder_attn = None if no_encoder_attn else self.build_encoder_attention(dim, cfg)
        self.encoder_attn_layer_norm = None if no_encoder_attn else LayerNorm(dim)
        self.ffn_layernorm = LayerNorm(inner) if cfg.scale_fc else None
        self.w_resid = nn.Parameter(torch.ones(dim)) if cfg.scale_resids else None
        self.fc1 = self.build_fc1(dim, inner, self.quant_noise, self.quant_noise_block_size)
        self.fc2 = self.build_fc2(inner, dim, self.quant_noise, self.quant_noise_block_size)
        self.final_layer_norm = LayerNorm(dim)

    def build_self_attention(
        self, embed_dim: int, args: Any, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> nn.Module:
        return MultiheadAttention(
            embed_dim,
            args.decoder_attention_heads,
            dropout=args.attention_dropout,
            add_bias_kv=add_bias_kv,
            add_zero_attn=add_zero_attn,
            self_attention=not args.cross_self_attention,
        )

    def build_encoder_attention(self, embed_dim: int, args: Any) -> nn.Module:
        return MultiheadAttention(
            embed_dim,
            args.decoder_attention_heads,
            kdim=args.encoder_embed_dim,
            vdim=args.encoder_embed_dim,
            dropout=args.attention_dropout,
            encoder_decoder_attention=True,
        )

    def inner_norm(self, x: Tensor) -> Tensor:
        return x if self.ffn_layernorm is None else self.ffn_layernorm(x)

    def scale_residual(self, residual: Tensor) -> Tensor:
        return residual if self.w_resid is None else residual * self.w_resid

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: dict[str, Any] | None = None,
        prev_self_attn_state: list[Tensor] | None = None,
        prev_attn_state: list[Tensor] | None = None,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_attn: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, None]:
        """One layer.

        Args:
            x: [T x B x C].
            encoder_out: [S x B x C].
            encoder_padding_mask: [B x S], True at padding.
            incremental_state: if given, ``x`` is the newest position alone and earlier ones are in here.
            prev_self_attn_state, prev_attn_state: [key, value, (key padding mask)] to begin the caches with.
            self_attn_mask: [T x T], added to the scores of self-attention.
            self_attn_padding_mask: [B x T], True at padding.
            need_attn: return the weights of the attention to the encoder, the mean over heads.
            need_head_weights: return those of each head.

        Returns:
            The output [T x B x C], the attention weights [B x T x S] or [H x B x T x S] or None, and None.
        """
        if prev_self_attn_state is not None:
            incremental_state = _begin_cache(self.self_attn, incremental_state, prev_self_attn_state)
        residual = x
        if self.normalize_before:
            x = self.self_attn_layer_norm(x)
        x = self.attend_self(
            x, encoder_out, encoder_padding_mask, incremental_state, self_attn_mask, self_attn_padding_mask
        )
        x = self.end_block(x, residual, self.self_attn_layer_norm)

        attn = None
        if self.encoder_attn is not None and self.encoder_attn_layer_norm is not None and encoder_out is not None:
            if prev_attn_state is not None:
                incremental_state = _begin_cache(self.encoder_attn, incremental_state, prev_attn_state)
            residual = x
            if self.normalize_before:
                x = self.encoder_attn_layer_norm(x)
            x, attn = self.encoder_attn(
                query=x,
                key=encoder_out,
                value=encoder_out,
                key_padding_mask=encoder_padding_mask,
                incremental_state=incremental_state,
                static_kv=True,
                need_weights=need_attn or need_head_weights,
                need_head_weights=need_head_weights,
            )
            x = self.end_block(x, residual, self.encoder_attn_layer_norm)
        return self.feed_forward(x), attn, None

    def attend_self(
        self,
        x: Tensor,
        encoder_out: Tensor | None,
        encoder_padding_mask: Tensor | None,
        incremental_state: dict[str, Any] | None,
        attn_mask: Tensor | None,
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Self-attention; with cross-self-attention, over the encoder's output as well."""
        y = x
        if self.cross_self_attention and encoder_out is not None and not self.has_cache(incremental_state):
            bsz, src_len = encoder_out.size(1), encoder_out.size(0)
            if attn_mask is not None:
                attn_mask = torch.cat([x.new_zeros(x.size(0), src_len), attn_mask], dim=1)
            if padding_mask is not None or encoder_padding_mask is not None:
                no_padding = torch.zeros(bsz, 1, dtype=torch.bool, device=x.device)
                source = no_padding.expand(bsz, src_len) if encoder_padding_mask is None else encoder_padding_mask
                target = no_padding.expand(bsz, x.size(0)) if padding_mask is None else padding_mask
                padding_mask = torch.cat([source, target], dim=1)
            y = torch.cat([encoder_out, x], dim=0)  # (S + T) x B x C
        x, _ = self.self_attn(
            query=x,
            key=y,
            value=y,
            key_padding_mask=padding_mask,
            incremental_state=incremental_state,
            need_weights=False,
            attn_mask=attn_mask,
        )
        if self.c_attn is not None:
            x = (x.unflatten(-1, (self.nh, -1)) * self.c_attn.unsqueeze(-1)).flatten(2)
        return x if self.attn_ln is None else self.attn_ln(x)

    @property
    def packs(self) -> bool:
        """Whether the layer takes packed sequences: T x 1 x C, with :class:`PackedMask` for both padding masks."""
        kept = inherits(self, TransformerDecoderLayer, "attend_self") and not self.cross_self_attention
        return kept and self._packs(TransformerDecoderLayer, self.self_attn, self.encoder_attn)

    def has_cache(self, incremental_state: dict[str, Any] | None) -> bool:
        """Whether self-attention holds keys of earlier steps, those of the encoder's output among them."""
        return bool(self.self_attn._get_input_buffer(incremental_state))  # type: ignore[operator]

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        self.rename_norms(state_dict, name, ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"))


def _begin_cache(attention: nn.Module, incremental_state: dict[str, Any] | None, state: list[Tensor]) -> dict[str, Any]:
    """Put [key, value, (key padding mask)] into the attention's cache."""
    incremental_state = {} if incremental_state is None else incremental_state
    names = ("prev_key", "prev_value", "prev_key_padding_mask")
    attention._set_input_buffer(incremental_state, dict(zip(names, state)))  # type: ignore[operator]
    return incremental_state
