"""A run as a picture: shares of the machine's ceilings, and how much longer the peers take. Needs matplotlib.

python -m benchmarks.plot RUN.json PICTURE.svg ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from . import summary
from .harness import Unavailable

OURS, OTHERS, CEILING = "#1f5fa8", "#b9bec6", "#444444"


def plot(run: dict[str, Any], path: Path) -> None:
    """Write a picture; its format is the file's ending (.png, .svg, ...).

    Raises:
        Unavailable: matplotlib is not installed, or the run has no cases.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise Unavailable("plots need matplotlib: pip install 'pyseq[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not run["cases"]:
        raise Unavailable("there is nothing to plot: no case was run")
    shares, ratios = _shares(run), _ratios(run)
    height = 1.2 + 0.24 * max(len(shares), len(ratios), 4)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, height), constrained_layout=True)
    _bars(left, shares, "share of the machine's measured ceiling", log=False)
    _bars(right, ratios, "time over that of pyseq's first side", log=True)
    figure.suptitle(f"{run['machine'].get('gpu') or run['machine']['processor']}, {run['settings']['threads']} threads")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _shares(run: dict[str, Any]) -> list[tuple[str, float, bool]]:
    return [
        (f"{case['name']}  {row.name}", row.share.median, row.name.startswith("pyseq"))
        for case in run["cases"]
        for row in summary.rows(case)
        if row.share is not None
    ]


def _ratios(run: dict[str, Any]) -> list[tuple[str, float, bool]]:
    return [
        (f"{case['name']}  {row.name}", row.behind.median, row.name.startswith("pyseq"))
        for case in run["cases"]
        for one, row in zip(case["sides"], summary.rows(case))
        if row.behind is not None and one["ceiling"] != "matrix"
    ]


def _bars(axes: Any, bars: list[tuple[str, float, bool]], label: str, log: bool) -> None:
    names, values, ours = zip(*bars) if bars else ((), (), ())
    places = range(len(names))
    axes.barh(places, values, color=[OURS if mine else OTHERS for mine in ours])
    axes.set_yticks(places, names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1.0, color=CEILING, linewidth=1)
    axes.set_xlabel(label)
    if log and values:
        axes.set_xscale("log")
    for place, value in zip(places, values):
        axes.annotate(f" {value:.2f}", (value, place), va="center", fontsize=6)
    axes.spines[["top", "right"]].set_visible(False)


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) < 2:
        print("usage: python -m benchmarks.plot RUN.json PICTURE ...", file=sys.stderr)
        return 2
    try:
        for picture in arguments[1:]:
            plot(json.loads(Path(arguments[0]).read_text()), Path(picture))
    except (OSError, ValueError, Unavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
