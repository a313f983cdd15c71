"""pyseq beside what fairseq computed: ``python -m benchmarks.check_reference DIR``, where DIR holds the reference.

DIR has ``text/``, ``data-bin/``, ``checkpoints/``, ``runs/`` and ``generate/`` as fairseq left them. Prints one line a
check with the figure, the limit and the verdict; exits with 1 if any fails. With ``--fairseq PYTHON`` it also tells how
far fairseq itself is from those runs on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import gzip
import io
import json
import logging
import math
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pyseq import metrics, utils
from pyseq.cli import preprocess
from pyseq.cli.plugins import load_plugins
from pyseq.cli.train import build
from pyseq.config.config import Config, config_from_args
from pyseq.config.parser import get_training_parser, parse_args_and_arch
from pyseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from pyseq.optim import build_optimizer
from pyseq.optim.lr_scheduler import build_lr_scheduler
from pyseq.training.checkpoint import load_optimizer, load_weights
from pyseq.training.checkpoint_file import load_checkpoint_file
from pyseq.training.epochs import Epochs
from pyseq.training.loop import train
from pyseq.training.monitor import Monitor
from pyseq.training.saving import Saver
from pyseq.training.trainer import Trainer

from . import fairseq, processes


@dataclass
class Report:
    """Lines of the table, printed as they come."""

    failed: int = 0

    def add(self, check: str, figure: str, limit: str, good: bool) -> None:
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'}  {check:<58} {figure:<28} {limit}", flush=True)


def check_preprocess(folder: Path, report: Report) -> None:
    """dict.txt, .bin and .idx byte for byte, with one worker and with four."""
    for workers in (1, 4):
        with tempfile.TemporaryDirectory() as made:
            argv = ["--source-lang", "en", "--target-lang", "de", "--joined-dictionary", "--destdir", made]
            for flag, name in (("train", "train"), ("valid", "val"), ("test", "test_2016_flickr")):
                argv += [f"--{flag}pref", str(folder / "text" / name)]
            with quiet():
                preprocess.main([*argv, "--workers", str(workers)])
            names = sorted(p.name for p in (folder / "data-bin").iterdir() if p.suffix in (".txt", ".bin", ".idx"))
            same, *others = filecmp.cmpfiles(folder / "data-bin", made, names, shallow=False)
            other = ", ".join(name for group in others for name in group)
            report.add(
                f"preprocess, {workers} worker(s): equal files", f"{len(same)} of {len(names)} {other}", "all",
                len(same) == len(names),
            )  # fmt: skip


def training_argv(folder: Path, argv: list[str]) -> list[str]:
    """The options of a recorded run, with the place of the data."""
    return [str(folder / "data-bin") if a == "data-bin" else a for a in argv]


def training_config(folder: Path, argv: list[str], extra: list[str]) -> Config:
    return config_from_args(parse_args_and_arch(get_training_parser(), [*training_argv(folder, argv), *extra]))


def check_batches(folder: Path, report: Report) -> None:
    """Sample ids of every batch, epochs 1 to 3, one shard and two."""
    with gzip.open(folder / "runs" / "epoch_orders.json.gz") as file:
        orders = json.load(file)
    argv = json.loads((folder / "runs" / "plain.json").read_text())["argv"]
    cfg = training_config(folder, argv, [])
    from pyseq.tasks import setup_task

    for key, expected in orders.items():
        epoch, shard, shards = (int(n) for n in re.findall(r"\d+", key))
        task = setup_task(cfg.task)
        task.load_dataset("train", combine=True)
        iterator = task.get_batch_iterator(
            task.dataset("train"), max_tokens=4096, max_positions=(1024, 1024), ignore_invalid_inputs=True,
            required_batch_size_multiple=8, seed=1, num_shards=shards, shard_id=shard,
        )  # fmt: skip
        for _ in range(epoch):
            ids = [batch["id"].tolist() if batch else [] for batch in iterator.next_epoch_itr(shuffle=True)]
        equal = sum(sorted(a) == sorted(b) for a, b in zip(ids, expected))
        ordered = sum(a == b for a, b in zip(ids, expected))
        good = len(ids) == len(expected) and equal == len(expected)
        report.add(f"batches, {key}: equal", f"{equal} of {len(expected)}", "all", good)
        if ordered != equal:
            print(f"      (rows of {equal - ordered} batches are in another order)")


@dataclass
class Record:
    """What one run of the loop computed, update by update."""

    loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    _loss_sum: float = 0.0

    def attach(self, trainer: Trainer) -> None:
        """Listen to the trainer's steps; nothing of the arithmetic changes."""
        train_step, clip = trainer.task.train_step, trainer.optimizer.clip_grad_norm
        average = trainer.average_and_clip_gradients

        def recorded_step(*args: Any, **kwargs: Any) -> Any:
            result = train_step(*args, **kwargs)
            self._loss_sum += float(result[2]["loss"])
            return result

        def recorded_clip(max_norm: float) -> Any:
            norm = clip(max_norm)
            self.grad_norm.append(float(norm))
            return norm

        def recorded_average(update: Any) -> None:
            self.loss.append(self._loss_sum / float(update.sample_size) / math.log(2))
            self.lr.append(trainer.optimizer.get_lr())
            self._loss_sum = 0.0
            average(update)

        trainer.task.train_step = recorded_step
        trainer.optimizer.clip_grad_norm = recorded_clip  # type: ignore[method-assign, assignment]
        trainer.average_and_clip_gradients = recorded_average  # type: ignore[method-assign]


