"""Every back end of layer_norm with dropout and a residual, against a float64 oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops.dropout import keep_mask
from support.accuracy import assert_near, error
from support.backends import is_interpreted, needs_core, running_on, using_isa

# The interpreter computes with numpy, which warns where nan is the right answer.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["cpp-avx512", "cpp-avx2", "cpp-portable", "triton"]
SEED = 987654321987654321


@dataclass
class Case:
    """An input, and the gradients that come back for y and z."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    grad_y: Tensor
    grad_z: Tensor
    p: float
    eps: float = 1e-5

    def to(self, dtype: torch.dtype) -> Case:
        tensors = (self.x, self.residual, self.weight, self.bias, self.grad_y, self.grad_z)
        return Case(*(None if t is None else t.to(dtype) for t in tensors), self.p, self.eps)  # type: ignore[arg-type]


def some(
    rows: int,
    cols: int,
    dtype: torch.dtype = torch.float32,
    p: float = 0.0,
    residual: bool = True,
    affine: bool = True,
    shift: float = 0.0,
) -> Case:
    generator = torch.Generator().manual_seed(rows * 1_000_003 + cols)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    x = normal(rows, cols) + shift
    grad_y, grad_z = normal(rows, cols), normal(rows, cols)
    weight, bias = (normal(cols) + 1, normal(cols)) if affine else (None, None)
    return Case(x, normal(rows, cols) if residual else None, weight, bias, grad_y, grad_z, p)


NAMES = ("y", "z", "x", "residual", "weight", "bias")


def run(backend: str, case: Case, seed: int = SEED) -> dict[str, Tensor]:
    """y, z, and the gradients of the inputs."""
    with running_on(backend) as device:
        leaves = [
            None if t is None else t.detach().to(device).requires_grad_()
            for t in (case.x, case.residual, case.weight, case.bias)
        ]
        x, residual, weight, bias = leaves
        assert x is not None
        y, z = ops.layer_norm(
            x,
            weight,
            bias,
            case.eps,
            residual=residual,
            p=case.p,
            seed=torch.tensor([seed], device=device),
            return_sum=True,
        )
        torch.autograd.backward([y, z], [case.grad_y.to(device), case.grad_z.to(device)])
    assert y.dtype == z.dtype == case.x.dtype
    found = [y.detach(), z.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]
    return {name: t.cpu() for name, t in zip(NAMES, found) if t is not None}


def oracle(case: Case) -> dict[str, Tensor]:
    """The definition and its derivative, written out in float64."""
    wide = case.to(torch.float64)
    cols = wide.x.size(1)
    keep = keep_mask(torch.tensor([SEED]), wide.x.numel(), case.p).view(wide.x.shape)
    scale = 1 / (1 - case.p) if case.p >= 2**-17 else 1.0  # less than half a step of the random numbers: no dropout
    kept_scale = torch.where(keep, scale, 0.0).double()
    z = torch.where(keep, wide.x * kept_scale, 0.0) + (0.0 if wide.residual is None else wide.residual)
    mean = z.mean(1, keepdim=True)
    deviation = ((z - mean).square().mean(1, keepdim=True) + case.eps).sqrt()
    normal = (z - mean) / deviation
    weight = torch.ones(cols).double() if wide.weight is None else wide.weight
    g = wide.grad_y * weight
    of_z = (g - g.mean(1, keepdim=True) - normal * (g * normal).mean(1, keepdim=True)) / deviation + wide.grad_z
    found = {
        "y": normal * weight + (0.0 if wide.bias is None else wide.bias),
        "z": z,
        "x": of_z * kept_scale,
        "residual": of_z,
        "weight": (wide.grad_y * normal).sum(0),
        "bias": wide.grad_y.sum(0),
    }
    return {name: t for name, t in found.items() if getattr(case, name, t) is not None}


