"""Generation with a plain decoder: all layers of a step are one operation (:mod:`pyseq.ops.decoder_step`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
    PlainLinear,
    SlotCache,
    SourceWeights,
    StepCache,
    decoder_step,
)
from pyseq.ops.decoder_step.graph import GraphedSteps
from pyseq.ops.packed_linear import PackedLinear, identity
from pyseq.utils import get_activation_fn

PLAIN = Dropout, LayerNorm, Linear, MultiheadAttention, TransformerDecoderLayer


class StepDecoding:
    """The incremental state of a decoder's layers for one batch.

    Args:
        weights: of the layers.
        graphs: records steps and replays them; None: steps are run one by one.
    """

    def __init__(self, weights: DecoderWeights, graphs: GraphedSteps | None = None) -> None:
        self.weights, self.graphs = weights, graphs
        self.cache: DecoderCache | None = None

    def step(self, x: Tensor, encoder_out: Tensor | None, source_padding: Tensor | None, padding: Tensor) -> Tensor:
        """What the last layer returns.

        Args:
            x: [1 x R x C], what the first layer gets.
            encoder_out, source_padding: [S x R x C] and [R x S] or None; read at the first step alone.
            padding: [R], whether the newest token is padding.
        """
        if self.cache is None:
            self.cache = self._begin(x[0], encoder_out, source_padding)
        if self.graphs is not None and isinstance(self.cache, SlotCache) and self.cache.for_graphs:
            return self.graphs.step(x[0], self.weights, self.cache, padding).unsqueeze(0)
        newest = x[0].to(torch.float32, copy=True) if self.weights.packed else x[0]  # the core overwrites it
        return decoder_step(newest, self.weights, self.cache, padding).to(x.dtype).unsqueeze(0)

    def _begin(self, x: Tensor, encoder_out: Tensor | None, source_padding: Tensor | None) -> DecoderCache:
        if encoder_out is None and self.weights.source is not None:
            layers = [layer._replace(source=None) for layer in self.weights.layers]
            self.weights = dataclasses.replace(self.weights, layers=layers, source=None)
        if self.weights.packed:
            return StepCache(self.weights, encoder_out, source_padding, x.size(0))
        if self.graphs is not None:
            return self.graphs.begin(self.weights, encoder_out, source_padding, x)
        return SlotCache(self.weights, encoder_out, source_padding, x)

    def reorder(self, rows: Tensor) -> None:
        """Keep the hypotheses ``rows``, in that order."""
        if self.cache is not None:
            self.cache.reorder(rows)


class PreparedWeights:
    """The weights of a decoder's layers as the operation reads them, made again when one of them has changed.

    Attributes:
        graphs: of the steps with these weights.
    """

    def __init__(self) -> None:
        self.weights: DecoderWeights | None = None
        self.made_from: tuple[Any, ...] = ()
        self.graphs = GraphedSteps()

    def __deepcopy__(self, memo: dict[int, Any]) -> PreparedWeights:
        copied = PreparedWeights()
        copied.weights, copied.made_from = self.weights, self.made_from
        return copied

    def of(self, layers: nn.ModuleList) -> DecoderWeights:
        """The weights of layers that :func:`can_step` approves of."""
        parameters = tuple(layers.parameters())
        made_from = backend_of(parameters[0]), identity(*parameters)
        if self.weights is None or made_from != self.made_from:
            self.weights, self.made_from = prepare(layers, packed=made_from[0] == "cpp"), made_from
        return self.weights


def can_step(layers: nn.ModuleList) -> bool:
    """Whether the operation computes what these layers do: none of their parts is unusual, watched or in training."""
    parameters = list(layers.parameters())
    if not parameters or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    device, dtype = parameters[0].device, parameters[0].dtype
    if any(p.device != device or p.dtype != dtype for p in parameters):
        return False
    if backend_of(parameters[0]) == "torch" or torch.is_autocast_enabled(device.type):
        return False
    if any(type(module) not in PLAIN or is_hooked(module) for layer in layers for module in layer.modules()):
        return False
    if any(isinstance(module, Dropout) and module.active_p > 0 for module in layers.modules()):
        return False
    first: Any = layers[0]
    return all(_is_usual(layer) and _is_alike(layer, first) for layer in layers)


def backend_of(parameter: Tensor) -> str:
    return dispatch.choose("decoder_step", parameter.device.type, parameter.dtype)


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


def prepare(layers: nn.ModuleList, packed: bool) -> DecoderWeights:
    """The weights of layers that :func:`can_step` approves of, for the core (``packed``) or for torch."""
    first: Any = layers[0]
    cross: list[Any] = [layer.encoder_attn for layer in layers if layer.encoder_attn is not None]
    activation = next(name for name in ACTIVATIONS if get_activation_fn(name) is first.activation_fn)
    linear = PackedLinear.pack if packed else PlainLinear
    return DecoderWeights(
        layers=[_layer_weights(layer, linear) for layer in layers],
        source=stacked([p for attention in cross for p in (attention.k_proj, attention.v_proj)]) if cross else None,
        heads=first.self_attn.num_heads,
        norm_first=first.normalize_before,
        activation=activation,
        eps=first.final_layer_norm.eps,
    )


def _layer_weights(layer: Any, linear: Callable[..., Any]) -> LayerWeights:
    def of(module: Any) -> Any:
        return linear(*stacked([module]))

    def norm(module: Any) -> Norm:
        weight, bias = (None if t is None else t.detach() for t in (module.weight, module.bias))
        return (weight, bias) if linear is PlainLinear else (_fp32(weight), _fp32(bias))

    attention, source = layer.self_attn, None
    if layer.encoder_attn is not None:
        cross = layer.encoder_attn
        source = SourceWeights(norm(layer.encoder_attn_layer_norm), of(cross.q_proj), of(cross.out_proj))
    return LayerWeights(
        self_norm=norm(layer.self_attn_layer_norm),
        qkv=linear(*stacked([attention.q_proj, attention.k_proj, attention.v_proj])),
        self_out=of(attention.out_proj),
        final_norm=norm(layer.final_layer_norm),
        fc1=of(layer.fc1),
        fc2=of(layer.fc2),
        source=source,
    )


def stacked(linears: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one layer whose output is that of all ``linears``, one after the other."""
    weights = [linear.weight.detach() for linear in linears]
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    if len(linears) == 1:
        return weights[0], biases[0] if biases else None
    return torch.cat(weights), torch.cat(biases) if biases else None


def _fp32(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()
