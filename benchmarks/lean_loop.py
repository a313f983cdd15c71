"""A transformer and its training loop in plain torch, as short as they can be: the peer that every machine has.

What a good programmer writes in an afternoon: one projection for queries, keys and values, scaled_dot_product_attention
on padded batches, F.cross_entropy, a fused Adam, clip_grad_norm_. No part of pyseq is in it.
Sizes: B sentences, T positions, C = width, H heads, V symbols.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITIONS = 2048


@dataclass
class Sizes:
    symbols: int
    width: int
    inner: int
    heads: int
    encoder_layers: int  # 0: a language model
    decoder_layers: int
    dropout: float
    padding: int


class Attention(nn.Module):
    """Self-attention, or with ``cross`` attention over a memory."""

    def __init__(self, width: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.heads, self.cross = heads, cross
        self.queries = nn.Linear(width, width) if cross else None
        self.inputs = nn.Linear(width, (2 if cross else 3) * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None, mask: Tensor | None, causal: bool) -> Tensor:
        """x: [B x T x C]; memory: [B x S x C]; mask: [B x 1 x 1 x S], True where to look."""
        if self.queries is not None and memory is not None:
            q, (k, v) = self.queries(x), self.inputs(memory).chunk(2, dim=-1)
        else:
            q, k, v = self.inputs(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # B x H x T x D
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.output(x.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Post-norm: self-attention, attention over the memory if there is one, and a feed-forward block."""

    def __init__(self, sizes: Sizes, cross: bool) -> None:
        super().__init__()
        self.dropout = sizes.dropout
        self.attention = Attention(sizes.width, sizes.heads)
        self.norm = nn.LayerNorm(sizes.width)
        self.cross = Attention(sizes.width, sizes.heads, cross=True) if cross else None
        self.cross_norm = nn.LayerNorm(sizes.width) if cross else None
        self.up, self.down = nn.Linear(sizes.width, sizes.inner), nn.Linear(sizes.inner, sizes.width)
        self.last_norm = nn.LayerNorm(sizes.width)

    def forward(
        self, x: Tensor, mask: Tensor | None, causal: bool, memory: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        x = self.norm(x + self.drop(self.attention(x, None, mask, causal)))
        if self.cross is not None and self.cross_norm is not None:
            x = self.cross_norm(x + self.drop(self.cross(x, memory, seen, False)))
        return self.last_norm(x + self.drop(self.down(F.relu(self.up(x)))))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Transformer(nn.Module):
    """Encoder and decoder, or the decoder alone; one embedding for everything, sinusoidal positions."""

    table: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(sizes.symbols, sizes.width, sizes.padding)
        self.encoder = nn.ModuleList(Layer(sizes, cross=False) for _ in range(sizes.encoder_layers))
        self.decoder = nn.ModuleList(
            Layer(sizes, cross=bool(sizes.encoder_layers)) for _ in range(sizes.decoder_layers)
        )
        self.register_buffer("table", sinusoids(POSITIONS, sizes.width), persistent=False)

    def forward(self, source: Tensor | None, inputs: Tensor) -> Tensor:
        """source: [B x S], padded on either side; inputs: [B x T], padded on the right. Returns logits [B x T x V]."""
        memory = mask = None
        if source is not None:
            seen = source.ne(self.sizes.padding)
            idle = seen.device.type == "cpu" and bool(seen.all())  # a GPU would have to be waited for
            mask = None if idle else seen[:, None, None, :]
            memory = self.embed(source)
            for layer in self.encoder:
                memory = layer(memory, mask, causal=False)
        x = self.embed(inputs)
        for layer in self.decoder:
            x = layer(x, None, True, memory, mask)
        return F.linear(x, self.embedding.weight)

    def embed(self, tokens: Tensor) -> Tensor:
        real = tokens.ne(self.sizes.padding)
        places = real.cumsum(1) * real
        x = math.sqrt(self.sizes.width) * self.embedding(tokens) + self.table[places] * real.unsqueeze(-1)
        return F.dropout(x, self.sizes.dropout, self.training)


def sinusoids(positions: int, width: int) -> Tensor:
    """Sines and cosines [positions x C]; position 1 is the first of a sentence, as far on as fairseq puts it."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
    angles = (torch.arange(positions) + 1.0).unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@dataclass
class Batch:
    source: Tensor | None  # [B x S]
    inputs: Tensor  # [B x T]
    target: Tensor  # [B x T]
    tokens: int  # in target


@dataclass
class Training:
    learning_rate: Callable[[int], float]  # of update number 0, 1, ...
    betas: tuple[float, float]
    weight_decay: float
    clip_norm: float
    label_smoothing: float  # in torch's form
    bf16: bool = False


class Stopwatch:
    """Seconds by part since the last :meth:`restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.parts: dict[str, float] = {}
        self.begin = self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now


def train(
    model: Transformer, batches: list[Batch], training: Training, watch: Stopwatch, after: Callable[[int], Any]
) -> list[Tensor]:
    """Train on each batch once; ``after`` is called with the number of updates done. Returns losses a token."""
    options: dict[str, Any] = {
        "betas": training.betas,
        "eps": 1e-8,
        "fused": True,
        "weight_decay": training.weight_decay,
    }
    make = torch.optim.AdamW if training.weight_decay else torch.optim.Adam
    optimizer = make(model.parameters(), lr=0.0, **options)
    parameters = list(model.parameters())
    device = parameters[0].device.type
    losses = []
    model.train()
    for update, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(update)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=training.bf16):
            logits = model(batch.source, batch.inputs)
            watch.lap("forward")
            loss = F.cross_entropy(
                logits.flatten(0, 1),
                batch.target.flatten(),
                ignore_index=model.sizes.padding,
                reduction="sum",
                label_smoothing=training.label_smoothing,
            )
        loss = loss / batch.tokens
        watch.lap("criterion")
        loss.backward()
        watch.lap("backward")
        del logits
        if training.clip_norm > 0:
            nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        optimizer.step()
        watch.lap("tail")
        losses.append(loss.detach())
        after(update + 1)
    return losses
