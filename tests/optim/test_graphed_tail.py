"""The norm and the update as CUDA graphs end where they end without: what is compared for, and what is recorded anew.

Without a GPU what is recorded runs again, on the addresses of its first time, which are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyseq.errors import ConfigError
from pyseq.ops import dispatch
from pyseq.ops.adam import CppKernel as AdamKernel
from pyseq.ops.cuda_graphs import Record, record
from pyseq.ops.grad_norm import CppKernel as NormKernel
from pyseq.optim.adam import Adam
from pyseq.optim.graphed_tail import GraphedTail
from pyseq.optim.sgd import SGD
from pyseq.training.precision import Precision
from support.backends import needs_core, running_on
from support.graphs import Replays


class Addresses(Replays):
    """Holds that what is recorded reads and writes the same memory each time: a graph does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.touched: list[Any] = []
        update, norm = AdamKernel.update, NormKernel.grad_norm

        def spied_update(plan: Any, rule: Any, scalars: Any) -> None:
            places = [value.data_ptr() if torch.is_tensor(value) else value for value in scalars]
            self.touched.append((plan.table.tolist(), rule, places))
            update(plan, rule, scalars)

        def spied_norm(table: Tensor, device: Any, max_norm: Any, scale: Any) -> Tensor:
            place = scale.data_ptr() if torch.is_tensor(scale) else scale
            self.touched.append((table.tolist(), max_norm, place))
            return norm(table, device, max_norm, scale)

        monkeypatch.setattr(AdamKernel, "update", staticmethod(spied_update))
        monkeypatch.setattr(NormKernel, "grad_norm", staticmethod(spied_norm))

    def __call__(self, compute: Callable[[], Any], pool: object = None) -> Callable[[], Any]:
        first: list[Any] = []

        def checked() -> Any:
            self.touched.clear()
            out = compute()
            if not first:
                first.extend(self.touched)
            assert self.touched == first and first
            return out

        return super().__call__(checked, pool)


class Training:
    """Three layers and their Adam, updated as the trainer does it. Numbers that fp32 holds exactly change at will."""

    def __init__(self, record: Record | None = None, device: torch.device | str = "cpu") -> None:
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(32, 32, device=device) for _ in range(3))
        self.precision = Precision(self.layers, joined=True, keep_gradients=record is not None)
        cfg = SimpleNamespace(
            adam_betas="(0.9, 0.98)", adam_eps=1e-8, weight_decay=0.125, fp16_adam_stats=False, lr=[1]
        )
        self.adam = Adam(cfg, self.precision.optimizer_parameters())
        if record is not None:
            self.adam.graphs = GraphedTail(self.adam.optimizer, record)
        self.norms: list[Tensor] = []

    def update(self, number: int, *, max_norm: float = 2.0, poison: bool = False, unused: bool = False) -> None:
        self.adam.zero_grad()
        self.precision.drop_gradients()
        generator = torch.Generator().manual_seed(number)
        device = self.layers[0].weight.device
        x = torch.randn(8, 32, generator=generator).to(device) * (torch.nan if poison else 1)
        for layer in list(self.layers)[: 2 if unused else 3]:
            x = layer(x)
        self.adam.backward(x.square().sum())
        self.precision.collect_gradients()
        self.adam.set_lr(2.0 ** -(4 + number % 3))
        self.adam.multiply_grads(2.0 ** -(number % 5))
        self.adam.joined_grads = self.precision.joined_gradients()
        self.norms.append(self.adam.clip_grad_norm(max_norm))

    def step(self) -> None:
        self.adam.step()

    def numbers(self) -> list[Tensor]:
        states = self.adam.optimizer._state.values()
        return [*self.layers.parameters(), *(v for state in states for v in state.values()), *self.norms]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Training, Training, Addresses]]:
    record = Addresses(monkeypatch)
    monkeypatch.setattr("pyseq.optim.fused_adam._on_host", lambda value: not torch.is_tensor(value))  # as on a GPU
    with dispatch.backend("cpp"):
        yield Training(), Training(record), record


def assert_equal(a: Training, b: Training) -> None:
    for x, y in zip(a.numbers(), b.numbers(), strict=True):
        assert torch.equal(x.nan_to_num(7), y.nan_to_num(7))


def run(trainings: tuple[Training, ...], numbers: range, **options: Any) -> None:
    for number in numbers:
        for training in trainings:
            training.update(number, **options)
            training.step()
        assert_equal(trainings[0], trainings[1])


