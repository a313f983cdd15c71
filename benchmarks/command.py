"""The command that runs cases: what ``python -m benchmarks`` and ``python -m benchmarks.ops`` have in common."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from pyseq.training.allocator import keep_freed_memory

from . import fairseq, machine, plot, report, settings, targets
from .harness import Case, Mismatch, Unavailable, run_case, select
from .processes import CommandFailed

DEFAULT_FOLDER = machine.work_folder()


class Progress:
    """A line on stderr: which case, which turn, how long all of it will still take."""

    LINES_EVERY = 60.0  # seconds, where stderr is no terminal

    def __init__(self, cases: int) -> None:
        self._cases, self._done, self._begin, self._name = cases, 0, time.perf_counter(), ""
        self._shown = 0.0

    def start(self, name: str) -> None:
        self._name = name
        self._show("building and checking")

    def turn(self, done: float, planned: int) -> None:
        self._show(f"turn {done:.3g} of {planned}", done / max(planned, 1))

    def finish(self) -> None:
        self._done += 1
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)

    def _show(self, what: str, part: float = 0.0) -> None:
        elapsed = time.perf_counter() - self._begin
        share = (self._done + part) / self._cases
        rest = f", about {elapsed * (1 - share) / share:.0f} s to go" if share > 0 else ""
        line = f"[{self._done + 1}/{self._cases}] {self._name}: {what}{rest}"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", flush=True, file=sys.stderr)
        elif part == 0.0 or time.perf_counter() - self._shown > self.LINES_EVERY:
            self._shown = time.perf_counter()
            print(line, flush=True, file=sys.stderr)


def run(cases: list[Case], args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Run cases and return the run as its JSON at ``path`` keeps it; that is written after every case.

    A case that fails leaves a sentence under ``errors`` and no figures; the others are run all the same.
    """
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    found: dict[str, Any] = {
        "started": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        **machine.describe(device),
        "settings": {
            "device": device.type,
            "threads": torch.get_num_threads(),
            "quick": args.quick,
            "turns": args.turns,
            "seconds": args.seconds,
        },
        "cases": [],
        "skipped": {},
        "errors": {},
    }
    if os.environ.get(settings.FAIRSEQ):
        found["versions"]["fairseq"] = fairseq.version()
    progress = Progress(len(cases))
    kept = False
    for case in sorted(cases, key=lambda case: case.allocator != "system"):  # there is no way back from "keep"
        progress.start(case.name)
        if case.allocator == "keep" and not kept:
            kept = keep_freed_memory()
        try:
            result = run_case(
                case, device, quick=args.quick, turns=args.turns, seconds=args.seconds, on_turn=progress.turn
            )
            found["cases"].append(result)
            progress.finish()
            print("\n".join([report.title(result), report.aligned(report.case_table(result), "  ")]), flush=True)
            print("\n".join([f"  {note}" for note in report.notes(result)] + [""]), flush=True)
        except Unavailable as error:
            found["skipped"][case.name] = str(error)
            progress.finish()
            print(f"{case.name}: not run: {error}\n", flush=True)
        except Exception as error:
            if not isinstance(error, (Mismatch, CommandFailed)):
                traceback.print_exc()
            found["errors"][case.name] = f"{type(error).__name__}: {error}"
            progress.finish()
            print(f"{case.name}: error: {error}\n", flush=True)
        path.write_text(json.dumps(found, indent=1, default=str) + "\n")
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of running cases."""
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="cases with it in their name, or matching its *")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=15, help="how often each side is timed at most")
    parser.add_argument("--seconds", type=float, default=20.0, help="no turn of a case begins after so long, after 5")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two turns: does it run at all?")
    parser.add_argument("--json", type=Path, help=f"where the run is kept (default: a new file in {DEFAULT_FOLDER})")
    parser.add_argument("--plot", type=Path, nargs="+", default=[], metavar="FILE", help="pictures: .png, .svg")
    parser.add_argument("--check", action="store_true", help="print the targets; exit code 1 if one does not hold")
    parser.add_argument("--reference", help=f"folder that fairseq made of Multi30k (default: ${settings.REFERENCE})")
    parser.add_argument("--data", help=f"folder of corpora (default: ${settings.DATA})")
    parser.add_argument("--fairseq", metavar="PYTHON", help="interpreter in which fairseq imports: it becomes a peer")


def checked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """What the options say, handed on to cases; a combination that cannot be ends the program."""
    if args.quick and args.check:
        parser.error("--check needs the full sizes, which --quick shrinks")
    if args.quick:
        args.turns = min(args.turns, 2)
    for variable, value in (
        (settings.REFERENCE, args.reference),
        (settings.DATA, args.data),
        (settings.FAIRSEQ, args.fairseq),
    ):
        if value is not None:
            os.environ[variable] = value
    return args


def main(cases: list[Case], argv: list[str] | None = None, description: str | None = None) -> int:
    """Run ``cases`` by their names. Returns the exit code of :func:`execute`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    return execute(cases, checked(parser, parser.parse_args(argv)))


def execute(cases: list[Case], args: argparse.Namespace) -> int:
    """Returns the exit code: 1 if a target does not hold under ``--check``, 2 if a case fails or none matches."""
    chosen = select(cases, args.patterns, torch.device(args.device).type)
    if not chosen:
        print(f"error: no case matches {' '.join(args.patterns)}; list prints their names", file=sys.stderr)
        return 2
    path = args.json or DEFAULT_FOLDER / f"{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = run(chosen, args, path)
    print(f"written to {path}")
    try:
        for picture in args.plot:
            plot.plot(found, picture)
    except Unavailable as why:
        print(f"no picture: {why}", file=sys.stderr)
    names = {case.name for case in chosen}
    judged = [one for one in targets.judge(found) if one.target.case in names] if args.check else []
    if judged:
        print("\n" + report.aligned(report.targets_table({"": judged})))
    for name, error in found["errors"].items():
        print(f"error: {name}: {error}", file=sys.stderr)
    if found["errors"]:
        return 2
    return 1 if any(one.verdict == "does not hold" for one in judged) else 0
