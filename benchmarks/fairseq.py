"""A real fairseq as a peer: its own commands, run in the interpreter that the user points at; figures from its log.

The commands get the flags that pyseq's get. Speed comes from two of its JSON log lines: the target tokens that lie
between them (``wpb``, the mean of an update since the line before) and the time between their arrivals, because the
times that it logs are rounded to seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import processes, settings
from .harness import Outcome, Sample, Side, Unavailable
from .recipes import CHECK_UPDATES

TRANSLATED = re.compile(r"Translated ([\d,]+) sentences \(([\d,]+) tokens\) in [\d.]+s \(([\d.]+) sentences/s")
LOSS_BOUND = 1e-3  # it logs losses in bits with three digits
Line = tuple[float, str]


def command(name: str) -> list[str]:
    """``fairseq-NAME``. Raises Unavailable where no fairseq is given."""
    return [settings.fairseq(), "-m", f"fairseq_cli.{name}"]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    return processes.environment(more, own=False)


def version() -> str:
    done = processes.execute([settings.fairseq(), "-c", "import fairseq; print(fairseq.__version__)"], environment())
    return done.lines[-1][1]


def updates_logged(lines: Sequence[Line]) -> list[tuple[float, dict[str, Any]]]:
    """The JSON lines of the training loop: seconds of arrival, and the record with its numbers as numbers."""
    found = []
    for stamp, line in lines:
        begin = line.find("{")
        if "| train_inner |" not in line or begin < 0:
            continue
        record = {name: _number(value) for name, value in json.loads(line[begin:]).items()}
        found.append((stamp, record))
    return found


def _number(value: Any) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


def training_sample(lines: Sequence[Line], warm_up: int) -> Sample:
    """Seconds and target tokens of the updates after the first ``warm_up``; there is a log line at that update.

    Raises:
        CommandFailed: the log does not tell.
    """
    logged = updates_logged(lines)
    before = [stamp for stamp, record in logged if record["num_updates"] == warm_up]
    counted = [(stamp, record) for stamp, record in logged if record["num_updates"] > warm_up]
    if not before or not counted:
        raise processes.CommandFailed("fairseq's log has no lines at the ends of the counted updates")
    tokens, done = 0.0, float(warm_up)
    for _, record in counted:
        tokens += record["wpb"] * (record["num_updates"] - done)
        done = record["num_updates"]
    return {"seconds": counted[-1][0] - before[0], "amount": tokens}


def losses(lines: Sequence[Line]) -> Outcome:
    """Of updates that were logged one by one, in nats a token."""
    bits = [record["loss"] for _, record in updates_logged(lines)]
    return {"losses": torch.tensor(bits, dtype=torch.float64) * torch.log(torch.tensor(2.0, dtype=torch.float64))}


def translation_figures(lines: Sequence[Line]) -> Sample:
    """Sentences and seconds of the last line that tells them; pyseq-generate writes the same line.

    Raises:
        CommandFailed: there is none.
    """
    for _, line in reversed(lines):
        match = TRANSLATED.search(line)
        if match:
            sentences = float(match.group(1).replace(",", ""))
            return {"amount": sentences, "seconds": sentences / float(match.group(3))}
    raise processes.CommandFailed("the log does not say how fast sentences were translated")


def training_side(
    name: str,
    arguments: Sequence[str],
    check: Sequence[str],
    updates: int,
    warm_up: int,
    more: Mapping[str, str],
) -> Side:
    """fairseq-train with the recipe's flags after the data folder; ``check``: those of the comparison.

    Raises:
        Unavailable: no fairseq is given.
    """
    train = command("train")
    if updates % warm_up:
        raise Unavailable(f"{updates} updates are no multiple of the {warm_up} that are not counted")
    log = ["--log-format", "json", "--no-save", "--disable-validation", "--seed", "1"]

    def run(extra: Sequence[str]) -> processes.Finished:
        with processes.scratch() as made:
            full: list[str | Path] = [*train, *arguments, *log, "--save-dir", made, *extra]
            return processes.execute(full, environment(more))

    def measure() -> Sample:
        done = run(["--max-update", str(updates), "--log-interval", str(warm_up)])
        return done.sample() | training_sample(done.lines, warm_up)

    def outcome() -> Outcome:
        found = losses(run([*check, "--log-interval", "1"]).lines)
        if len(found["losses"]) != CHECK_UPDATES:
            raise processes.CommandFailed(f"fairseq's log has {len(found['losses'])} updates, not {CHECK_UPDATES}")
        return found

    return Side(name, measure=measure, outcome=outcome, bound=LOSS_BOUND)