@needs_core
def test_updates_have_the_bits_of_eager_ones(pair):
    """Learning rates, factors and gradients change; one norm is not finite, and changes nothing."""
    *trainings, record = pair
    run(trainings, range(4))
    run(trainings, range(4, 5), poison=True)
    run(trainings, range(5, 9))
    assert record.recorded == 2 and record.replayed == 9 + 7  # two updates are made outside
    assert len({float(norm) for norm in trainings[1].norms[:4]}) == 4  # they are not one memory
    assert trainings[1].adam.get_lr() == 2.0**-6 and not torch.is_tensor(trainings[1].adam.param_groups[0]["lr"])


def settings(training: Training) -> None:
    training.adam.param_groups[0]["weight_decay"] = 0.5


def reload(training: Training) -> None:
    training.adam.load_state_dict(training.adam.state_dict())


def hook(training: Training) -> None:
    training.adam.optimizer.register_step_post_hook(lambda *_: training.norms.append(torch.ones(())))


def look(training: Training) -> None:
    for state in training.adam.optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].clone()


def move(training: Training) -> None:
    weight = training.layers[1].weight
    weight.data = weight.data.clone()


def grow(training: Training) -> None:
    added = nn.Parameter(torch.ones(32))
    added.grad = torch.ones(32)
    training.adam.optimizer.add_param_group({"params": [added]})


def drop(training: Training) -> None:
    for arena in training.precision.arenas:
        arena.drop_gradients()


@needs_core
@pytest.mark.parametrize(
    ("change", "recorded", "replayed"),
    [
        (settings, 1, 3),
        (reload, 1, 2),
        (move, 1, 2),
        (grow, 1, 2),
        (drop, 2, 3),
        (look, 0, 0),  # whoever has the states may put others in their place at any time
        (hook, 0, 0),
    ],
)
def test_changes_between_updates_are_seen(pair, change, recorded, replayed):
    """Of four updates that follow, so many are replayed; every norm is."""
    *trainings, record = pair
    run(trainings, range(3))
    before = record.recorded, record.replayed
    for training in trainings:
        change(training)
    run(trainings, range(3, 7))
    assert (record.recorded, record.replayed) == (before[0] + recorded, before[1] + 4 + replayed)


@needs_core
def test_a_norm_to_clip_to_and_gradients_that_are_missing(pair):
    *trainings, record = pair
    run(trainings, range(3))
    run(trainings, range(3, 6), max_norm=0.5)
    run(trainings, range(6, 8), max_norm=0.5, unused=True)  # the norm is not that of joined gradients
    run(trainings, range(8, 11), max_norm=0.0)
    assert record.recorded == 2 + 2 + 2


@needs_core
def test_factors_may_be_applied_before_the_step(pair):
    """By somebody who looks at gradients: the update then has no factor to apply."""
    *trainings, _ = pair
    run(trainings, range(3))
    for number in range(3, 6):
        for training in trainings:
            training.update(number)
            training.adam.apply_factor()
            training.step()
        assert_equal(*trainings)


@needs_core
def test_autograd_is_told_that_parameters_change(pair, monkeypatch):
    _, training, _ = pair
    run((training, training), range(4))
    monkeypatch.setattr("pyseq.ops.adam.increment_version", lambda params: None)  # which a graph does not do
    weight = training.layers[0].weight
    loss = (weight * weight).sum()
    training.update(4)
    training.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_other_optimizers_say_that_they_cannot():
    sgd = SGD(SimpleNamespace(lr=[0.1], momentum=0.0, weight_decay=0.0), [nn.Parameter(torch.ones(1))])
    with pytest.raises(ConfigError, match="--optimizer adam"):
        sgd.use_cuda_graphs()


@pytest.mark.parametrize("kernels", ["triton", "cuda"])
def test_on_devices(kernels, monkeypatch):
    """On a GPU graphs are recorded; in Triton's interpreter what is recorded runs again."""
    with running_on(kernels) as device:
        if device.type == "cpu":
            monkeypatch.setattr("pyseq.optim.fused_adam._on_host", lambda value: not torch.is_tensor(value))
        trainings = Training(device=device), Training(record if device.type == "cuda" else Replays(), device)
        run(trainings, range(4))
        run(trainings, range(4, 5), poison=True)
        for training in trainings:
            settings(training)
        run(trainings, range(5, 8), max_norm=0.5)
