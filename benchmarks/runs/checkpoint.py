"""Writing a checkpoint of transformer_iwslt_de_en with its optimizer state, and going on from it; beside torch alone.

The first side is what training waits for. Bytes are those of the file. What torch alone does, save and load, is the
least that a checkpoint of this form costs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import corpora, recipes
from ..harness import Case, Outcome, Side, Work
from ..machine import copy_yardstick


def trainer_on(data: Path, folder: Path, quick: bool) -> tuple[Any, Any, Any]:
    """Trainer, epochs and saver of a run on the CPU that has made one update."""
    from pyseq import metrics, utils
    from pyseq.cli.plugins import load_plugins
    from pyseq.cli.train import build
    from pyseq.config.config import config_from_args
    from pyseq.config.parser import get_training_parser, parse_args_and_arch
    from pyseq.training.epochs import Epochs
    from pyseq.training.saving import Saver

    load_plugins()
    small = recipes.SMALL_PAIRS if quick else ["--max-tokens", "512"]
    argv = [
        str(data),
        *recipes.IWSLT,
        *small,
        "--cpu",
        "--disable-validation",
        "--save-dir",
        str(folder),
        "--seed",
        "1",
    ]
    cfg = config_from_args(parse_args_and_arch(get_training_parser(), argv))
    utils.set_all_seeds(1)
    metrics.reset()
    trainer = build(cfg)
    for parameter in trainer.optimizer.params:
        parameter.grad = torch.full_like(parameter, 1e-3)
    trainer.optimizer.step()
    trainer.set_num_updates(1)
    return trainer, Epochs(cfg, trainer.task, trainer.model), Saver(cfg.checkpoint)


class Checkpoint:
    """A run and the file that it has written."""

    def __init__(self, quick: bool) -> None:
        self.folder = corpora.new_scratch_folder()
        self.trainer, self.epochs, self.saver = trainer_on(corpora.tiny_pairs(), self.folder, quick)
        self.saver.save(self.trainer, self.epochs, None, True)
        self.wait()
        self.path = self.folder / "checkpoint_last.pt"
        self.size = self.path.stat().st_size

    def wait(self) -> None:
        """For a thread that writes while training goes on, in a pyseq that has one."""
        writer = getattr(self.saver, "_writer", None)
        if writer is not None:
            writer.wait()

    def remove(self) -> None:
        self.wait()
        for path in self.folder.glob("*.pt"):
            path.unlink()

    def work(self, sides: list[Side], device: torch.device) -> Work:
        parameters = sum(parameter.numel() for parameter in self.trainer.optimizer.params)
        config = {"parameters": parameters, "file bytes": self.size}
        return Work(config, [*sides, copy_yardstick(device, 2 * self.size)], bound=0.0, cold=False)


def save(device: torch.device, quick: bool) -> Work:
    made = Checkpoint(quick)
    from pyseq.training.checkpoint_file import load_checkpoint_file

    state = load_checkpoint_file(made.path)
    made.saver.cfg.no_epoch_checkpoints = True

    def ours() -> None:
        made.saver.save(made.trainer, made.epochs, None, True)

    def to_the_end() -> None:
        ours()
        made.wait()

    def theirs() -> None:
        torch.save(state, made.path)

    def written(run: Callable[[], None]) -> Outcome:
        run()
        made.wait()
        found: Outcome = load_checkpoint_file(made.path)["model"]
        return found

    sides = [
        Side(name, run, made.remove, lambda run=run: written(run), bytes=made.size)  # type: ignore[misc]
        for name, run in (("pyseq", ours), ("pyseq, until it is written", to_the_end), ("torch.save", theirs))
    ]
    return made.work(sides, device)


def resume(device: torch.device, quick: bool) -> Work:
    made = Checkpoint(quick)
    from pyseq.training.checkpoint import restore
    from pyseq.training.checkpoint_file import load_checkpoint_file

    weights = load_checkpoint_file(made.path)["model"]

    def ours() -> None:
        restore(made.trainer, made.epochs, made.saver)

    def outcome(run: Callable[[], Any]) -> Outcome:
        run()
        restored = made.trainer.model.state_dict()
        return {name: restored[name].clone() for name in weights}

    side = Side("pyseq, restore", ours, bytes=made.size, outcome=lambda: outcome(ours))
    load = Side("torch.load", lambda: torch.load(made.path, weights_only=False), bytes=made.size)
    work = made.work([side, load], device)
    work.expected = "the saved weights", weights
    return work


CASES = [Case("checkpoint/save", save, ("cpu",)), Case("checkpoint/resume", resume, ("cpu",))]
