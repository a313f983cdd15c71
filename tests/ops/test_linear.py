"""Linear layers by the core's product: values and gradients, and everything that is left to torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pyseq.ops as ops
from pyseq.ops import dispatch
from pyseq.ops.linear import LEAST_FEATURES, LEAST_ROWS, reference
from support.accuracy import assert_near, mean_error
from support.backends import needs_core, running_on, using_isa

BACKENDS = ["cpp-avx512", "cpp-avx2", "cpp-portable"]
NAMES = ("y", "x", "weight", "bias")
ACTIVATIONS: list[Any] = ["none", "relu"]


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def case(rows: int = LEAST_ROWS, features: int = 48, classes: int = 40, bias: bool = True) -> list[Tensor | None]:
    """x, weight and bias."""
    return [some(rows, features), some(classes, features), some(classes) if bias else None]


def run(inputs: list[Tensor | None], activation: Any) -> dict[str, Tensor]:
    """y, and the gradients of a sum of y weighted by normal numbers."""
    x, weight, bias = leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    assert x is not None and weight is not None
    y = ops.linear(x, weight, bias, activation=activation)
    y.backward(some(*y.shape).to(y.dtype))
    found = [y.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]
    return {name: t for name, t in zip(NAMES, found) if t is not None}


def used_kernel(y: Tensor) -> bool:
    return "_Linear" in type(y.grad_fn).__name__


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_error_is_near_that_of_torch(backend: str, activation: str, bias: bool) -> None:
    for rows, features, classes in ((257, 33, 47), (300, 128, 384), (1000, 256, 130)):
        inputs = case(rows, features, classes, bias)
        with running_on(backend):
            ours = run(inputs, activation)
        with running_on("torch"):
            theirs = run(inputs, activation)
            want = run([None if t is None else t.double() for t in inputs], activation)
        assert ours.keys() == want.keys()
        for name in ours:
            assert_near(ours[name], theirs[name], want[name], ulps=0.0, name=name, error=mean_error)


@needs_core
def test_shapes_and_layouts() -> None:
    weight, bias = some(40, 48), some(40)
    x = some(4, 100, 48)
    layouts = [x, x.transpose(0, 1), x[:, ::2].repeat(1, 2, 1)[:, :80], some(1).expand(300, 48), some(48, 300).t()]
    layouts.append(torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape))
    with ops.backend("cpp"):
        for layout in layouts:
            for w in (weight, weight.t().contiguous().t(), torch.cat([weight, weight], dim=1)[:, :48]):
                leaf, w = layout.detach().requires_grad_(), w.detach().requires_grad_()
                y = ops.linear(leaf, w, bias)
                assert used_kernel(y) and y.is_contiguous() and y.shape == (*layout.shape[:-1], 40)
                torch.testing.assert_close(y, F.linear(layout, weight, bias), rtol=1e-5, atol=1e-5)
                y.sum().backward()  # an expanded gradient
                want = weight.sum(0).expand_as(layout)
                torch.testing.assert_close(leaf.grad, want, rtol=1e-5, atol=1e-5)
                rows = layout.reshape(-1, 48).sum(0).expand_as(weight)
                torch.testing.assert_close(w.grad, rows, rtol=1e-4, atol=1e-3)


@needs_core
def test_what_the_kernel_does_not_take_is_torchs() -> None:
    def is_torchs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
        y = ops.linear(x, weight, bias)
        assert torch.equal(y, F.linear(x, weight, bias))
        return not used_kernel(y)

    x, weight, bias = (t.requires_grad_() for t in case() if t is not None)
    with ops.backend("cpp"):
        assert not is_torchs(x.detach(), weight, bias.detach() * 0)
        assert is_torchs(x[: LEAST_ROWS - 1], weight, bias) and is_torchs(x[:0], weight) and is_torchs(x[0], weight)
        assert is_torchs(x, weight[: LEAST_FEATURES - 1]) and is_torchs(x[:, :1], weight[:, :1])
        assert is_torchs(x.double(), weight.double()) and is_torchs(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert is_torchs(x, weight, bias) and ops.linear(x, weight).dtype == torch.bfloat16
        assert is_torchs(x, weight[0]) and is_torchs(x, weight, bias[:1])
        assert ops.linear(x.to("meta"), weight.to("meta")).device.type == "meta"
        with pytest.raises(RuntimeError):
            ops.linear(x, weight.double())
        with pytest.raises(RuntimeError):
            ops.linear(x, weight[:, :-1])
    with ops.backend("torch"):
        assert is_torchs(x, weight, bias)


@needs_core
def test_transforms_and_modes_of_torch_see_a_plain_linear() -> None:
    x, weight, bias = (t for t in case() if t is not None)
    stack = torch.stack([x, x + 1])
    with ops.backend("cpp"):
        mapped = torch.vmap(lambda one: ops.linear(one, weight, bias))(stack)
        torch.testing.assert_close(mapped, F.linear(stack, weight, bias))
        grad = torch.func.grad(lambda w: ops.linear(x, w, bias).sum())(weight)
        torch.testing.assert_close(grad, x.sum(0).expand_as(weight), rtol=1e-4, atol=1e-4)
        _, tangent = torch.func.jvp(lambda one: ops.linear(one, weight, bias), (x,), (x,))
        torch.testing.assert_close(tangent, F.linear(x, weight))
        with FlopCounterMode(display=False) as counter:
            ops.linear(x, weight)
        assert counter.get_total_flops() == 2 * x.numel() * len(weight)


@needs_core
def test_the_kernel_is_chosen_where_it_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    class Processor:
        def __init__(self, vendor: str, *isas: str) -> None:
            self.vendor, self.isas = (lambda: vendor), (lambda: isas)

    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    processors = (
        (("intel", "avx512", "avx2", "portable"), "torch"),
        (("amd", "avx512", "avx2", "portable"), "cpp"),
        (("intel", "avx2", "portable"), "cpp"),
        (("other", "portable"), "torch"),
    )
    for processor, chosen in processors:
        dispatch._decide.cache_clear()
        monkeypatch.setattr(dispatch, "required_core", lambda processor=processor: Processor(*processor))
        assert dispatch.choose("linear", "cpu", torch.float32) == chosen
        with ops.backend("cpp"):
            assert dispatch.choose("linear", "cpu", torch.float32) == "cpp"
            assert dispatch.choose("linear", "cpu", torch.bfloat16) == "torch"
    dispatch._decide.cache_clear()


@needs_core
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_repeatable_and_independent_of_threads(isa: str) -> None:
    inputs, before, results = case(700, 130, 257), torch.get_num_threads(), []
    with ops.backend("cpp"), using_isa(isa):
        for threads in (1, 2, 3, 7, 2):
            torch.set_num_threads(threads)
            try:
                results.append(run(inputs, "relu"))
            finally:
                torch.set_num_threads(before)
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in NAMES)


@needs_core
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_frozen_inputs(activation: Any) -> None:
    inputs = [t for t in case() if t is not None]
    with ops.backend("cpp"):

        def gradients(trained: tuple[int, ...]) -> list[Tensor | None]:
            leaves = [t.clone().requires_grad_(i in trained) for i, t in enumerate(inputs)]
            ops.linear(*leaves, activation=activation).square().sum().backward()
            return [leaf.grad for leaf in leaves]

        every = gradients((0, 1, 2))
        for trained in ((0,), (1,), (2,), (1, 2)):
            for i, (one, all_) in enumerate(zip(gradients(trained), every)):
                assert (one is not None) == (i in trained)
                assert one is None or all_ is None or i == 2 or torch.equal(one, all_)
                torch.testing.assert_close(one, all_ if i in trained else None, rtol=1e-5, atol=1e-3)
        with torch.no_grad():
            assert ops.linear(*inputs).grad_fn is None


@needs_core
def test_relu_is_that_of_torch_at_zero_and_nan() -> None:
    x = torch.zeros(LEAST_ROWS, 32)
    x[0, 0], x[1, 0], x[2, 0], x[3, 0] = float("nan"), float("inf"), -1.0, 1.0
    weight = torch.eye(32)[:, :32].contiguous()
    found = []
    for backend in ("cpp", "torch"):
        with ops.backend(backend):
            leaf = torch.where(x.isinf(), 3.0, x).requires_grad_()
            y = ops.linear(leaf, weight, activation="relu")
            y.backward(torch.full_like(y, 2.0))
            assert leaf.grad is not None
            found.append((y.detach(), leaf.grad, ops.linear(x, weight, activation="relu")))
    for ours, theirs in zip(*found):
        assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))


def test_gradcheck() -> None:
    inputs = [some(*shape).double().requires_grad_() for shape in ((3, 5), (4, 5), (4,))]
    for relu in (False, True):
        assert torch.autograd.gradcheck(lambda *leaves: reference(*leaves, relu), inputs)  # noqa: B023


@needs_core
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives(activation: Any) -> None:
    found = []
    for backend in ("cpp", "torch"):
        with ops.backend(backend):
            leaves = [t.detach().requires_grad_() for t in case() if t is not None]
            y = ops.linear(*leaves, activation=activation)
            assert used_kernel(y) == (backend == "cpp")
            first = torch.autograd.grad((y**3).mean(), leaves, create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@needs_core
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_opcheck(relu: bool, bias: bool) -> None:
    inputs = [None if t is None else t.requires_grad_() for t in case(5, 7, 3, bias)]  # the operator takes any size
    torch.library.opcheck(torch.ops.pyseq.linear.default, (*inputs, relu))
    x, weight, _ = (None if t is None else t.detach() for t in inputs)
    y = torch.ops.pyseq.linear(x, weight, None, relu)
    for wanted in ([True, True, True], [True, False, True], [False, True, False]):
        arguments = (torch.ones_like(y), x, weight, y if relu else None, wanted)
        torch.library.opcheck(torch.ops.pyseq.linear_backward.default, arguments)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_compiles_to_one_graph(backend: str) -> None:
    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.linear(x * 2, weight, bias, activation="relu") + 1

    with running_on(backend):
        torch.compiler.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for rows in (LEAST_ROWS + 1, LEAST_ROWS + 2, 2 * LEAST_ROWS, 5):
            found = []
            for fn in (compiled, layer):
                leaves = [t.detach().requires_grad_() for t in case(rows) if t is not None]
                y = fn(*leaves)
                y.square().sum().backward()
                found.append([y, *(leaf.grad for leaf in leaves)])
            assert all(torch.equal(a, b) for a, b in zip(*found))


def test_an_activation_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="'none' or 'relu', not 'gelu'"):
        ops.linear(torch.ones(2, 3), torch.ones(4, 3), activation="gelu")  # type: ignore[arg-type]


@needs_core
def test_a_parameter_of_another_type_is_left_to_it() -> None:
    class Watched(Tensor):
        pass

    weight = nn.Parameter(some(40, 48).as_subclass(Watched))
    with ops.backend("cpp"):
        y = ops.linear(some(LEAST_ROWS, 48), weight)
    assert isinstance(y, Watched)
