"""``--cuda-graphs`` in training: a run ends where it ends without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyseq.cli import train
from pyseq.errors import ConfigError
from pyseq.optim.graphed_tail import GraphedTail
from pyseq.training import trainer as trainer_module
from pyseq.training.checkpoint_file import load_checkpoint_file
from pyseq.training.trainer import Trainer
from support.graphs import Replays


def state_of(folder: Any) -> list[torch.Tensor]:
    state = load_checkpoint_file(folder / "checkpoint_last.pt")
    moments = [entry[key] for entry in state["last_optimizer_state"]["state"].values() for key in sorted(entry)]
    return [torch.as_tensor(value) for value in [*state["model"].values(), *moments]]


@pytest.fixture
def options(train_argv: list[str]) -> list[str]:
    return [*train_argv, "--disable-validation", "--clip-norm", "0.1", "--update-freq", "2"]


@pytest.mark.parametrize("dtype", [[], ["--bf16"]], ids=["fp32", "bf16"])
def test_a_run_and_its_continuation(dtype, options, tmp_path, monkeypatch):
    """Laid out as on a GPU; what is recorded runs again."""
    recorders: list[Replays] = []
    graphs = False

    def as_on_a_gpu(self: Trainer, *args: Any) -> None:
        init(self, *args)
        if graphs:
            recorders.append(Replays())
            self.precision.keep_gradients = True
            self.optimizer.graphs = GraphedTail(self.optimizer.optimizer, recorders[-1])

    # Graphs read rates and factors in fp32: here they are numbers that it holds, so that no bit differs.
    monkeypatch.setattr(trainer_module, "reciprocal", lambda size: float(torch.tensor(1.0 / size)))
    options = [*options, "--lr", str(2.0**-7)]
    init = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", as_on_a_gpu)
    for name in ("Precision", "BFloat16"):
        base = getattr(trainer_module, name)
        joined = type(
            name, (base,), {"__init__": lambda self, module, base=base, **_: base.__init__(self, module, True)}
        )
        monkeypatch.setattr(trainer_module, name, joined)
    for name in ("eager", "graphs"):
        graphs = name == "graphs"
        for updates in ("5", "9"):
            train.main([*options, *dtype, "--save-dir", str(tmp_path / name), "--max-update", updates])
    # The first two updates of a process are made outside of graphs, but for the norm.
    assert [(r.recorded, r.replayed) for r in recorders] == [(2, 5 + 3), (2, 4 + 2)]
    for a, b in zip(state_of(tmp_path / "eager"), state_of(tmp_path / "graphs"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("flags", [[], ["--cpu"]])
def test_they_need_a_gpu(flags, options, tmp_path):
    if torch.cuda.is_available() and not flags:
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="--cuda-graphs needs a GPU"):
        train.main([*options, *flags, "--cuda-graphs", "--save-dir", str(tmp_path)])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [[], ["--bf16"]], ids=["fp32", "bf16"])
def test_on_a_gpu(dtype, options, tmp_path):
    argv = [flag for flag in options if flag != "--cpu"]
    for name, flags in (("eager", []), ("graphs", ["--cuda-graphs"])):
        train.main([*argv, *dtype, *flags, "--save-dir", str(tmp_path / name), "--max-update", "6"])
    for a, b in zip(state_of(tmp_path / "eager"), state_of(tmp_path / "graphs"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