def in_double(trainer: Trainer) -> None:
    """Do the trainer's arithmetic in float64, with the loss written out in torch."""
    trainer.module.double()
    trainer.optimizer = build_optimizer(trainer.cfg.optimizer, list(trainer.module.parameters()))
    trainer.lr_scheduler = build_lr_scheduler(trainer.cfg.lr_scheduler, trainer.optimizer)
    trainer.lr_scheduler.step_update(0)
    epsilon, pad = trainer.cfg.criterion.label_smoothing, trainer.task.target_dictionary.pad()

    def step(sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int) -> Any:
        lprobs = torch.log_softmax(model(**sample["net_input"])[0], dim=-1)
        loss, nll = label_smoothed_nll_loss(lprobs, sample["target"], epsilon, ignore_index=pad)
        loss.backward()
        ntokens = sample["ntokens"]
        log = {"loss": loss.detach(), "nll_loss": nll.detach(), "ntokens": ntokens, "sample_size": ntokens}
        return loss, ntokens, log

    trainer.task.train_step = step


def run_training(cfg: Config, checkpoint: Path, resume: bool = False, double: bool = False) -> tuple[Record, Trainer]:
    """Train by the project's own loop from fairseq's checkpoint."""
    metrics.reset()
    utils.set_all_seeds(cfg.common.seed)
    trainer = build(cfg)
    epochs, saver = Epochs(cfg, trainer.task, trainer.model), Saver(cfg.checkpoint)
    state = load_checkpoint_file(checkpoint)
    load_weights(trainer, state, str(checkpoint))
    if double:
        in_double(trainer)
    if resume:
        load_optimizer(trainer, state, str(checkpoint))
        # The reference's checkpoint does not say where in the epoch it is: 20 batches in.
        epochs.load_state_dict({"version": 2, "epoch": 1, "iterations_in_epoch": trainer.num_updates, "shuffle": True})
        trainer.lr_scheduler.step_update(trainer.num_updates)
    record = Record()
    record.attach(trainer)
    with Monitor(trainer, epochs, saver) as monitor:
        train(trainer, epochs, monitor)
    return record, trainer


def largest(ours: list[float], theirs: list[float], relative: bool = False) -> float:
    if len(ours) != len(theirs):
        return math.inf
    return max(abs(a - b) / (abs(b) if relative else 1.0) for a, b in zip(ours, theirs))


