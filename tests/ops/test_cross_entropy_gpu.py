"""The GPU kernels of cross_entropy: every option and layout, interpreted where there is no GPU; sizes that need one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyseq.ops.cross_entropy import KERNELS, Options, reference
from support.backends import running_on

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")

IGNORE = -100
BACKENDS = ["triton", "cuda"]
OPTIONS = {
    "plain": lambda classes: Options(),
    "smoothed": lambda classes: Options(0.1, "fairseq", z_loss=1e-2),
    "soft cap": lambda classes: Options(soft_cap=3.0),
    "all": lambda classes: Options(0.2, "torch", 1e-2, 3.0, torch.linspace(0.0, 2.0, classes)),
}
# Row stride beyond the classes, and elements before the first row: rows that begin at multiples of 16 bytes, all
# equally far from one, and each elsewhere.
LAYOUTS = {"aligned": (3, 0), "shifted": (3, 5), "odd": (0, 0), "odd and shifted": (2, 1)}
CLASSES = 45


def matrix(rows: int, classes: int, extra: int, before: int, dtype: torch.dtype) -> Tensor:
    """A view into memory that is nan where it is not of the view."""
    memory = torch.full((before + rows * (classes + extra) + 16,), float("nan"), dtype=dtype)
    return memory[before:].as_strided((rows, classes), (classes + extra, 1), before)


def example(options: Options, layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, targets, row weights, and the gradient that the reference gives for them, in fp32."""
    classes = CLASSES
    generator = torch.Generator().manual_seed(classes)
    logits = matrix(4, classes, *LAYOUTS[layout], dtype).copy_(torch.randn(4, classes, generator=generator) * 3)
    target = torch.randint(classes, (4,), generator=generator)
    target[0], target[1], target[2] = logits[0].argmax(), IGNORE, classes - 1
    weight = torch.rand(4, generator=generator)
    leaf = logits.float().clone().requires_grad_()
    (reference(leaf, target, options, IGNORE).loss * weight).sum().backward()
    assert leaf.grad is not None
    return logits, target, weight, leaf.grad


