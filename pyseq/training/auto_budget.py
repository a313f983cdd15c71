"""``--max-tokens auto``: the token budget of a batch, found out by training a little with larger and larger ones.

Budgets grow by the square root of 2. Under each, the batches that take most memory are trained on: the one of the
longest sentences, the one of the most sentences, and, for the speed, one of the middle. It ends where memory would run
out, or where two steps in a row have brought less than 3 % more tokens a second. The trials have a model and a task of
their own, so the run that follows is, bit for bit, the one that is given the number.
"""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pyseq.config.config import Config
from pyseq.config.groups import AUTO
from pyseq.errors import ConfigError, DataError
from pyseq.training.checkpoint import choose_checkpoint
from pyseq.training.checkpoint_file import load_checkpoint_file
from pyseq.training.epochs import Epochs
from pyseq.training.memory import OutOfMemoryError, peak_bytes
from pyseq.training.trainer import Trainer

logger = logging.getLogger(__name__)

FIRST, GROWTH = 1024, 2**0.5
RISE = 1.03  # a smaller gain over two steps is none
SHARE = 0.8  # of the memory there is; the rest is for fragmentation, and for what others take later


@dataclass
class Trial:
    """What a budget gave: target tokens a second and the peak of memory in bytes; ``batches`` an epoch."""

    budget: int
    rate: float
    peak: int
    batches: int


def settle_budget(cfg: Config, build: Callable[[Config], Trainer]) -> None:
    """Put a number in the place of ``--max-tokens auto``, if ``cfg`` has it: the checkpoint's, or else a new one.

    Raises:
        ConfigError: several processes are to train, or not even the smallest budget fits.
    """
    if str(cfg.dataset.max_tokens) != AUTO:
        return
    budget = stored_budget(cfg)
    if budget is not None:
        logger.info("--max-tokens auto: %d, as in the checkpoint that this run goes on from", budget)
    else:
        if int(os.environ.get("WORLD_SIZE", cfg.distributed_training.distributed_world_size)) > 1:
            raise ConfigError(
                "--max-tokens auto is for one process: find the number with `--max-tokens auto --dry-run` on one device"
            )
        trials, reason = search(cfg, build)
        budget = choose(trials).budget
        for line in report(trials):
            logger.info("%s", line)
        logger.info("--max-tokens auto: %d, the smallest within %.0f %% of the fastest; %s",
                    budget, 100 * (RISE - 1), reason)  # fmt: skip
    set_budget(cfg, budget)


def stored_budget(cfg: Config) -> int | None:
    """The budget of the run that ``cfg`` resumes, whose order of batches depends on it."""
    path, weights_only = choose_checkpoint(cfg)
    if weights_only or cfg.checkpoint.reset_dataloader or not os.path.isfile(path):
        return None
    stored = load_checkpoint_file(path, cfg.checkpoint.unsafe_load).get("cfg") or {}
    budget = stored.get("dataset", {}).get("max_tokens")
    return budget if isinstance(budget, int) else None


def set_budget(cfg: Config, budget: int) -> None:
    """Replace "auto" wherever an option refers to --max-tokens."""
    for node in vars(cfg).values():
        for name, value in list(vars(node).items()) if hasattr(node, "__dict__") else ():
            if name.startswith("max_tokens") and value == AUTO:
                setattr(node, name, budget)


def search(cfg: Config, build: Callable[[Config], Trainer]) -> tuple[list[Trial], str]:
    """The trials, of growing budgets, and why there are no more of them."""
    cfg = copy.deepcopy(cfg)
    set_budget(cfg, FIRST)
    cfg.dataset.disable_validation = cfg.dataset.update_epoch_batch_itr = True  # no cache of batches
    trainer = build(cfg)
    trainer.optimizer.set_lr(0.0)
    limit = SHARE * memory_limit(trainer.device)
    logger.info("--max-tokens auto: trying budgets within %.1f GiB", limit / 2**30)
    try:
        return run_trials(trainer, limit)
    finally:
        del trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run_trials(trainer: Trainer, limit: float) -> tuple[list[Trial], str]:
    trials: list[Trial] = []
    before = peak_of(trainer.device)
    for budget in budgets():
        needed = expected_peak([(0, before), *((trial.budget, trial.peak) for trial in trials)], budget)
        if needed > limit:
            return trials, f"{budget} would take about {needed / 2**30:.1f} GiB"
        try:
            trial = run_trial(trainer, budget)
        except OutOfMemoryError:
            if not trials:
                raise
            return trials, f"{budget} does not fit in memory"
        if trial is None:
            continue
        if trial.peak > limit and trials:
            return trials, f"{budget} takes {trial.peak / 2**30:.1f} GiB, which leaves too little"
        trials.append(trial)
        logger.info("--max-tokens %d: %.0f target tokens/s", budget, trial.rate)
        if trial.batches == 1:
            return trials, "one batch holds all of the data"
        if has_levelled_off(trials):
            return trials, "larger ones bring nothing"
    raise AssertionError("budgets do not end")


