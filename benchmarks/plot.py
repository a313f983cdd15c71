"""A run as a picture: shares of the machine's ceilings, time over pyseq's, scaling curves. Needs matplotlib.

python -m benchmarks plot RUN.json PICTURE.svg ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from . import summary
from .harness import Unavailable

OURS, OTHERS, CEILING = "#1f5fa8", "#b9bec6", "#444444"
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # so that no line runs through a number


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
    bars = [
        panel
        for panel in (
            (_shares(run), "share of the machine's measured ceiling", False),
            (_ratios(run), "time over that of pyseq's first side", True),
        )
        if panel[0]
    ]
    scaled = [case for case in run["cases"] if curves(case)]
    columns = 2 if max(len(bars), len(scaled)) > 1 else 1
    heights = [1.2 + 0.24 * max(4, *(len(values) for values, _, _ in bars))] if bars else []
    heights += [4.0] * -(-len(scaled) // columns)
    if not heights:
        raise Unavailable("there is nothing to plot: no case has sides to compare")
    figure, axes = pyplot.subplots(
        len(heights),
        columns,
        figsize=(7.5 * columns, sum(heights)),
        squeeze=False,
        height_ratios=heights,
        constrained_layout=True,
    )
    first, below = (axes[0], axes[1:].flatten()) if bars else (axes[0, :0], axes.flatten())
    for place, panel in zip(first, bars):
        _bars(place, *panel)
    for place, case in zip(below, scaled):
        _curves(place, case)
    for place in [*first[len(bars) :], *below[len(scaled) :]]:
        place.set_visible(False)
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


def curves(case: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Curves of a case whose sides stand on a scale: (scale, rate, or seconds where no units are counted) by label.

    The label is what comes before the last comma and space of a side's name ("pyseq" of "pyseq, 10,000 pairs").
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for one, row in zip(case["sides"], summary.rows(case)):
        if one.get("scale") is not None:
            value = row.seconds.median if row.done is None else row.done.median
            found.setdefault(row.name.rpartition(", ")[0] or row.name, []).append((one["scale"], value))
    return {label: sorted(points) for label, points in found.items()}


def _curves(axes: Any, case: dict[str, Any]) -> None:
    for label, points in curves(case).items():
        axes.plot(*zip(*points), marker="o", label=label, color=OURS if label.startswith("pyseq") else OTHERS)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1 * max(value for points in curves(case).values() for _, value in points))
    axes.set_title(case["name"], fontsize=9)
    axes.set_xlabel(case["config"].get("scale", ""))
    axes.set_ylabel(f"{case['unit']}/s" if case.get("unit") else "seconds")
    axes.legend(fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Any, bars: list[tuple[str, float, bool]], label: str, log: bool) -> None:
    names, values, ours = zip(*bars)
    places = range(len(names))
    axes.barh(places, values, color=[OURS if mine else OTHERS for mine in ours])
    axes.set_yticks(places, names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1.0, color=CEILING, linewidth=1)
    axes.set_xlabel(label)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}" if max(values) < 10 * min(values) else "")
    for place, value in zip(places, values):
        axes.annotate(
            f"{value:.2f}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=6, bbox=CLEAR
        )
    axes.spines[["top", "right"]].set_visible(False)


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) < 2:
        print("usage: python -m benchmarks plot RUN.json PICTURE ...", file=sys.stderr)
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