def check_training(folder: Path, report: Report) -> None:
    """Losses, gradient norms, learning rates and weights of three runs, and one that goes on from fairseq's state."""
    for name, limit in (("plain", 5e-5), ("clip1_warmup20", 1e-3), ("clip1_warmup20_uf2", 1e-3)):
        reference = json.loads((folder / "runs" / f"{name}.json").read_text())
        with quiet():
            cfg = training_config(folder, reference["argv"], [])
            record, trainer = run_training(cfg, folder / "checkpoints" / "init.pt")
        updates = reference["updates"]
        loss = largest(record.loss, [u["loss_base2"] for u in updates])
        report.add(f"{name}: loss, largest difference (bits)", f"{loss:.1e}", f"{limit:g}", loss <= limit)
        norm = largest(record.grad_norm, [u["gnorm"] for u in updates], relative=True)
        report.add(f"{name}: gradient norm, largest relative difference", f"{norm:.1e}", "1e-4", norm <= 1e-4)
        rate = largest(record.lr, [u["lr_used"] for u in updates])
        report.add(f"{name}: learning rate, largest difference", f"{rate:.1e}", "0", rate == 0)
        if name == "plain":
            expected = load_checkpoint_file(folder / "checkpoints" / "plain_update20.pt")["model"]
            own = trainer.model.state_dict()
            weight = max(float((own[k] - expected[k]).abs().max()) for k in expected)
            report.add("plain: weights after 20 updates, largest difference", f"{weight:.1e}", "1e-4", weight <= 1e-4)
            check_resume(folder, reference["argv"], report)


def check_resume(folder: Path, argv: list[str], report: Report) -> None:
    """20 updates and 10 more, against 30 from the start: through fairseq's saved state."""
    with quiet():
        cfg = training_config(folder, argv, ["--max-update", "30"])
        straight, _ = run_training(cfg, folder / "checkpoints" / "init.pt")
        resumed, _ = run_training(cfg, folder / "checkpoints" / "plain_update20.pt", resume=True)
    loss = largest(resumed.loss, straight.loss[20:])
    report.add("from plain_update20.pt: loss of 10 more updates (bits)", f"{loss:.1e}", "5e-5", loss <= 5e-5)


def check_float64(folder: Path, report: Report) -> None:
    """How far fairseq's runs and ours are from the same runs in float64. Figures only, no verdict."""
    for name in ("plain", "clip1_warmup20", "clip1_warmup20_uf2"):
        reference = json.loads((folder / "runs" / f"{name}.json").read_text())
        with quiet():
            cfg = training_config(folder, reference["argv"], [])
            exact, _ = run_training(cfg, folder / "checkpoints" / "init.pt", double=True)
            ours, _ = run_training(cfg, folder / "checkpoints" / "init.pt")
        theirs = largest([u["loss_base2"] for u in reference["updates"]], exact.loss)
        own = largest(ours.loss, exact.loss)
        print(f"      {name}: loss, distance from float64 (bits): pyseq {own:.1e}, fairseq {theirs:.1e}", flush=True)


def check_fairseq(folder: Path, python: str) -> None:
    """How far fairseq itself is, on this machine, from what it was recorded to do. Figures only, no verdict."""
    child = Path(__file__).with_name("fairseq_losses_child.py")
    for name in ("plain", "clip1_warmup20", "clip1_warmup20_uf2"):
        reference = json.loads((folder / "runs" / f"{name}.json").read_text())
        weights = str((folder / "checkpoints" / "init.pt").resolve())
        argv = [*training_argv(folder.resolve(), reference["argv"]), "--finetune-from-model", weights]
        with tempfile.TemporaryDirectory() as made:
            out = Path(made) / "run.json"
            processes.execute([python, child, out, *argv, "--save-dir", made], fairseq.environment())
            run = json.loads(out.read_text())
        loss = largest(run["loss"], [u["loss_base2"] for u in reference["updates"]])
        norm = largest(run["gnorm"], [u["gnorm"] for u in reference["updates"]], relative=True)
        print(f"      {name}: fairseq here and as recorded: loss {loss:.1e} bits, gradient norm {norm:.1e}", flush=True)


def parse_output(lines: list[str]) -> tuple[dict[int, tuple[float, str]], str]:
    """Sentence id -> (score, hypothesis), and the last line."""
    hypotheses = {}
    for line in lines:
        if line.startswith("H-"):
            head, score, text = line.rstrip("\n").split("\t")
            hypotheses[int(head[2:])] = (float(score), text)
    return hypotheses, lines[-1].strip()