# One less than, equal to and one more than vectors (4, 8, 16) and tiles of random numbers (128); the widths of models;
# and a row longer than the blocks that sums are taken of (1024).
COLUMNS = [1, 2, 3, 4, 5, 8, 15, 17, 31, 127, 128, 129, 512, 1024, 1025, 2500]
COLUMNS_INTERPRETED = [1, 3, 128, 129, 512]  # a row takes the interpreter milliseconds


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_error_is_near_that_of_the_reference(backend: str, dtype: torch.dtype, p: float, residual: bool) -> None:
    exact, plain, result = [], [], []
    for cols in COLUMNS_INTERPRETED if is_interpreted(backend) else COLUMNS:
        case = some(5 if is_interpreted(backend) else 40, cols, dtype, p, residual, affine=cols % 3 > 0)
        exact.append(oracle(case))
        plain.append(run("torch", case))
        result.append(run(backend, case))
    for name in NAMES:
        want, theirs, ours = ([r[name].flatten() for r in results if name in r] for results in (exact, plain, result))
        if want:
            # The interpreter rounds products that a GPU fuses with their sums, and truncates to bf16, z and then y.
            factor = 2.0 if backend == "triton" else 1.5
            ulps = 2.0 if backend == "triton" and dtype == torch.bfloat16 else 0.5
            assert_near(torch.cat(ours), torch.cat(theirs), torch.cat(want), factor=factor, ulps=ulps, name=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_far_from_zero_keep_their_digits(backend: str) -> None:
    """A variance taken as the difference of two means of squares would have none left here."""
    case = some(16, 512, shift=1000.0)
    want, theirs, ours = oracle(case), run("torch", case), run(backend, case)
    for name in NAMES:
        assert_near(ours[name], theirs[name], want[name], factor=2.0, name=name)
    assert float((ours["y"].double() - want["y"]).abs().max()) < 1e-3


def unaligned(t: Tensor) -> Tensor:
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "unaligned": unaligned,
    "transposed": lambda t: t.t().contiguous().t() if t.dim() == 2 else t,
    "every other": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t),
    "no rows": lambda t: t[:0] if t.dim() == 2 else t,
    "one row": lambda t: t[:1] if t.dim() == 2 else t,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend: str, layout: str) -> None:
    change = LAYOUTS[layout]
    plain = some(9, 37, p=0.5)
    assert plain.residual is not None and plain.weight is not None and plain.bias is not None
    tensors = (plain.x, plain.residual, plain.weight, plain.bias, plain.grad_y, plain.grad_z)
    changed = Case(*(change(t) for t in tensors), plain.p)
    contiguous = Case(*(change(t).contiguous() for t in tensors), plain.p)
    for got, want in zip(run(backend, changed).values(), run(backend, contiguous).values()):
        assert torch.equal(got, want)
    if layout == "no rows":
        found = run(backend, changed)
        assert not found["weight"].any() and not found["bias"].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_inf_and_nan_stay_in_their_row(backend: str) -> None:
    case = some(4, 40, p=0.5)
    keep = keep_mask(torch.tensor([SEED]), 160, 0.5).view(4, 40)
    for row, value in ((1, float("inf")), (2, float("nan"))):
        dropped = int((~keep[row]).nonzero()[0])
        case.x[row, dropped] = value  # dropped: of no consequence
    assert all(t.isfinite().all() for t in run(backend, case).values())
    case.x[1, int(keep[1].nonzero()[0])] = float("inf")
    found = run(backend, case)
    assert found["y"][1].isnan().any() and found["x"][1].isnan().any()
    for row in (0, 2, 3):
        assert all(found[name][row].isfinite().all() for name in ("y", "z", "x", "residual"))


@needs_core
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_repeatable_and_independent_of_threads(isa: str) -> None:
    case = some(700, 257, p=0.2)
    before = torch.get_num_threads()
    results = []
    with using_isa(isa):
        for threads in (1, 2, 3, 7, 2):
            torch.set_num_threads(threads)
            try:
                results.append(run("cpp", case))
            finally:
                torch.set_num_threads(before)
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in NAMES)


def sizes_of_terms(case: Case, exact: dict[str, Tensor]) -> dict[str, float]:
    """The largest of what is added up to each result. Rounding is relative to that, and sums may cancel.

    Where dropout leaves a row one number, the gradient of that number is nothing but terms that cancel. And numbers
    that are close to each other, for their size, are far from exact once their mean is subtracted.
    """
    wide, z = case.to(torch.float64), exact["z"]
    deviation = (z.var(1, unbiased=False, keepdim=True) + case.eps).sqrt()
    lost = 1 + z.abs().amax(1, keepdim=True) / deviation
    weight = torch.ones(z.size(1)).double() if wide.weight is None else wide.weight.abs()
    bias = 0.0 if wide.bias is None else wide.bias.abs()
    grad = wide.grad_y.abs()
    of_z = (grad * weight).amax(1, keepdim=True) / deviation * lost + wide.grad_z.abs()
    terms = {"y": lost * weight + bias, "z": z.abs(), "x": of_z / (1 - case.p), "residual": of_z}
    terms |= {"weight": (grad * lost).sum(0), "bias": grad.sum(0)}
    return {name: float(sizes.max()) for name, sizes in terms.items()}