def assert_untouched_around(view: Tensor) -> None:
    memory = torch.as_strided(view, (view.untyped_storage().nbytes() // view.element_size(),), (1,), 0).clone()
    memory.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(float("nan"))
    assert memory.isnan().all()


def on(device: torch.device, view: Tensor) -> Tensor:
    """The view in a copy of its memory on a device."""
    memory = torch.as_strided(view, (view.untyped_storage().nbytes() // view.element_size(),), (1,), 0).clone()
    return memory.to(device).as_strided(view.shape, view.stride(), view.storage_offset())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_and_layout_matches_the_reference(backend: str, layout: str, name: str) -> None:
    matches_the_reference(backend, layout, name, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_logits_match_the_reference(backend: str, dtype: torch.dtype) -> None:
    matches_the_reference(backend, "odd", "all", dtype)
    matches_the_reference(backend, "shifted", "smoothed", dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_triton_reads_long_rows_in_blocks(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("pyseq.kernels.cross_entropy")
    monkeypatch.setattr(kernels, "launch", lambda span, element_size: kernels.Launch(32, 1, False))
    monkeypatch.setattr(kernels, "gradient_launch", lambda span: kernels.Launch(32, 1, False))
    matches_the_reference("triton", layout, "all", torch.float32)


def matches_the_reference(backend: str, layout: str, name: str, dtype: torch.dtype) -> None:
    options = OPTIONS[name](CLASSES)
    logits, target, weight, want = example(options, layout, dtype)
    exact = reference(logits.float(), target, options, IGNORE)
    with running_on(backend) as device:
        kernel = KERNELS[backend]
        if options.weight is not None:
            options = options._replace(weight=options.weight.to(device))
        target, weight = target.to(device), weight.to(device)
        out = kernel.forward(on(device, logits), target, options, IGNORE)
        grads = []
        for over_logits in (True, False):
            source = on(device, logits)
            grad = source if over_logits else on(device, matrix(4, CLASSES, 1, 0, dtype))
            together = kernel.loss_and_gradient(source, target, options, IGNORE, weight, grad)
            source = on(device, logits)
            apart = source if over_logits else on(device, matrix(4, CLASSES, 1, 0, dtype))
            kernel.backward(weight, source, target, out.stats, options, IGNORE, apart)
            grads += [grad, apart]
            for got in (out, together):
                torch.testing.assert_close(got.loss.cpu(), exact.loss, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(got.nll.cpu(), exact.nll_loss, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(got.z_loss(options).cpu(), exact.z_loss, rtol=1e-6, atol=1e-6)
                assert torch.equal(got.correct.cpu(), exact.correct) and exact.correct.any()
    tolerance = {
        torch.float32: {"rtol": 3e-6, "atol": 3e-7},
        torch.bfloat16: {"rtol": 2**-7, "atol": 1e-7},  # the interpreter truncates where a GPU rounds
        torch.float16: {"rtol": 2**-11, "atol": 3e-7},
    }[dtype]
    for grad in grads:
        torch.testing.assert_close(grad.cpu().float(), want, **tolerance)
        assert (grad[1] == 0).all()
        assert_untouched_around(grad.cpu())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [1.0, 0.5, float("inf")])
def test_scale_leaves_ignored_rows(backend: str, factor: float) -> None:
    for layout in LAYOUTS:
        grad = matrix(4, 37, *LAYOUTS[layout], torch.float32).copy_(torch.arange(148.0).view(4, 37) + 1)
        grad[2] = 0.0
        want = grad * factor
        want[2] = 0.0
        with running_on(backend) as device:
            got, target = on(device, grad), torch.tensor([3, 0, IGNORE, 1], device=device)
            KERNELS[backend].scale_(got, torch.tensor(factor, device=device), target, IGNORE)
        assert torch.equal(got.cpu(), want)
        assert_untouched_around(got.cpu())


@pytest.mark.parametrize("backend", BACKENDS)
def test_row_weights_are_numbers_or_tensors(backend: str) -> None:
    logits, target, weight, want = example(Options(), "odd", torch.float32)
    with running_on(backend) as device:
        for given, factor in ((2.0, 2.0), (torch.tensor(3.0), 3.0), (torch.full((8,), 4.0)[::2], 4.0)):
            grad = torch.empty(4, CLASSES, device=device)
            given = given.to(device) if isinstance(given, Tensor) else given
            KERNELS[backend].loss_and_gradient(on(device, logits), target.to(device), Options(), IGNORE, given, grad)
            scaled = want * (factor / weight).unsqueeze(1)
            torch.testing.assert_close(grad.cpu(), scaled, rtol=3e-6, atol=3e-7)
        with pytest.raises(ValueError, match="row_weight"):
            grad = torch.empty(4, CLASSES, device=device)
            KERNELS[backend].loss_and_gradient(
                on(device, logits), target.to(device), Options(), IGNORE, torch.ones(5, device=device), grad
            )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [CLASSES, -1, 2**40])
def test_a_target_out_of_range_gives_nan_and_nothing_else(backend: str, bad: int) -> None:
    options = Options(1.0, "torch")  # the nll, which is nan, has no weight
    logits, target, weight, want = example(options, "odd", torch.float32)
    target[3] = bad
    with running_on(backend) as device:
        grad = on(device, logits)
        out = KERNELS[backend].loss_and_gradient(grad, target.to(device), options, IGNORE, weight.to(device), grad)
        apart = KERNELS[backend].backward(
            weight.to(device), on(device, logits), target.to(device), out.stats, options, IGNORE
        )
    assert torch.equal(out.loss.cpu().isnan(), torch.arange(4) == 3)
    for got in (grad, apart):
        assert got[3].isnan().all()
        torch.testing.assert_close(got.cpu()[:3], want[:3], rtol=3e-6, atol=3e-7)
    assert_untouched_around(grad.cpu())


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_and_no_classes(backend: str) -> None:
    with running_on(backend) as device:
        for shape in ((0, 5), (3, 0)):
            logits = torch.empty(shape, device=device)
            target = torch.full((shape[0],), IGNORE, device=device)
            out = KERNELS[backend].loss_and_gradient(logits, target, Options(), IGNORE, 1.0, torch.empty_like(logits))
            assert (out.loss == 0).all() and not out.correct.any()
            KERNELS[backend].scale_(logits, torch.tensor(2.0, device=device), target, IGNORE)


def test_triton_launch_is_a_pure_function_of_sizes() -> None:
    kernels = pytest.importorskip("pyseq.kernels.cross_entropy")
    for cols in [1, 2, 1000, 1024, 1025, 8192, 8193, 9736, 32000, 50257, 128256, 1 << 20]:
        for element_size in (2, 4):
            block, num_warps, whole = kernels.launch(cols, element_size)
            assert block & (block - 1) == 0 and num_warps & (num_warps - 1) == 0 and 1 <= num_warps <= 32
            assert whole == (cols <= 8192) and (block >= cols or not whole)
            assert block // num_warps <= 1024  # 32 elements of a thread: more of them spill
            assert cols * element_size <= kernels.LARGE_ROW or whole or num_warps == 32


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

# What a warp, a block and a cluster take; the odd vocabulary of GPT-2 and the even one of Llama 3.
GPU_SIZES = [1, 7, 2049, 8192, 50257, 128256]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", GPU_SIZES)
def test_real_sizes(backend: str, dtype: torch.dtype, classes: int) -> None:
    with running_on(backend) as device:
        for extra in (0, 3):
            logits = torch.randn(96, classes + extra, device=device).mul_(3).to(dtype)[:, :classes]
            target = torch.randint(classes, (96,), device=device)
            target[5] = IGNORE
            options = Options(0.1, "fairseq")
            leaf = logits.double().requires_grad_()
            exact = reference(leaf, target, options, IGNORE)
            exact.loss.sum().backward()
            assert leaf.grad is not None
            runs = []
            for _ in range(3):
                grad = logits.clone(memory_format=torch.preserve_format)
                runs.append((grad, KERNELS[backend].loss_and_gradient(grad, target, options, IGNORE, 1.0, grad)))
            grad, out = runs[0]
            torch.testing.assert_close(out.loss.double(), exact.loss.detach(), rtol=1e-6, atol=1e-6)
            assert torch.equal(out.correct, exact.correct)
            plain = logits.clone().requires_grad_()
            reference(plain, target, options, IGNORE).loss.sum().backward()
            assert plain.grad is not None
            errors = [(got.double() - leaf.grad).abs().max() for got in (grad, plain.grad)]
            # The exponential of GPUs is off by 2^-22.5, which is more than the rounding to fp32.
            ulps = 2.0 if dtype == torch.float32 else 0.5
            assert errors[0] <= max(1.5 * errors[1], ulps * torch.finfo(dtype).eps * leaf.grad.abs().max())
            for again, results in runs[1:]:  # bitwise repeatable
                assert torch.equal(again, grad) and all(torch.equal(a, b) for a, b in zip(results, out))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_more_elements_than_32_bits_count(backend: str) -> None:
    rows, classes = 66_000, 32_771
    with running_on(backend) as device:
        logits = torch.randn(64, classes, device=device, dtype=torch.bfloat16).repeat(1032, 1)[:rows]
        target = torch.arange(rows, device=device) % 64
        few = logits[:64].clone()
        want = KERNELS[backend].loss_and_gradient(few, target[:64], Options(0.1), IGNORE, 1.0, few)
        got = KERNELS[backend].loss_and_gradient(logits, target, Options(0.1), IGNORE, 1.0, logits)
        assert torch.equal(got.loss[-16:], want.loss[(torch.arange(rows, device=device) % 64)[-16:]])
        assert torch.equal(logits[-16:], few[(torch.arange(rows, device=device) % 64)[-16:]])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("classes", [1000, 50257, 128256])
def test_capture_and_replay(backend: str, classes: int) -> None:
    with running_on(backend) as device:
        logits = torch.randn(64, classes, device=device, dtype=torch.bfloat16)
        target = torch.randint(classes, (64,), device=device)
        grad, factor = torch.empty_like(logits), torch.tensor(0.5, device=device)

        def step() -> Tensor:
            out = KERNELS[backend].loss_and_gradient(logits, target, Options(0.1), IGNORE, 1.0, grad)
            KERNELS[backend].scale_(grad, factor, target, IGNORE)
            return out.loss

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        logits.normal_()
        graph.replay()
        replayed = grad.clone()
        assert torch.equal(captured, step()) and torch.equal(replayed, grad)