def check_generation(folder: Path, report: Report) -> None:
    """Beam-5 translations of the test set."""
    from pyseq.cli import generate

    with gzip.open(folder / "generate" / "update372.beam5.txt.gz", "rt") as file:
        expected, _ = parse_output(list(file))
    with tempfile.TemporaryDirectory() as made:
        with quiet():
            generate.main(
                [str(folder / "data-bin"), "--path", str(folder / "checkpoints" / "update372.pt"), "--beam", "5",
                 "--remove-bpe", "--max-tokens", "4096", "--cpu", "--gen-subset", "test", "--results-path", made]
            )  # fmt: skip
        ours, last = parse_output((Path(made) / "generate-test.txt").read_text().splitlines())
    same = [i for i in expected if i in ours and ours[i][1] == expected[i][1]]
    share = 100 * len(same) / len(expected)
    report.add("generate: equal hypotheses", f"{share:.1f} % of {len(expected)}", ">= 99 %", share >= 99)
    score = max(abs(ours[i][0] - expected[i][0]) for i in same)
    report.add("generate: scores where equal, largest difference", f"{score:.1e}", "1e-4", score <= 1e-4)
    match = re.search(r"BLEU4 = ([\d.]+)", last)
    bleu = float(match.group(1)) if match else math.nan
    report.add("generate: BLEU4", f"{bleu:.2f}", "24.67 +- 0.05", abs(bleu - 24.67) <= 0.05)


def check_checkpoint_layout(folder: Path, report: Report) -> None:
    """A checkpoint of ours has the keys, order, shapes and dtypes of fairseq's."""
    reference = load_checkpoint_file(folder / "checkpoints" / "plain_update20.pt")
    argv = json.loads((folder / "runs" / "plain.json").read_text())["argv"]
    with quiet():
        cfg = training_config(folder, argv, ["--max-update", "1"])
        _, trainer = run_training(cfg, folder / "checkpoints" / "init.pt")
    ours = trainer.state_dict()

    def layout(state: dict[str, Any]) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        return [(k, tuple(v.shape), v.dtype) for k, v in state.items()]

    report.add("checkpoint: top-level keys", "", "equal", set(ours) == set(reference))
    equal = layout(ours["model"]) == layout(reference["model"])
    report.add("checkpoint: names, order, shapes, dtypes of weights", "", "equal", equal)
    a, b = ours["last_optimizer_state"], reference["last_optimizer_state"]
    equal = [list(s) for s in a["state"].values()] == [list(s) for s in b["state"].values()]
    equal = equal and set(a["param_groups"][0]) == set(b["param_groups"][0])
    report.add("checkpoint: optimizer state", "", "equal", equal)
    missing: list[str] = []
    for section in ("task", "criterion", "optimizer", "lr_scheduler", "scoring"):
        missing += [f"{section}.{k}" for k in reference["cfg"][section] if k not in ours["cfg"][section] and k != "tpu"]
    report.add("checkpoint: cfg of the plug-ins", ", ".join(missing), "all keys", not missing)


@contextlib.contextmanager
def quiet() -> Any:
    """No logging, nothing on standard output."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="the reference folder")
    parser.add_argument("--only", help="run the checks whose name contains this")
    parser.add_argument("--float64", action="store_true", help="also measure both against float64 (some minutes)")
    parser.add_argument("--fairseq", metavar="PYTHON", help="also run a fairseq, in an interpreter that has it")
    args = parser.parse_args(argv)
    if not (args.folder / "data-bin").is_dir():
        print(f"no reference at '{args.folder}': give the folder that holds data-bin/, e.g. REFERENCE=...")
        return 1
    load_plugins()
    report = Report()
    checks = [check_preprocess, check_batches, check_training, check_checkpoint_layout, check_generation]
    if args.float64:
        checks.append(check_float64)
    for check in checks:
        if args.only is None or args.only in check.__name__:
            check(args.folder, report)
    if args.fairseq is not None and (args.only is None or args.only in check_fairseq.__name__):
        check_fairseq(args.folder, args.fairseq)
    print(f"{report.failed} failed" if report.failed else "all checks hold")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
