"""Inputs of attention of packed sequences, and what it, torch and float64 make of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops import Segments
from pyseq.ops.dropout import limit
from pyseq.ops.random import random_halves
from support.backends import running_on

SEED = 987654321987654321


@dataclass
class Case:
    """Inputs, and the gradient that comes back. Without a query: self-attention."""

    packed: Tensor
    query: Tensor | None
    grad: Tensor
    queries: list[int]
    keys: list[int]
    causal: bool = False
    p: float = 0.0
    scale: float | None = None


def some(
    queries: list[int],
    keys: list[int] | None = None,
    heads: int = 2,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
    causal: bool = False,
    p: float = 0.0,
) -> Case:
    """Self-attention, or with ``keys`` cross-attention, of segments of these lengths."""
    generator = torch.Generator().manual_seed(sum(queries) * 1_000_003 + dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, heads, dim, generator=generator).to(dtype)

    packed = normal(sum(queries), 3) if keys is None else normal(sum(keys), 2)
    query = None if keys is None else normal(sum(queries))
    return Case(packed, query, normal(sum(queries)), queries, queries if keys is None else keys, causal, p)


def run(backend: str, case: Case, seed: int = SEED) -> dict[str, Tensor]:
    """The output, and the gradients of the inputs."""
    with running_on(backend) as device:
        packed = case.packed.detach().to(device).requires_grad_()
        query = None if case.query is None else case.query.detach().to(device).requires_grad_()
        segments = [Segments.from_lengths(lengths, device) for lengths in (case.queries, case.keys)]
        drawn = torch.tensor([seed], device=device)
        if query is None:
            out = ops.self_attention(packed, segments[0], causal=case.causal, scale=case.scale, p=case.p, seed=drawn)
        else:
            out = ops.cross_attention(query, packed, *segments, scale=case.scale, p=case.p, seed=drawn)
        out.backward(case.grad.to(device))
    assert out.dtype == case.packed.dtype and out.shape == case.grad.shape and out.is_contiguous()
    found = {"out": out.detach(), "packed": packed.grad, "query": None if query is None else query.grad}
    return {name: t.cpu() for name, t in found.items() if t is not None}


@functools.cache
def halves_of_seed(count: int) -> Tensor:
    return random_halves(torch.tensor([SEED]), count)


def kept(case: Case, segment: int, head: int) -> Tensor:
    """Which weights of a head of a segment dropout keeps: bool [queries, keys]. Number by number, as documented."""
    heads, across = case.grad.size(1), -(-max(case.keys) // 16)
    first, queries, keys = sum(case.queries[:segment]), case.queries[segment], case.keys[segment]
    halves = halves_of_seed(sum(case.queries) * heads * across * 128)
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    tile = ((first + i // 8) * heads + head) * across + j // 16
    return halves[tile * 128 + i % 8 * 16 + j % 16] > limit(case.p)


def oracle(case: Case) -> dict[str, Tensor]:
    """The definition and its derivative, written out in float64, a head of a segment at a time."""
    packed, grad = case.packed.double(), case.grad.double()
    query = packed[:, 2] if case.query is None else case.query.double()
    scale = query.size(2) ** -0.5 if case.scale is None else case.scale
    out, grad_query, grad_packed = torch.zeros_like(query), torch.zeros_like(query), torch.zeros_like(packed)
    for segment, (queries, keys) in enumerate(zip(case.queries, case.keys)):
        if not queries or not keys:
            continue
        at = slice(sum(case.queries[:segment]), sum(case.queries[: segment + 1]))
        at_keys = slice(sum(case.keys[:segment]), sum(case.keys[: segment + 1]))
        for head in range(query.size(1)):
            q, g = query[at, head], grad[at, head]
            k, v = packed[at_keys, 0, head], packed[at_keys, 1, head]
            scores = q @ k.t() * scale
            if case.causal:
                scores = scores.masked_fill(torch.ones(queries, keys).triu(1).bool(), -torch.inf)
            weights = scores.exp() / scores.exp().sum(1, keepdim=True)
            factor = kept(case, segment, head) / (1 - case.p) if case.p else torch.ones(())
            out[at, head] = (weights * factor) @ v
            of_weights = g @ v.t() * factor
            of_scores = weights * (of_weights - (weights * of_weights).sum(1, keepdim=True)) * scale
            grad_query[at, head] = of_scores @ k
            grad_packed[at_keys, 0, head] = of_scores.t() @ q
            grad_packed[at_keys, 1, head] = (weights * factor).t() @ g
    if case.query is None:
        grad_packed[:, 2] = grad_query
        return {"out": out, "packed": grad_packed}
    return {"out": out, "packed": grad_packed, "query": grad_query}