@needs_core
@given(rows=st.integers(0, 70), cols=st.integers(1, 300), p=st.floats(0, 0.9), parts=st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_any_shape(rows: int, cols: int, p: float, parts: int) -> None:
    case = some(rows, cols, p=p, residual=bool(parts & 1))
    case.weight = case.weight if parts & 2 else None
    case.bias = case.bias if parts & 4 else None
    want, ours = oracle(case), run("cpp", case)
    assert want.keys() == ours.keys()
    if rows == 0:
        assert all(result.count_nonzero() == 0 for result in ours.values())
        return
    sizes = sizes_of_terms(case, want)
    for name, result in ours.items():
        allowed = 4 * torch.finfo(torch.float32).eps * sizes[name]
        assert error(result, want[name]) <= allowed, (name, allowed)


def test_without_anything_before_it_is_that_of_torch() -> None:
    case = some(7, 33).to(torch.float64)
    want = F.layer_norm(case.x, (33,), case.weight, case.bias)
    assert torch.equal(ops.layer_norm(case.x, case.weight, case.bias), want)


@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
def test_frozen_inputs_and_unused_outputs(backend: str) -> None:
    case = some(6, 20, p=0.4)
    with running_on(backend) as device:
        seed = torch.tensor([SEED], device=device)
        tensors = [t.to(device) for t in (case.x, case.residual, case.weight, case.bias) if t is not None]

        def gradients(trained: tuple[int, ...], only_z: bool) -> list[Tensor | None]:
            x, residual, weight, bias = leaves = [t.clone().requires_grad_(i in trained) for i, t in enumerate(tensors)]
            y, z = ops.layer_norm(x, weight, bias, residual=residual, p=0.4, seed=seed, return_sum=True)
            (z if only_z else y).sum().backward()
            return [leaf.grad for leaf in leaves]

        every = gradients((0, 1, 2, 3), only_z=False)
        for trained in ((0,), (1,), (2,), (3,)):
            some_of = gradients(trained, only_z=False)
            for i, (one, all_) in enumerate(zip(some_of, every)):
                assert (one is not None) == (i in trained)
                assert one is None or (all_ is not None and torch.equal(one, all_))
        of_z = gradients((0, 1), only_z=True)
        assert of_z[1] is not None and bool((of_z[1] == 1).all())


def test_gradcheck() -> None:
    case = some(3, 7).to(torch.float64)
    tensors = [t.requires_grad_() for t in (case.x, case.residual, case.weight, case.bias) if t is not None]
    seed = torch.tensor([SEED])

    def both(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return ops.layer_norm(x, weight, bias, residual=residual, p=0.3, seed=seed, return_sum=True)

    assert torch.autograd.gradcheck(both, tensors)


@needs_core
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("residual", [False, True])
def test_opcheck(p: float, residual: bool) -> None:
    case = some(5, 17, p=p, residual=residual)
    seed = torch.tensor([SEED]) if p else None
    x, added, weight, bias = (
        None if t is None else t.requires_grad_() for t in (case.x, case.residual, case.weight, case.bias)
    )
    torch.library.opcheck(torch.ops.pyseq.layer_norm.default, (x, added, weight, bias, 1e-5, p, seed))
    with torch.no_grad():
        _, z, mean, rstd = torch.ops.pyseq.layer_norm(x, added, weight, bias, 1e-5, p, seed)
        z = z if z.numel() else case.x.detach()
        arguments = (case.grad_y, case.grad_z, z, mean, rstd, case.weight, 1e-5, p, seed, residual)
        torch.library.opcheck(torch.ops.pyseq.layer_norm_backward.default, arguments)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_compiles_to_one_graph(backend: str) -> None:
    def block(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seed: Tensor) -> Tensor:
        y, z = ops.layer_norm(x * 2, weight, bias, residual=residual, p=0.3, seed=seed, return_sum=True)
        return y + z

    with running_on(backend):
        torch.compiler.reset()
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        for rows in (5, 6, 7):
            case = some(rows, 19)
            found = []
            for fn in (compiled, block):
                leaves = [t.clone().requires_grad_() for t in (case.x, case.residual, case.weight, case.bias)]  # type: ignore[union-attr]
                out = fn(*leaves, torch.tensor([SEED]))
                out.square().sum().backward()
                found.append([out, *(leaf.grad for leaf in leaves)])
            assert all(torch.equal(a, b) for a, b in zip(*found))


def test_bad_arguments_are_told() -> None:
    x, weight = torch.ones(3, 4), torch.ones(4)
    with pytest.raises(ValueError, match="does not fit the last dimension"):
        ops.layer_norm(x, torch.ones(3))
    with pytest.raises(ValueError, match="differ in shape"):
        ops.layer_norm(x, weight, residual=torch.ones(4))
    with pytest.raises(TypeError, match="differ"):
        ops.layer_norm(x, weight, residual=x.double())
    with pytest.raises(ValueError, match="probability must be in"):
        ops.layer_norm(x, weight, p=2.0)
    with pytest.raises(TypeError, match="floating-point"):
        ops.layer_norm(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="needs a dimension"):
        ops.layer_norm(torch.tensor(1.0))


@needs_core
def test_a_second_derivative_is_refused() -> None:
    x = some(3, 5).x.requires_grad_()
    with ops.backend("cpp"):
        (grad,) = torch.autograd.grad(ops.layer_norm(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gpu_gives_what_the_cpu_gives(dtype: torch.dtype) -> None:
    case = some(300, 512, dtype, p=0.3)
    want, theirs = oracle(case), run("torch", case)
    ours = run("triton", case)
    for name in NAMES:
        assert_near(ours[name], theirs[name], want[name], name=name)
