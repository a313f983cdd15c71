"""The command that runs cases: what ``python -m benchmarks`` and ``python -m benchmarks.ops`` have in common."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from pyseq.training.allocator import keep_freed_memory

from . import machine, plot, report, targets
from .harness import Case, Mismatch, Unavailable, run_case, select

DEFAULT_FOLDER = machine.work_folder()


class Progress:
    """A line on stderr: which case, which turn, how long all of it will still take."""

    def __init__(self, cases: int) -> None:
        self._cases, self._done, self._begin, self._name = cases, 0, time.perf_counter(), ""

    def start(self, name: str) -> None:
        self._name = name
        self._show("building and checking")

    def turn(self, done: int, planned: int) -> None:
        self._show(f"turn {done} of {planned}", done / max(planned, 1))

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
        elif part == 0.0:
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
            if not isinstance(error, Mismatch):
                traceback.print_exc()
            found["errors"][case.name] = f"{type(error).__name__}: {error}"
            progress.finish()
            print(f"{case.name}: error: {error}\n", flush=True)
        path.write_text(json.dumps(found, indent=1, default=str) + "\n")
    return found


def parse(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PATTERN", help="cases with PATTERN in their name, or matching its *"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=15, help="how often each side is timed at most")
    parser.add_argument("--seconds", type=float, default=20.0, help="no turn of a case begins after so long, after 5")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two turns: does it run at all?")
    parser.add_argument("--json", type=Path, help=f"where the run is kept (default: a new file in {DEFAULT_FOLDER})")
    parser.add_argument("--plot", type=Path, nargs="+", default=[], metavar="FILE", help="pictures: .png, .svg")
    parser.add_argument("--check", action="store_true", help="print the targets; exit code 1 if one does not hold")
    args = parser.parse_args(argv)
    if args.quick and args.check:
        parser.error("--check needs the full sizes, which --quick shrinks")
    if args.quick:
        args.turns = min(args.turns, 2)
    return args


def main(cases: list[Case], argv: list[str] | None = None, description: str | None = None) -> int:
    """Returns the exit code: 1 if a target does not hold under ``--check``, 2 if a case fails or none matches."""
    args = parse(argv, description)
    chosen = select(cases, args.only, torch.device(args.device).type)
    if args.list:
        print("\n".join(case.name for case in chosen))
        return 0
    if not chosen:
        print(f"error: no case matches {' '.join(args.only)}; --list prints their names", file=sys.stderr)
        return 2
    path = args.json or DEFAULT_FOLDER / f"{datetime.datetime.now():%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = run(chosen, args, path)
    print(f"written to {path}")
    for picture in args.plot:
        plot.plot(found, picture)
    names = {case.name for case in chosen}
    judged = [one for one in targets.judge(found) if one.target.case in names] if args.check else []
    if judged:
        print("\n" + report.aligned(report.targets_table(judged)))
    for name, error in found["errors"].items():
        print(f"error: {name}: {error}", file=sys.stderr)
    if found["errors"]:
        return 2
    return 1 if any(one.verdict == "does not hold" for one in judged) else 0
