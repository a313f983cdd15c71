"""A run's JSON as tables: on the terminal, and in the documents.

    python -m benchmarks.report FILE.json                 the tables and targets of a run
    python -m benchmarks.report --write docs/kernels.md   rewrite the tables of a document from the JSON they name
    python -m benchmarks.report --verify docs/kernels.md  exit code 1 if a table differs from its JSON

In a document, a table stands between two comments; the path is relative to the checkout::

    <!-- figures benchmarks/results/ops_cpu.json adam/* -->
    <!-- end of figures -->

``targets`` in place of a pattern puts the table of the targets there, ``machine`` a line on what it was measured on.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import summary, targets
from .summary import Row, Spread

ROOT = Path(__file__).resolve().parents[1]
BUSY = 0.7  # load average above which a run was not alone
REGION = re.compile(r"(<!-- figures (\S+) (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def milliseconds(value: float) -> str:
    return f"{value * 1e3:.3g}" if value < 0.1 else f"{value * 1e3:.0f}"


def megabytes(value: int) -> str:
    return f"{value / 1e6:.2f}" if value < 10e6 else f"{value / 1e6:.0f}"


def _ratio(value: Spread | None) -> str:
    return "" if value is None else f"{value.median:.2f} ({value.low:.2f} - {value.high:.2f})"


def _cells(row: Row) -> dict[str, str]:
    """The columns of a side; one that is empty for every side of a case is left out."""
    return {
        "side": row.name,
        "ms (20 - 80 %)": f"{milliseconds(row.seconds.median)} "
        f"({milliseconds(row.seconds.low)} - {milliseconds(row.seconds.high)})",
        "time over pyseq's": _ratio(row.behind),
        "rate": "" if row.rate is None else f"{row.rate / 1e9:.3g} G{row.unit}/s",
        "of the ceiling": "" if row.share is None else f"{row.share.median:.0%}",
        "extra MB": "" if row.memory is None else megabytes(row.memory),
        "graph ms": "" if row.graph is None else milliseconds(row.graph.median),
        "host us": "" if row.host is None else f"{row.host.median * 1e6:.0f}",
    }


def case_table(case: dict[str, Any]) -> list[dict[str, str]]:
    rows = [_cells(row) for row in summary.rows(case)]
    empty = {name for name in rows[0] if not any(row[name] for row in rows)}
    return [{name: text for name, text in row.items() if name not in empty} for row in rows]


def aligned(rows: list[dict[str, str]], indent: str = "") -> str:
    """Rows as columns of a terminal."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = [{name: name for name in widths}, *rows]
    return "\n".join(indent + "  ".join(line[n].ljust(w) for n, w in widths.items()).rstrip() for line in lines)


def markdown(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def title(case: dict[str, Any]) -> str:
    sizes = ", ".join(f"{name} {_number(value)}" for name, value in case["config"].items())
    return f"{case['name']}: {sizes}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def notes(case: dict[str, Any]) -> list[str]:
    found = [f"not run: {name} ({why})" for name, why in case["skipped"].items()]
    if case["checks"]:
        worst = max(case["checks"], key=lambda row: row["error"] / row["bound"])
        found.append(
            f"all sides agree; the largest error is {worst['error']:.1e} of {worst['quantity']} in "
            f"'{worst['side']}' ({worst['bound']:.0e} is allowed)"
        )
    return found


def machine_line(run: dict[str, Any]) -> str:
    machine, versions, settings = run["machine"], run["versions"], run["settings"]
    where = machine.get("gpu") or machine["processor"]
    rest = f"{settings['threads']} threads, torch {versions['torch']}, pyseq {versions['pyseq']}, {run['started']}"
    quick = ", a smoke run of tiny sizes" if settings["quick"] else ""
    load = machine.get("load", 0.0)
    busy = f"; the machine was busy with other work (load {load:.1f}): spreads are wide" if load > BUSY else ""
    return f"{where}, {rest}{quick}{busy}"


def run_text(run: dict[str, Any]) -> str:
    """All tables of a run, for the terminal."""
    parts = [machine_line(run)]
    for case in run["cases"]:
        lines = [title(case), aligned(case_table(case), "  ")]
        parts.append("\n".join(lines + [f"  {note}" for note in notes(case)]))
    parts += [f"{name}: not run: {why}" for name, why in run["skipped"].items()]
    parts += [f"{name}: error: {why}" for name, why in run["errors"].items()]
    return "\n\n".join(parts)


def targets_table(judged: list[targets.Judgement]) -> list[dict[str, str]]:
    return [
        {
            "case": found.target.case,
            "target": found.target.text,
            "measured": found.measured,
            "verdict": found.verdict,
        }
        for found in judged
    ]


def region(run: dict[str, Any], what: str) -> str:
    """The Markdown between the two comments."""
    if what == "machine":
        return machine_line(run) + "\n"
    if what == "targets":
        return markdown(targets_table(targets.judge(run))) + "\n"
    cases = [case for case in run["cases"] if fnmatch(case["name"], what)]
    if not cases:
        raise ValueError(f"no case is named '{what}'")
    return "\n\n".join(f"{title(case)}\n\n{markdown(case_table(case))}" for case in cases) + "\n"


def rewritten(text: str, root: Path = ROOT) -> str:
    """A document with its figures made anew from the JSON files that it names; of a missing one it says so.

    Raises:
        ValueError: a JSON file has no case of the name that stands in the comment.
    """

    def table(match: re.Match[str]) -> str:
        begin, file, what, end = match.groups()
        if not (root / file).is_file():
            return f"{begin}Not measured yet: there is no `{file}`.\n{end}"
        try:
            return begin + region(load(root / file), what) + end
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    return REGION.sub(table, text)


def load(path: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(path.read_text())
    return run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="the JSON of a run")
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="DOCUMENT")
    parser.add_argument("--verify", type=Path, nargs="+", default=[], metavar="DOCUMENT")
    args = parser.parse_args(argv)
    if args.file is None and not args.write and not args.verify:
        parser.error("give the JSON of a run, or --write or --verify with documents")
    try:
        if args.file is not None:
            run = load(args.file)
            print(run_text(run) + "\n\n" + aligned(targets_table(targets.judge(run))))
        for path in args.write:
            path.write_text(rewritten(path.read_text()))
        stale = [path for path in args.verify if rewritten(path.read_text()) != path.read_text()]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in stale:
        print(f"{path}: a table differs from its JSON; run python -m benchmarks.report --write {path}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
