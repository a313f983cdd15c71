"""Generation with a plain decoder: all layers of a step are one operation (:mod:`pyseq.ops.decoder_step`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from pyseq.models.linear_output import is_hooked
from pyseq.modules import Dropout, LayerNorm, MultiheadAttention, TransformerDecoderLayer
from pyseq.modules.linear import Linear
from pyseq.ops import dispatch
from pyseq.ops.decoder_step import (
    ACTIVATIONS,
    DecoderCache,
    DecoderWeights,
    LayerWeights,
    Norm,
    SourceWeights,
    decoder_step,
)
from pyseq.ops.packed_linear import PackedLinear, identity
from pyseq.utils import get_activation_fn

PLAIN = Dropout, LayerNorm, Linear, MultiheadAttention, TransformerDecoderLayer


class StepDecoding:
    """The incremental state of a decoder's layers for one batch."""

    def __init__(self, weights: DecoderWeights) -> None:
        self.weights = weights
        self.cache: DecoderCache | None = None

    def step(self, x: Tensor, encoder_out: Tensor | None, source_padding: Tensor | None, padding: Tensor) -> Tensor:
        """What the last layer returns.

        Args:
            x: [1 x R x C], what the first layer gets.
            encoder_out, source_padding: [S x R x C] and [R x S] or None; read at the first step alone.
            padding: [R], whether the newest token is padding.
        """
        if self.cache is None:
            if encoder_out is None and self.weights.source is not None:
                layers = [layer._replace(source=None) for layer in self.weights.layers]
                self.weights = dataclasses.replace(self.weights, layers=layers, source=None)
            self.cache = DecoderCache(self.weights, encoder_out, source_padding, x.size(1))
        return decoder_step(x[0].clone(), self.weights, self.cache, padding).unsqueeze(0)

    def reorder(self, rows: Tensor) -> None:
        """Keep the hypotheses ``rows``, in that order."""
        if self.cache is not None:
            self.cache.reorder(rows)


class PreparedWeights:
    """The weights of a decoder's layers as the operation reads them, made again when one of them has changed."""

    def __init__(self) -> None:
        self.weights: DecoderWeights | None = None
        self.made_from: tuple[tuple[int, int], ...] = ()

    def of(self, layers: nn.ModuleList) -> DecoderWeights:
        """The weights of layers that :func:`can_step` approves of."""
        parameters = tuple(layers.parameters())
        made_from = identity(*parameters)
        if self.weights is None or made_from != self.made_from:
            self.weights, self.made_from = prepare(layers), made_from
        return self.weights


def can_step(layers: nn.ModuleList) -> bool:
    """Whether the operation computes what these layers do: none of their parts is unusual, watched or in training."""
    parameters = list(layers.parameters())
    if not parameters or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in parameters):
        return False
    if dispatch.choose("decoder_step", "cpu", torch.float32) == "torch":
        return False
    if any(type(module) not in PLAIN or is_hooked(module) for layer in layers for module in layer.modules()):
        return False
    if any(isinstance(module, Dropout) and module.active_p > 0 for module in layers.modules()):
        return False
    first: Any = layers[0]
    return all(_is_usual(layer) and _is_alike(layer, first) for layer in layers)


def _is_usual(layer: Any) -> bool:
    attentions = [layer.self_attn] + ([] if layer.encoder_attn is None else [layer.encoder_attn])
    return (
        layer.activation_fn in [get_activation_fn(name) for name in ACTIVATIONS]
        and not layer.cross_self_attention
        and layer.self_attn.self_attention
        and all(a.bias_k is None and not a.add_zero_attn for a in attentions)
        and all(part is None for part in (layer.c_attn, layer.attn_ln, layer.ffn_layernorm, layer.w_resid))
    )


def _is_alike(layer: Any, other: Any) -> bool:
    """Whether two layers have the same sizes and options."""
    return _options(layer) == _options(other)


def _options(layer: Any) -> tuple[Any, ...]:
    norms = [layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm]
    cross = layer.encoder_attn
    return (
        layer.self_attn.embed_dim,
        layer.self_attn.num_heads,
        None if cross is None else (cross.embed_dim, cross.num_heads, cross.kdim, cross.k_proj.bias is None),
        layer.fc1.out_features,
        layer.normalize_before,
        layer.activation_fn,
        {(norm.eps, norm.normalized_shape) for norm in norms if norm is not None},
    )


def prepare(layers: nn.ModuleList) -> DecoderWeights:
    """The weights of layers that :func:`can_step` approves of."""
    first: Any = layers[0]
    cross: list[Any] = [layer.encoder_attn for layer in layers if layer.encoder_attn is not None]
    activation = next(name for name in ACTIVATIONS if get_activation_fn(name) is first.activation_fn)
    return DecoderWeights(
        layers=[_layer_weights(layer) for layer in layers],
        source=stacked([p for attention in cross for p in (attention.k_proj, attention.v_proj)]) if cross else None,
        heads=first.self_attn.num_heads,
        norm_first=first.normalize_before,
        activation=activation,
        eps=first.final_layer_norm.eps,
    )


def _layer_weights(layer: Any) -> LayerWeights:
    attention, source = layer.self_attn, None
    if layer.encoder_attn is not None:
        cross = layer.encoder_attn
        source = SourceWeights(_norm(layer.encoder_attn_layer_norm), packed(cross.q_proj), packed(cross.out_proj))
    return LayerWeights(
        self_norm=_norm(layer.self_attn_layer_norm),
        qkv=PackedLinear.pack(*stacked([attention.q_proj, attention.k_proj, attention.v_proj])),
        self_out=packed(attention.out_proj),
        final_norm=_norm(layer.final_layer_norm),
        fc1=packed(layer.fc1),
        fc2=packed(layer.fc2),
        source=source,
    )


def packed(linear: Any) -> PackedLinear:
    return PackedLinear.pack(linear.weight, linear.bias)


def stacked(linears: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one layer whose output is that of all ``linears``, one after the other."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias for linear in linears]
    return weight, None if biases[0] is None else torch.cat([bias.detach() for bias in biases])


def _norm(norm: Any) -> Norm:
    weight, bias = norm.weight, norm.bias
    return None if weight is None else weight.detach(), None if bias is None else bias.detach()