def budgets() -> Iterator[int]:
    """1024, 1448, 2048, ..."""
    for step in itertools.count():
        yield int(FIRST * GROWTH**step + 0.5) // 8 * 8


def run_trial(trainer: Trainer, budget: int) -> Trial | None:
    """Train on the worst batches twice, and measure the second time. None if no sentence fits into the budget."""
    trainer.cfg.dataset.max_tokens = budget
    try:
        batches = Epochs(trainer.cfg, trainer.task, trainer.model).iterator.frozen_batches
    except DataError:
        return None
    if not batches:
        return None
    dataset = trainer.task.dataset(trainer.cfg.dataset.train_subset)
    samples = [dataset.collate_indices(batch) for batch in telling_batches(dataset, batches)]
    for sample in samples:
        train_on(trainer, sample)
    start = time.perf_counter()
    tokens = sum(train_on(trainer, sample) for sample in samples)
    seconds = time.perf_counter() - start
    return Trial(budget, tokens / seconds, peak_of(trainer.device), len(batches))


def telling_batches(dataset: Any, batches: list[Any]) -> list[Any]:
    """The batch of the longest sentences, that of the most sentences, and one of middling ones."""
    longest = [int(max(dataset.num_tokens_vec(batch))) for batch in batches]
    by_length = sorted(range(len(batches)), key=lambda i: (longest[i], len(batches[i])))
    most = max(range(len(batches)), key=lambda i: (len(batches[i]), longest[i]))
    return [batches[i] for i in dict.fromkeys((by_length[-1], most, by_length[len(batches) // 2]))]


def train_on(trainer: Trainer, sample: Any) -> int:
    """One whole update on one batch; returns its number of target tokens."""
    with trainer.update([sample]) as update:
        for batch in trainer.batches(update):
            _, sample_size, log = trainer.task.train_step(
                batch, trainer.model, trainer.criterion, trainer.optimizer, trainer.num_updates
            )
            update.add(sample_size, log)
        trainer.average_and_clip_gradients(update)
        trainer.task.optimizer_step(trainer.optimizer, trainer.model, trainer.num_updates)
    trainer.check_gradients()
    return int(sample["ntokens"])


def has_levelled_off(trials: list[Trial]) -> bool:
    """Whether the last two are no faster than what came before them."""
    rates = [trial.rate for trial in trials]
    return len(rates) > 2 and max(rates[-2:]) < RISE * max(rates[:-2])


def choose(trials: list[Trial]) -> Trial:
    """The smallest budget that is as good as the fastest."""
    if not trials:
        raise ConfigError(f"--max-tokens auto: no batch of {FIRST} tokens fits in memory. Give a smaller number.")
    best = max(trial.rate for trial in trials)
    return next(trial for trial in trials if RISE * trial.rate >= best)


def report(trials: list[Trial]) -> list[str]:
    chosen, best = choose(trials), max(trial.rate for trial in trials)
    lines = ["--max-tokens  target tokens/s  peak memory"]
    for trial in trials:
        bar = "#" * round(30 * trial.rate / best)
        mark = "  <- taken" if trial is chosen else ""
        lines.append(f"{trial.budget:12d}  {trial.rate:15.0f}  {trial.peak / 2**30:7.2f} GiB  {bar}{mark}")
    return lines


# Memory.


def peak_of(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_bytes(device)


def expected_peak(peaks: list[tuple[int, int]], budget: int) -> float:
    """The peak under ``budget`` if memory grows on as it did between the last two (budget, peak), in bytes."""
    if len(peaks) < 2:
        return 0.0
    (smaller, before), (larger, last) = peaks[-2:]
    return last + (last - before) / (larger - smaller) * (budget - larger)


def memory_limit(device: torch.device) -> float:
    """The bytes that this process has, and may still get, on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    own = _kilobytes("/proc/self/status", "VmRSS")
    limits = [own + _kilobytes("/proc/meminfo", "MemAvailable")]
    group = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if group[0] is not None and group[1] is not None:
        limits.append(own + group[0] - group[1])
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        limits.append(own + space - _kilobytes("/proc/self/status", "VmSize"))
    return float(min(limits))


def _kilobytes(path: str, key: str) -> int:
    """A number of kB from a file in /proc, in bytes. Raises ConfigError where the system has no such file."""
    try:
        with open(path) as file:
            found = re.search(rf"{key}:\s+(\d+) kB", file.read())
    except OSError:
        found = None
    if not found:
        raise ConfigError(f"--max-tokens auto: {path} does not say how much memory there is. Give a number.")
    return int(found[1]) * 1024


def _number(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):  # no such control group, or no limit
        return None
