"""One step of a transformer decoder (Vaswani et al., 2017): the newest position of all hypotheses, through all layers.

Keys and values are written once and stay where they are. When a search reorders its hypotheses, only a table changes
that says which row of each step a hypothesis descends from; those of the source are kept once for each sentence,
without padding.

Sizes: R hypotheses, T positions so far, N source tokens of all sentences, C = dim, F = inner.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.packed_linear import PackedLinear

dispatch.register_operation("decoder_step", cpp=frozenset({torch.float32}))

ACTIVATIONS = {"relu": 0, "gelu": 1}  # the numbers are those of csrc/cpu/decoder_step.h
ADDRESSES = 18  # of a layer, in the order of csrc/cpu/bindings_decoding.cpp

Norm = tuple["Tensor | None", "Tensor | None"]  # weight and bias [C], fp32


class SourceWeights(NamedTuple):
    """What a layer has for its attention to the source. Keys and values are projected by ``DecoderWeights.source``."""

    norm: Norm
    query: PackedLinear  # C to C
    out: PackedLinear  # C to C


class LayerWeights(NamedTuple):
    """A layer. All fp32."""

    self_norm: Norm
    qkv: PackedLinear  # C to 3 C: query, key, value
    self_out: PackedLinear  # C to C
    final_norm: Norm
    fc1: PackedLinear  # C to F
    fc2: PackedLinear  # F to C
    source: SourceWeights | None

    def addresses(self) -> list[int]:
        """Where its numbers lie."""
        parts: list[Any] = [self.self_norm, self.qkv, self.self_out, self.final_norm, self.fc1, self.fc2]
        if self.source is not None:
            parts += self.source
        found: list[int] = []
        for part in parts:
            if isinstance(part, PackedLinear):
                found += part.addresses()
            else:
                found += [0 if t is None else t.data_ptr() for t in part]
        return found + [0] * (ADDRESSES - len(found))


@dataclass(frozen=True, eq=False)
class DecoderWeights:
    """All layers, ready for :func:`decoder_step`.

    Attributes:
        layers: either all have ``source`` or none has.
        source: weight [layers * 2 C x encoder C] and bias of the keys and values of all layers: for each layer its key,
            then its value.
        norm_first: pre-norm.
        activation: one of :data:`ACTIVATIONS`.
        eps: of all norms.
    """

    layers: list[LayerWeights]
    source: tuple[Tensor, Tensor | None] | None
    heads: int
    norm_first: bool
    activation: str
    eps: float
    table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", torch.tensor([layer.addresses() for layer in self.layers]))

    def __deepcopy__(self, memo: dict[int, Any]) -> DecoderWeights:
        return self  # nothing changes them

    @property
    def dim(self) -> int:
        return self.layers[0].qkv.depth

    @property
    def inner(self) -> int:
        return self.layers[0].fc1.columns


class DecoderCache:
    """Keys and values of one batch: each key [C] is followed by its value [C].

    Attributes:
        steps: of each step so far [layers x rows of that step x 2 C].
        ancestors: [R x T] int32, the row of each step; -1 where that position is padding.
        source: [N x layers x 2 C], or None.
        source_begin: [B + 1] int64, the first of a sentence's source tokens.
        sentence: [R] int32, the sentence of each hypothesis.
    """

    def __init__(self, weights: DecoderWeights, encoder_out: Tensor | None, padding_mask: Tensor | None, rows: int):
        """Begin a batch.

        Args:
            encoder_out: [S x B x encoder C], or None without a source.
            padding_mask: [B x S], True at padding; None if there is none.
            rows: R, as many as there are sentences.
        """
        self.steps: list[Tensor] = []
        self.ancestors = torch.empty(rows, 0, dtype=torch.int32)
        self.sentence = torch.arange(rows, dtype=torch.int32)
        self.source: Tensor | None = None
        self.source_begin = torch.zeros(rows + 1, dtype=torch.int64)
        if weights.source is not None:
            assert encoder_out is not None
            tokens = encoder_out.transpose(0, 1)  # B x S x C
            kept = tokens.flatten(0, 1) if padding_mask is None else tokens[~padding_mask]  # N x C
            self.source = F.linear(kept, *weights.source).view(-1, len(weights.layers), 2 * weights.dim)
            lengths = torch.full((rows,), tokens.size(1)) if padding_mask is None else (~padding_mask).sum(1)
            torch.cumsum(lengths, 0, out=self.source_begin[1:])

    def add_step(self, weights: DecoderWeights, padding: Tensor | None) -> None:
        """Make room for one more position; ``padding`` [R] is True where it is padding."""
        rows = self.ancestors.size(0)
        self.steps.append(torch.empty(len(weights.layers), rows, 2 * weights.dim))
        own = torch.arange(rows, dtype=torch.int32)
        own = own if padding is None else own.masked_fill(padding, -1)
        self.ancestors = torch.cat([self.ancestors, own.unsqueeze(1)], dim=1)

    def reorder(self, rows: Tensor) -> None:
        """Keep the hypotheses ``rows`` [R'], in that order."""
        self.ancestors, self.sentence = self.ancestors[rows], self.sentence[rows]


def decoder_step(x: Tensor, weights: DecoderWeights, cache: DecoderCache, padding: Tensor | None = None) -> Tensor:
    """What the last layer returns for the newest position of each hypothesis, which joins the cache.

    Args:
        x: [R x C] fp32 on the CPU: what the first layer gets. It may be overwritten.
        padding: [R] bool, True where that position is padding: nothing will attend to it. None if nowhere.

    Returns:
        [R x C].
    """
    rows = cache.ancestors.size(0)
    if x.shape != (rows, weights.dim):
        raise ValueError(f"x {tuple(x.shape)} must be [{rows}, {weights.dim}]")
    chosen = dispatch.choose("decoder_step", x.device.type, x.dtype)
    cache.add_step(weights, padding)
    return reference(x, weights, cache) if chosen == "torch" else _cpp(x.contiguous(), weights, cache)


def reference(x: Tensor, weights: DecoderWeights, cache: DecoderCache) -> Tensor:
    """In plain torch, in the dtype of ``x``: what the kernel computes. The cache has room for the newest position."""
    for number, layer in enumerate(weights.layers):
        y = _norm(x, layer.self_norm, weights) if weights.norm_first else x
        query, key_value = layer.qkv.reference(y).split([weights.dim, 2 * weights.dim], dim=1)
        cache.steps[-1][number] = key_value
        rows = zip(cache.steps, cache.ancestors.unbind(1))
        keys = torch.stack([step[number][row.clamp(min=0).long()] for step, row in rows], dim=1)  # R x T x 2C
        y = layer.self_out.reference(_attend(query, keys, cache.ancestors < 0, weights))
        x = _end_block(x, y, layer.self_norm, weights)
        if layer.source is not None and cache.source is not None:
            y = _norm(x, layer.source.norm, weights) if weights.norm_first else x
            keys, left_out = _source_keys(cache.source[:, number], cache)
            y = layer.source.out.reference(_attend(layer.source.query.reference(y), keys, left_out, weights))
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


def _source_keys(source: Tensor, cache: DecoderCache) -> tuple[Tensor, Tensor]:
    """Each hypothesis's source [R x S x 2C] from that of all sentences [N x 2C], and [R x S], True past its end."""
    begin = cache.source_begin[:-1][cache.sentence.long()].unsqueeze(1)
    lengths = cache.source_begin.diff()[cache.sentence.long()].unsqueeze(1)
    place = torch.arange(int(lengths.max()) if lengths.numel() else 0)
    left_out = place >= lengths
    return source[(begin + place).masked_fill(left_out, 0)], left_out


def _attend(query: Tensor, keys_values: Tensor, left_out: Tensor, weights: DecoderWeights) -> Tensor:
    """Queries [R x C] over keys with their values [R x T x 2C]; zeros where all keys are left out [R x T]."""
    q = query.unflatten(-1, (weights.heads, 1, -1))  # R x H x 1 x D
    k, v = (t.unflatten(-1, (weights.heads, -1)).transpose(1, 2) for t in keys_values.to(q.dtype).chunk(2, dim=-1))
    scores = (q @ k.transpose(2, 3)) * q.size(-1) ** -0.5
    blind = left_out.all(dim=1)[:, None, None, None]
    scores = scores.masked_fill(left_out[:, None, None, :] & ~blind, float("-inf"))
    return (scores.softmax(dim=-1) @ v).masked_fill(blind, 0).flatten(1)


def _cpp(x: Tensor, weights: DecoderWeights, cache: DecoderCache) -> Tensor:
    rows, positions = cache.ancestors.shape
    addresses = array("q", [step.data_ptr() for step in cache.steps])
    step_rows = array("q", [step.size(1) for step in cache.steps])
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
        addresses.buffer_info()[0],
        step_rows.buffer_info()[0],
        positions,
        cache.ancestors.data_ptr(),
        0 if source is None else source.data_ptr(),
        0 if source is None else source.size(0),
        cache.source_begin.data_ptr(),
        0 if source is None else cache.source_begin.numel() - 1,
        cache.sentence.data_ptr(),
        x.data_ptr(),
        rows,
        torch.get_num_threads(),
    )
    return x
