"""A run's JSON as tables: on the terminal, and in the documents.

    python -m benchmarks report FILE.json                 the tables and targets of a run
    python -m benchmarks report --write docs/kernels.md   rewrite the tables of a document from the JSON they name
    python -m benchmarks report --verify docs/kernels.md  exit code 1 if a table differs from its JSON

In a document, a table stands between two comments; the path is relative to the checkout::

    <!-- figures benchmarks/results/ops_cpu-1.json adam/* -->
    <!-- end of figures -->

``targets`` in place of a pattern puts the table of the targets there, ``machine`` a line on what it was measured on,
``headlines`` a short table for the first page. These take several runs, named by a path with wildcards, in the order of
the numbers in the names.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import summary, targets
from .summary import PARTS, Row, Spread

ROOT = Path(__file__).resolve().parents[1]
BUSY = 0.7  # load average above which a run was not alone
REGION = re.compile(r"(<!-- figures (\S+) (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def milliseconds(value: float) -> str:
    return f"{value * 1e3:.3g}" if value < 0.1 else f"{value * 1e3:.0f}"


def megabytes(value: int) -> str:
    return f"{value / 1e6:.2f}" if value < 10e6 else f"{value / 1e6:.0f}"


def _ratio(value: Spread | None) -> str:
    return "" if value is None else f"{value.median:.2f} ({value.low:.2f} - {value.high:.2f})"


def _with_spread(value: Spread, text: Callable[[float], str]) -> str:
    return f"{text(value.median)} ({text(value.low)} - {text(value.high)})"


def _per_second(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cells(row: Row, unit: str) -> dict[str, str]:
    """The columns of a side; one that is empty for every side of a case is left out."""
    speed = {"ms (20 - 80 %)": _with_spread(row.seconds, milliseconds)}
    if unit:
        speed = {f"{unit}/s (20 - 80 %)": "" if row.done is None else _with_spread(row.done, _per_second)}
    return {
        "side": row.name,
        **speed,
        "time over pyseq's": _ratio(row.behind),
        "rate": "" if row.rate is None else f"{row.rate / 1e9:.3g} G{row.unit}/s",
        "of the ceiling": "" if row.share is None else f"{row.share.median:.0%}",
        "extra MB": "" if row.memory is None else megabytes(row.memory),
        "peak MB": "" if row.resident is None else megabytes(int(row.resident)),
        "CPU s": "" if row.cpu is None else f"{row.cpu:.3g}",
        **{f"{name} ms": milliseconds(spent) for name, spent in row.parts.items()},
        "graph ms": "" if row.graph is None else milliseconds(row.graph.median),
        "host us": "" if row.host is None else f"{row.host.median * 1e6:.0f}",
    }


def case_table(case: dict[str, Any]) -> list[dict[str, str]]:
    found = [_cells(row, case.get("unit", "")) for row in summary.rows(case)]
    columns = sorted({name: None for row in found for name in row}, key=_place)
    rows = [{name: row.get(name, "") for name in columns} for row in found]
    empty = {name for name in rows[0] if not any(row[name] for row in rows)}
    return [{name: text for name, text in row.items() if name not in empty} for row in rows]


def _place(column: str) -> int:
    """Columns of parts come in the order of an update, whichever side has them first; others stay where they are."""
    order = [f"{part} ms" for part in ("update", *PARTS, "other")]
    return order.index(column) if column in order else -1


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
        worst = max(case["checks"], key=lambda row: row["error"] / row["bound"] if row["bound"] else 0.0)
        largest = (
            f"the largest error is {worst['error']:.1e} of {worst['quantity']} in '{worst['side']}' "
            f"({worst['bound']:.0e} is allowed)"
        )
        found.append(f"all sides agree; {largest if worst['bound'] else 'to the last bit'}")
    return found


def machine_line(run: dict[str, Any]) -> str:
    machine, versions, settings = run["machine"], run["versions"], run["settings"]
    where = machine.get("gpu") or f"{machine['processor']} with {machine['cpu_capability']}"
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


def targets_table(runs: Mapping[str, list[targets.Judgement]]) -> list[dict[str, str]]:
    """A line for each target; what several runs measured stands side by side, and all have to hold.

    Args:
        runs: by number, which stands in brackets behind a figure where there are several.
    """
    lines = []
    for found in zip(*runs.values()):
        figures = [(number, one.measured) for number, one in zip(runs, found) if one.measured]
        lines.append(
            {
                "case": found[0].target.case,
                "target": found[0].target.text,
                "measured": ", ".join(f"{value} ({number})" if len(runs) > 1 else value for number, value in figures),
                "verdict": _verdict([one.verdict for one in found]),
            }
        )
    return lines


def headlines_table(runs: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """A line for each comparison that some of the runs have: the least and the largest of their medians."""
    runs, lines = list(runs), []
    for headline in targets.HEADLINES:
        each = [value for value in map(headline.times_as_fast, runs) if value is not None]
        if each:
            times = " to ".join(dict.fromkeys(f"{value:.3g}" for value in (min(each), max(each))))
            lines.append(
                {
                    "work": headline.work,
                    "beside": headline.beside,
                    "times as fast": f"{times} ({len(each)} run{'s' * (len(each) > 1)})",
                }
            )
    return lines


def _verdict(each: list[str]) -> str:
    """Of the runs that have a figure."""
    measured = [one for one in each if one != "not run"] or each
    if len(set(measured)) == 1:
        return measured[0]
    return f"holds in {measured.count('holds')} of {len(measured)} runs"


def region(runs: Mapping[str, dict[str, Any]], what: str) -> str:
    """The Markdown between the two comments, from runs by number.

    Raises:
        ValueError: no case has this name; or tables of several runs are asked for.
    """
    if what == "machine":
        lines = [(f"Run {number}: " if len(runs) > 1 else "") + machine_line(run) for number, run in runs.items()]
        return "\n\n".join(lines) + "\n"
    if what == "targets":
        present = {group for run in runs.values() for group in groups(run)}
        judged = {
            number: [one for one in targets.judge(run) if group_of(one.target.case) in present]
            for number, run in runs.items()
        }
        return markdown(targets_table(judged)) + "\n"
    if what == "headlines":
        return markdown(headlines_table(runs.values())) + "\n"
    if len(runs) > 1:
        raise ValueError(f"{len(runs)} runs match, and the tables of one are wanted")
    run = next(iter(runs.values()))
    parts = [f"{title(case)}\n\n{case_text(case)}" for case in run["cases"] if fnmatch(case["name"], what)]
    parts += [f"{name}: not run: {why}" for name, why in run["skipped"].items() if fnmatch(name, what)]
    if not parts:
        if not any(fnmatch(name, what) for name in known_names()):
            raise ValueError(f"no case is named '{what}'")
        parts = [f"Not measured yet: the run has no case `{what}`."]
    return "\n\n".join(parts) + "\n"


def case_text(case: dict[str, Any]) -> str:
    """Its table, and which sides could not run."""
    skipped = [f"Not run: {name} ({why})." for name, why in case["skipped"].items() if case.get("unit")]
    return "\n\n".join([markdown(case_table(case)), *(["  \n".join(skipped)] if skipped else [])])


def group_of(name: str) -> str:
    return name.partition("/")[0]


def groups(run: dict[str, Any]) -> set[str]:
    """Groups of the cases that a run was asked for."""
    return {group_of(name) for name in [*(case["name"] for case in run["cases"]), *run["skipped"], *run["errors"]]}


def known_names() -> list[str]:
    from .cases import all_cases

    return [case.name for case in all_cases()]


def rewritten(text: str, root: Path = ROOT) -> str:
    """A document with its figures made anew from the JSON files that it names; of a missing one it says so.

    Raises:
        ValueError: a JSON file has no case of the name that stands in the comment.
    """

    def table(match: re.Match[str]) -> str:
        begin, file, what, end = match.groups()
        paths = root.glob(file) if not Path(file).is_absolute() else [Path(file)]
        found = sorted(((number_of(path), path) for path in paths), key=lambda one: (len(one[0]), one))
        if not found:
            return f"{begin}Not measured yet: there is no `{file}`.\n{end}"
        try:
            return begin + region({number: load(path) for number, path in found}, what) + end
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    return REGION.sub(table, text)


def number_of(path: Path) -> str:
    """Of the run that is kept there: 2 of ops_cpu-2.json."""
    return path.stem.rpartition("-")[2]


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
            judged = [one for one in targets.judge(run) if group_of(one.target.case) in groups(run)]
            print(run_text(run) + ("\n\n" + aligned(targets_table({"": judged})) if judged else ""))
        for path in args.write:
            path.write_text(rewritten(path.read_text()))
        stale = [path for path in args.verify if rewritten(path.read_text()) != path.read_text()]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in stale:
        print(f"{path}: a table differs from its JSON; run python -m benchmarks report --write {path}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
