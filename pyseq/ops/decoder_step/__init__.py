"""One step of a transformer decoder (Vaswani et al., 2017): the newest position of all hypotheses, through all layers.

Sizes: R hypotheses, T positions so far, C = dim, F = inner.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.decoder_step.caches import DecoderCache, Keys, SlotCache, SlotMemory, StepCache
from pyseq.ops.decoder_step.weights import (
    ACTIVATIONS,
    DecoderWeights,
    LayerWeights,
    Norm,
    PlainLinear,
    SourceWeights,
)

__all__ = [
    "ACTIVATIONS",
    "CORE_DTYPES",
    "DecoderCache",
    "DecoderWeights",
    "LayerWeights",
    "Norm",
    "PlainLinear",
    "SlotCache",
    "SlotMemory",
    "SourceWeights",
    "StepCache",
    "decoder_step",
]

# What a back end lacks is left to the model's layers, in torch.
# The core takes the weights of a model in bf16, and computes with them in fp32 what is not a product.
CORE_DTYPES = frozenset({torch.float32, torch.bfloat16})
dispatch.register_operation("decoder_step", cpp=CORE_DTYPES, triton=dispatch.KERNEL_DTYPES, library=True)

Attend = Callable[[Tensor, Keys, int], Tensor]  # queries, keys and heads to what the queries get [R x C]


def decoder_step(x: Tensor, weights: DecoderWeights, cache: DecoderCache, padding: Tensor | None = None) -> Tensor:
    """What the last layer returns for the newest position of each hypothesis, which joins the cache.

    Args:
        x: [R x C], what the first layer gets. It may be overwritten.
        padding: [R] bool, True where that position is padding: nothing will attend to it. None if nowhere.

    Returns:
        [R x C].
    """
    if x.shape != (cache.rows(), weights.dim):
        raise ValueError(f"x {tuple(x.shape)} must be [{cache.rows()}, {weights.dim}]")
    chosen = dispatch.choose("decoder_step", x.device.type, x.dtype)
    cache.add_step(padding)
    if chosen == "cpp" and isinstance(cache, StepCache) and weights.packed:
        return _cpp(x.contiguous(), weights, cache)
    return run(x, weights, cache, attention(chosen))


def attention(backend: str) -> Attend:
    """The attention of a back end."""
    if backend != "triton":
        return attend
    kernel: Attend = importlib.import_module("pyseq.kernels.decode_attention").attend
    return kernel


def run(x: Tensor, weights: DecoderWeights, cache: DecoderCache, attend: Attend) -> Tensor:
    """In torch, in the dtype of ``x``, with that attention. The cache has room for the newest position."""
    for number, layer in enumerate(weights.layers):
        y = _norm(x, layer.self_norm, weights) if weights.norm_first else x
        query, key_value = layer.qkv.reference(y).split([weights.dim, 2 * weights.dim], dim=1)
        cache.write(number, key_value)
        y = layer.self_out.reference(attend(query, cache.own(number), weights.heads))
        x = _end_block(x, y, layer.self_norm, weights)
        source = cache.of_source(number)
        if layer.source is not None and source is not None:
            y = _norm(x, layer.source.norm, weights) if weights.norm_first else x
            y = layer.source.out.reference(attend(layer.source.query.reference(y), source, weights.heads))
            x = _end_block(x, y, layer.source.norm, weights)
        y = _norm(x, layer.final_norm, weights) if weights.norm_first else x
        y = layer.fc1.reference(y)
        y = layer.fc2.reference(F.relu(y) if weights.activation == "relu" else F.gelu(y))
        x = _end_block(x, y, layer.final_norm, weights)
    return x


def _norm(x: Tensor, norm: Norm, weights: DecoderWeights) -> Tensor:
    weight, bias = (None if t is None else t.to(x.dtype) for t in norm)
    return F.layer_norm(x, x.shape[-1:], weight, bias, weights.eps)


def _end_block(x: Tensor, y: Tensor, norm: Norm, weights: DecoderWeights) -> Tensor:
    return x + y if weights.norm_first else _norm(x + y, norm, weights)


def attend(query: Tensor, keys: Keys, heads: int) -> Tensor:
    """Queries [R x C] over their keys, the reference; zeros where all keys are left out. Softmax in fp32 or wider."""
    place = torch.arange(keys.slots.size(1), device=query.device)
    left_out = (keys.slots < 0) | (place >= keys.length)  # R x places
    found = keys.keys_values[keys.slots.masked_fill(left_out, 0).long()]  # R x places x 2C
    found = found.to(query.dtype).masked_fill(left_out.unsqueeze(-1), 0)
    k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in found.chunk(2, dim=-1))  # R x H x places x D
    q = query.unflatten(-1, (heads, 1, -1))  # R x H x 1 x D
    scores = (q @ k.transpose(2, 3)) * q.size(-1) ** -0.5
    blind = left_out.all(dim=1)[:, None, None, None]
    scores = scores.masked_fill(left_out[:, None, None, :] & ~blind, float("-inf"))
    shares = scores.softmax(dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    return (shares @ v).masked_fill(blind, 0).flatten(1)


def _cpp(x: Tensor, weights: DecoderWeights, cache: StepCache) -> Tensor:
    rows, positions = cache.ancestors.shape
    source = cache.source
    dispatch.required_core().decoder_step(
        weights.table.data_ptr(),
        len(weights.layers),
        weights.dim,
        weights.heads,
        weights.inner,
        weights.norm_first,
        ACTIVATIONS[weights.activation],
        weights.eps,
        weights.bf16,
        cache.addresses.buffer_info()[0],
        cache.step_rows.buffer_info()[0],
        positions,
        cache.ancestors.data_ptr(),
        0 if source is None else source.data_ptr(),
        0 if source is None else source.size(1),
        cache.source_begin.data_ptr(),
        0 if source is None else cache.source_begin.numel() - 1,
        cache.sentence.data_ptr(),
        x.data_ptr(),
        rows,
        torch.get_num_threads(),
    )
    return x
