"""A step through all layers with reordered caches, against a decoder in float64 that reads whole prefixes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops.decoder_step import DecoderCache, DecoderWeights, LayerWeights, SourceWeights, decoder_step
from pyseq.ops.packed_linear import PackedLinear
from support.accuracy import assert_near, error
from support.backends import running_on

BACKENDS = ["torch", "cpp-avx512", "cpp-avx2", "cpp-portable"]
EPS = 1e-5


class Case:
    """Random layers; ``rule`` is one of them in float64 for one hypothesis with its whole prefix."""

    def __init__(self, dim: int, heads: int, inner: int, source: bool, norm_first: bool, activation: str) -> None:
        self.generator = torch.Generator().manual_seed(dim + inner)
        self.dim, self.heads, self.norm_first, self.activation = dim, heads, norm_first, activation
        self.encoder_dim = dim + 3
        sizes = {"qkv": (3 * dim, dim), "out": (dim, dim), "fc1": (inner, dim), "fc2": (dim, inner)}
        if source:
            sizes |= {"query": (dim, dim), "cross": (dim, dim), "source": (2 * dim, self.encoder_dim)}
        self.layers = [{name: self.linear(*size) for name, size in sizes.items()} for _ in range(2)]
        for layer in self.layers:
            layer |= {name: (self.normal(dim) + 1, self.normal(dim)) for name in ("norm", "cross_norm", "final_norm")}
        self.source = source

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def linear(self, columns: int, depth: int) -> tuple[Tensor, Tensor]:
        return self.normal(columns, depth) * depth**-0.5, self.normal(columns) * 0.1

    def weights(self) -> DecoderWeights:
        def packed(name: str) -> PackedLinear:
            return PackedLinear.pack(*layer[name])

        layers, sources = [], []
        for layer in self.layers:
            cross = None
            if self.source:
                cross = SourceWeights(layer["cross_norm"], packed("query"), packed("cross"))
                sources.append(layer["source"])
            parts = layer["norm"], packed("qkv"), packed("out"), layer["final_norm"], packed("fc1"), packed("fc2")
            layers.append(LayerWeights(*parts, cross))
        stacked = None
        if self.source:
            stacked = torch.cat([weight for weight, _ in sources]), torch.cat([bias for _, bias in sources])
        return DecoderWeights(layers, stacked, self.heads, self.norm_first, self.activation, EPS)

    def rule(self, prefix: Tensor, source: Tensor, visible: list[bool]) -> Tensor:
        """The last position of a prefix [T x C] whose ``visible`` positions are attended to; source [S x C']."""
        x = prefix.double()
        for layer in self.layers:
            x = self.block(x, layer["norm"], lambda y, layer=layer: self.attend_prefix(y, layer, visible))
            if self.source:
                x = self.block(x, layer["cross_norm"], lambda y, layer=layer: self.attend_source(y, source, layer))
            x = self.block(x, layer["final_norm"], lambda y, layer=layer: self.feed_forward(y, layer))
        return x[-1]

    def block(self, x, norm, fn):
        def normalise(y: Tensor) -> Tensor:
            return F.layer_norm(y, (self.dim,), norm[0].double(), norm[1].double(), EPS)

        return x + fn(normalise(x)) if self.norm_first else normalise(x + fn(x))

    @staticmethod
    def apply(x, linear):
        return x @ linear[0].double().t() + linear[1].double()

    def attention(self, q, k, v, mask):
        def heads(t: Tensor) -> Tensor:
            return t.unflatten(1, (self.heads, -1)).transpose(0, 1)

        scores = heads(q) @ heads(k).transpose(1, 2) / (self.dim / self.heads) ** 0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0)
        return (weights @ heads(v)).transpose(0, 1).flatten(1)

    def attend_prefix(self, x, layer, visible):
        q, k, v = self.apply(x, layer["qkv"]).chunk(3, dim=1)
        mask = torch.ones(len(x), len(x)).tril().bool() & torch.tensor(visible)
        return self.apply(self.attention(q, k, v, mask), layer["out"])

    def attend_source(self, x, source, layer):
        k, v = self.apply(source.double(), layer["source"]).chunk(2, dim=1)
        mask = torch.ones(len(x), len(source), dtype=torch.bool)
        return self.apply(self.attention(self.apply(x, layer["query"]), k, v, mask), layer["cross"])

    def feed_forward(self, x, layer):
        y = self.apply(x, layer["fc1"])
        return self.apply(F.relu(y) if self.activation == "relu" else F.gelu(y), layer["fc2"])


def decode(case: Case, backend: str) -> tuple[list[Tensor], list[Tensor]]:
    """Five steps of three sentences with rows multiplied, exchanged, padded and dropped; what is found and exact."""
    case.generator.manual_seed(7)
    lengths, src_len = [4, 0, 2], 4
    encoded = case.normal(src_len, 3, case.encoder_dim)
    padding = torch.arange(src_len) < torch.tensor([[src_len - n] for n in lengths])
    weights = case.weights()
    cache = DecoderCache(weights, encoded if case.source else None, padding if case.source else None, 3)
    orders = [[0, 0, 1, 1, 2, 2], [1, 0, 2, 2, 5, 4], [0, 0, 5, 4], [3, 2] * 40, None]
    hypotheses: list[tuple[int, list[Tensor], list[bool]]] = [(s, [], []) for s in range(3)]
    found, exact = [], []
    with running_on(backend):
        for step, order in enumerate(orders):
            x = case.normal(len(hypotheses), case.dim)
            padded = [step == 1 and row == 1 or step == 0 and row == 2 for row in range(len(x))]
            hypotheses = [
                (s, [*prefix, x[r]], [*seen, not padded[r]]) for r, (s, prefix, seen) in enumerate(hypotheses)
            ]
            found.append(decoder_step(x.clone(), weights, cache, torch.tensor(padded)))
            exact.append(
                torch.stack([case.rule(torch.stack(p), encoded[4 - lengths[s] :, s], v) for s, p, v in hypotheses])
            )
            if order is not None:
                cache.reorder(torch.tensor(order))
                hypotheses = [hypotheses[row] for row in order]
    return found, exact


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "case",
    [
        Case(16, 4, 32, source=True, norm_first=False, activation="relu"),
        Case(24, 1, 40, source=True, norm_first=True, activation="gelu"),
        Case(10, 2, 7, source=True, norm_first=False, activation="gelu"),  # no size fills a vector
        Case(64, 2, 48, source=False, norm_first=True, activation="relu"),
    ],
    ids=["post-norm", "pre-norm", "odd", "no-source"],
)
def test_as_whole_prefixes(case, backend):
    found, exact = decode(case, backend)
    reference = found if backend == "torch" else decode(case, "torch")[0]
    for one, plain, truth in zip(found, reference, exact, strict=True):
        assert error(plain, truth) < 1e-5
        assert_near(one, plain, truth, factor=3, ulps=4)


def test_threads_change_no_bit():
    case = Case(16, 4, 32, source=False, norm_first=False, activation="relu")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(decode(case, "cpp")[0])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_rows_that_do_not_fit_are_refused():
    case = Case(16, 4, 32, source=False, norm_first=False, activation="relu")
    weights = case.weights()
    cache = DecoderCache(weights, None, None, 3)
    with pytest.raises(ValueError, match="must be"):
        decoder_step(torch.zeros(2, 16), weights, cache)
    with running_on("cpp"), pytest.raises(IndexError, match="ancestor"):
        decoder_step(torch.zeros(3, 16), weights, cache)
        cache.ancestors[0, 0] = 3
        decoder_step(torch.zeros(3, 16), weights, cache)
