"""A step through all layers with reordered caches, against a decoder in float64 that reads whole prefixes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.decoder_step import (
    DecoderCache,
    DecoderWeights,
    LayerWeights,
    PlainLinear,
    SlotCache,
    SlotMemory,
    SourceWeights,
    StepCache,
    attend,
    attention,
    caches,
    decoder_step,
    run,
)
from pyseq.ops.decoder_step.graph import GraphedSteps
from pyseq.ops.packed_linear import PackedLinear
from support.accuracy import assert_near, error, mean_error
from support.backends import is_interpreted, running_on
from support.graphs import Replays

# Back end and cache: "slots" is one block of memory, "steps" one for each step.
BACKENDS = ["torch steps", "torch slots", "torch graphs", "triton slots"]
BACKENDS += ["cpp-avx512 steps", "cpp-avx2 steps", "cpp-portable steps"]
EPS = 1e-5


class Case:
    """Random layers; ``rule`` is one of them in float64 for one hypothesis with its whole prefix.

    ``dtype`` is that of the weights of products.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        inner: int,
        source: bool,
        norm_first: bool,
        activation: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(dim + inner), dtype
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
        weight = self.normal(columns, depth) * depth**-0.5
        return weight.to(self.dtype).float(), self.normal(columns) * 0.1

    def weights(self, cache: str = "steps", device: torch.device | str = "cpu") -> DecoderWeights:
        def there(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return pair[0].to(device), pair[1].to(device)

        def linear(name: str) -> PackedLinear | PlainLinear:
            weight, bias = layer[name]
            return (
                PackedLinear.pack(weight.to(self.dtype), bias) if cache == "steps" else PlainLinear(*there(layer[name]))
            )

        layers, sources = [], []
        for layer in self.layers:
            cross = None
            if self.source:
                cross = SourceWeights(there(layer["cross_norm"]), linear("query"), linear("cross"))
                sources.append(there(layer["source"]))
            attention = there(layer["norm"]), linear("qkv"), linear("out")
            layers.append(LayerWeights(*attention, there(layer["final_norm"]), linear("fc1"), linear("fc2"), cross))
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


class Steps:
    """Steps on a back end, with one of the caches, of one batch after the other."""

    def __init__(self, case: Case, backend: str) -> None:
        self.backend, self.kind = backend.split()
        self.case = case
        with running_on(self.backend) as self.device:
            self.weights = case.weights(self.kind, self.device)
        self.graphs = GraphedSteps() if self.device.type == "cuda" else GraphedSteps(Replays())

    def begin(self, encoded: Tensor, padding: Tensor, x: Tensor) -> DecoderCache:
        if self.kind == "steps":
            source = (encoded, padding) if self.case.source else (None, None)
            return StepCache(self.weights, *source, len(x))
        source = (encoded.to(self.device), padding.to(self.device)) if self.case.source else (None, None)
        if self.kind == "graphs":
            return self.graphs.begin(self.weights, *source, x.to(self.device))
        return SlotCache(self.weights, *source, x.to(self.device))

    def step(self, x: Tensor, cache: DecoderCache, padding: Tensor) -> Tensor:
        x, padding = x.to(self.device, copy=True), padding.to(self.device)
        with running_on(self.backend):
            if isinstance(cache, SlotCache) and cache.for_graphs:
                return self.graphs.step(x, self.weights, cache, padding).cpu()
            return decoder_step(x, self.weights, cache, padding).cpu()


def decode(case: Case, backend: str, steps: Steps | None = None, many: int = 40) -> tuple[list[Tensor], list[Tensor]]:
    """Five steps of three sentences with rows multiplied, exchanged, padded and dropped; what is found and exact."""
    steps = Steps(case, backend) if steps is None else steps
    case.generator.manual_seed(7)
    lengths, src_len = [4, 0, 2], 4
    encoded = case.normal(src_len, 3, case.encoder_dim)
    padding = torch.arange(src_len) < torch.tensor([[src_len - n] for n in lengths])
    cache = None
    orders = [[0, 0, 1, 1, 2, 2], [1, 0, 2, 2, 5, 4], [0, 0, 5, 4], [3, 2] * many, None]
    hypotheses: list[tuple[int, list[Tensor], list[bool]]] = [(s, [], []) for s in range(3)]
    found, exact = [], []
    for step, order in enumerate(orders):
        x = case.normal(len(hypotheses), case.dim)
        cache = steps.begin(encoded, padding, x) if cache is None else cache
        padded = [step == 1 and row == 1 or step == 0 and row == 2 for row in range(len(x))]
        hypotheses = [(s, [*prefix, x[r]], [*seen, not padded[r]]) for r, (s, prefix, seen) in enumerate(hypotheses)]
        found.append(steps.step(x, cache, torch.tensor(padded)))
        exact.append(
            torch.stack([case.rule(torch.stack(p), encoded[4 - lengths[s] :, s], v) for s, p, v in hypotheses])
        )
        if order is not None:
            cache.reorder(torch.tensor(order).to(steps.device))
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
    many = 3 if is_interpreted(backend.split()[0]) else 40  # a row takes the interpreter milliseconds
    found, exact = decode(case, backend, many=many)
    reference = found if backend == "torch steps" else decode(case, "torch steps", many=many)[0]
    for one, plain, truth in zip(found, reference, exact, strict=True):
        assert error(plain, truth) < 1e-5
        assert_near(one, plain, truth, factor=3, ulps=4)


@pytest.mark.parametrize("backend", ["torch steps", "cpp-avx512 steps", "cpp-avx2 steps"])
@pytest.mark.parametrize("dim, inner", [(64, 96), (15, 7)])
def test_weights_in_bf16(dim, inner, backend):
    """What products read is rounded, and nothing else: the errors are those of torch with the same roundings."""
    case = Case(dim, 1, inner, source=True, norm_first=True, activation="relu", dtype=torch.bfloat16)
    with running_on(backend.split()[0]):
        assert case.weights().bf16 is dispatch.multiplies_bf16()
    found, exact = decode(case, backend)
    reference = decode(case, "torch steps")[0]
    for one, plain, truth in zip(found, reference, exact, strict=True):
        assert mean_error(plain, truth) < 2**-8 * float(truth.abs().max())
        assert_near(one, plain, truth, error=mean_error)


def test_threads_change_no_bit():
    case = Case(16, 4, 32, source=False, norm_first=False, activation="relu")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(decode(case, "cpp steps")[0])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_rows_that_do_not_fit_are_refused():
    case = Case(16, 4, 32, source=False, norm_first=False, activation="relu")
    weights = case.weights()
    cache = StepCache(weights, None, None, 3)
    with pytest.raises(ValueError, match="must be"):
        decoder_step(torch.zeros(2, 16), weights, cache)
    with running_on("cpp"), pytest.raises(IndexError, match="ancestor"):
        decoder_step(torch.zeros(3, 16), weights, cache)
        cache.ancestors[0, 0] = 3
        decoder_step(torch.zeros(3, 16), weights, cache)


@pytest.mark.parametrize("kind", ["torch slots", "torch graphs"])
def test_memory_that_grows_keeps_what_it_holds(kind, monkeypatch):
    case = Case(16, 4, 32, source=True, norm_first=False, activation="relu")
    monkeypatch.setattr(caches, "STEPS", 1)
    monkeypatch.setattr(caches, "PLACES", 1)
    for one, other in zip(decode(case, kind)[0], decode(case, "torch steps")[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_graphs_are_recorded_once_for_a_number_of_rows():
    case = Case(16, 4, 32, source=True, norm_first=False, activation="relu")
    steps = Steps(case, "torch graphs")
    expected = decode(case, "torch steps")[0]
    counts = []
    for _ in range(3):
        for one, other in zip(decode(case, "torch graphs", steps)[0], expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        counts.append(steps.graphs._record.recorded)
    # 8 and 128 rows; 8 again, in the memory that 128 rows had made grow.
    assert counts == [2, 3, 3]
    steps.weights = case.weights("graphs")  # others
    decode(case, "torch graphs", steps)
    assert steps.graphs._record.recorded > counts[2]


def test_two_batches_at_a_time_do_not_share_memory():
    case = Case(16, 4, 32, source=False, norm_first=False, activation="relu")
    steps = Steps(case, "torch graphs")
    x = case.normal(2, 16)
    first, second = (steps.graphs.begin(steps.weights, None, None, x) for _ in range(2))
    assert first.for_graphs and not second.for_graphs
    alone = SlotCache(steps.weights, None, None, x)
    for _ in range(3):
        y = steps.graphs.step(x, steps.weights, first, None)
        decoder_step(-x, steps.weights, second)
        torch.testing.assert_close(y, decoder_step(x, steps.weights, alone))
        x = y
    del first
    assert steps.graphs.begin(steps.weights, None, None, x).for_graphs


def test_memory_of_a_batch_under_inference_mode_serves_one_without():
    case = Case(16, 4, 32, source=True, norm_first=False, activation="relu")
    steps = Steps(case, "torch graphs")
    with torch.inference_mode():
        first = decode(case, "torch graphs", steps)[0]
    with torch.no_grad():
        second = decode(case, "torch graphs", steps)[0]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("graphs", [False, True])
def test_nothing_waits_for_the_device(graphs):
    """On tensors without memory: to read one would be an error."""
    case = Case(16, 4, 32, source=True, norm_first=False, activation="relu")
    weights = case.weights("slots", "meta")
    encoded, padding = torch.empty(5, 3, case.encoder_dim, device="meta"), torch.ones(3, 5, device="meta").bool()
    x = torch.empty(3, 16, device="meta")
    cache = SlotCache(weights, encoded, padding, x, SlotMemory(weights, x) if graphs else None)
    for rows in (12, 12, 8):
        cache.add_step(torch.empty(cache.rows(), dtype=torch.bool, device="meta"))
        assert run(torch.empty(cache.room, 16, device="meta"), weights, cache, attend).size(0) == cache.room
        cache.reorder(torch.zeros(rows, dtype=torch.int64, device="meta"))
        assert cache.rows() == rows and cache.room == (rows if not graphs else 16 if rows == 12 else 8)


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim", "places"), [(2, 8, 5), (1, 80, 70), (3, 5, 1), (1, 1, 0), (2, 64, 65)])
def test_attention_over_places(heads, head_dim, places, dtype):
    """The Triton kernel against float64: places left out, table longer than is used, keys apart, queries apart."""
    generator = torch.Generator().manual_seed(places)
    rows, slots, dim = 4, 90, heads * head_dim
    query = torch.randn(rows, 3 * dim, generator=generator).to(dtype)[:, dim : 2 * dim]
    keys_values = (torch.randn(slots, 2, 2 * dim, generator=generator) * 2).to(dtype)[:, 1]
    keys_values[7] = torch.nan  # no place is there
    index = torch.randint(8, slots, (rows, places + 3), generator=generator, dtype=torch.int32)
    index[:, places:] = 7
    index[1, ::2] = -1
    index[2, :] = -1
    length = torch.tensor([places], dtype=torch.int32)
    exact = torch.zeros(rows, dim, dtype=torch.float64)
    for row in range(rows):
        kept = [slot for slot in index[row, :places].tolist() if slot >= 0]
        k, v = keys_values[kept].double().chunk(2, dim=1)
        for head in range(heads if kept else 0):
            own = slice(head * head_dim, (head + 1) * head_dim)
            shares = (k[:, own] @ query[row, own].double() / head_dim**0.5).softmax(0)
            exact[row, own] = shares @ v[:, own]
    with running_on("triton") as device:
        query, keys = query.to(device), caches.Keys(*(t.to(device) for t in (keys_values, index, length)))
        found = attention("triton")(query, keys, heads).cpu()
        plain = attention("torch")(query, keys, heads).cpu()
    # The interpreter truncates to bf16.
    assert_near(found, plain, exact, ulps=1.0 if dtype == torch.bfloat16 and device.type == "cpu" else 0.5)
