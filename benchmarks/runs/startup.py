"""What a user waits for: the help text, and the first finished update, from the start of the process."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from .. import corpora, fairseq, processes, recipes
from ..harness import Case, Sample, Side, Work
from ..recipes import ALL_OFF, DEFAULT

FIRST_UPDATE = re.compile(r"\btrain_inner\b.*\bnum_updates\b\W+1\b")


def help_text(device: torch.device, quick: bool) -> Work:
    work = Work({"command": "pyseq-train --help"}, [], 0.0, cold=False, turns=1 if quick else 5, warm_up=not quick)
    work.sides.append(processes.timed_command("pyseq", lambda _: [*processes.pyseq_command("train"), "--help"]))
    work.sides.append(processes.timed_command("import torch", lambda _: [sys.executable, "-c", "import torch"]))
    work.sides.append(processes.timed_command("Python alone", lambda _: [sys.executable, "-c", "pass"]))
    work.add(
        "fairseq",
        lambda: _fairseq_command([*fairseq.command("train"), "--help"]),
    )
    return work


def _fairseq_command(command: list[str]) -> Side:
    return processes.timed_command("fairseq", lambda _: command, fairseq.environment())


def until_first_update(command: Sequence[str | Path], env: Mapping[str, str]) -> Sample:
    """Seconds until the log line of update 1 has come."""
    with processes.scratch() as folder:
        done = processes.execute([*command, "--save-dir", folder], env)
    stamps = [stamp for stamp, line in done.lines if FIRST_UPDATE.search(line)]
    if not stamps:
        raise processes.CommandFailed("the log has no line for update 1:\n" + "\n".join(line for _, line in done.lines))
    return done.sample() | {"seconds": stamps[0]}


def first_update(device: torch.device, quick: bool) -> Work:
    data = corpora.tiny_pairs() if quick else corpora.multi30k()
    small = recipes.SMALL_PAIRS if quick else []
    log = ["--log-format", "json", "--log-interval", "1", "--no-save", "--disable-validation", "--seed", "1"]
    arguments: list[str | Path] = [data, *recipes.TINY, *small, *log, "--cpu", "--max-update", "1"]
    config = {"options": " ".join(map(str, arguments[1:]))}
    work = Work(config, [], 0.0, cold=False, turns=1 if quick else 5, warm_up=not quick)
    command = [*processes.pyseq_command("train"), *arguments]
    for variant in (DEFAULT, ALL_OFF):
        env = processes.environment(variant.environment)
        full = [*command, *variant.flags]
        work.sides.append(Side(variant.name, measure=lambda full=full, env=env: until_first_update(full, env)))  # type: ignore[misc]
    work.add("fairseq", lambda: _fairseq_update(arguments))
    return work


def _fairseq_update(arguments: Sequence[str | Path]) -> Side:
    command: list[str | Path] = [*fairseq.command("train"), *arguments]
    return Side("fairseq", measure=lambda: until_first_update(command, fairseq.environment()))


CASES = [Case("startup/help", help_text, ("cpu",)), Case("startup/first-update", first_update, ("cpu",))]
