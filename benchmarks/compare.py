"""Two runs of the same cases, side by side: ``python -m benchmarks compare BEFORE.json AFTER.json``.

For each side: the change of its median time, the change of its time over the case's yardstick (which takes out that one
run found the machine slower), and the noise, which is how far the samples of the two runs spread. A change that is no
larger than the noise is none. With ``--fail-on-slower`` the exit code is 1 if a side of ours became slower.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import report, summary
from .summary import Spread


@dataclass(frozen=True)
class Change:
    """Of one side of one case between two runs. Changes are shares: 0.1 is 10 % slower."""

    case: str
    side: str
    before: Spread
    after: Spread
    time: float
    against_yardstick: float | None
    noise: float
    unit: str  # of work, where times are those of one

    @property
    def verdict(self) -> str:
        change = self.time if self.against_yardstick is None else self.against_yardstick
        if abs(change) <= self.noise:
            return "within the noise"
        return "slower" if change > 0 else "faster"


def _normalised(case: dict[str, Any], side: dict[str, Any]) -> Spread | None:
    """The side's time over that of a byte or operation of the yardstick, which another run may have in another size."""
    yardstick = next((one for one in case["sides"] if one["ceiling"] is not None and one is not side), None)
    if yardstick is None:
        return None
    work = summary.each(yardstick, "flops" if yardstick["flops"] else "bytes")
    assert work is not None
    return summary.paired(summary.times(side), [s / w for s, w in zip(yardstick["seconds"], work)])


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Of every side that both runs have, with the same sizes; in the order of ``after``.

    Raises:
        ValueError: a case has other sizes in the other run.
    """
    earlier = {case["name"]: case for case in before["cases"]}
    found = []
    for case in after["cases"]:
        if case["name"] not in earlier:
            continue
        old_case = earlier[case["name"]]
        if old_case["config"] != case["config"] or old_case["device"] != case["device"]:
            raise ValueError(f"{case['name']} has other sizes or another device in the other run: nothing to compare")
        old_sides = {side["name"]: side for side in old_case["sides"]}
        found += [
            _change(case["name"], old_case, old_sides[side["name"]], case, side)
            for side in case["sides"]
            if side["name"] in old_sides
        ]
    return found


def _change(
    name: str, old_case: dict[str, Any], old: dict[str, Any], new_case: dict[str, Any], new: dict[str, Any]
) -> Change:
    before, after = summary.spread(summary.times(old)), summary.spread(summary.times(new))
    before_share, after_share = _normalised(old_case, old), _normalised(new_case, new)
    normalised = None
    judged = before, after
    if before_share is not None and after_share is not None:
        normalised = after_share.median / before_share.median - 1
        judged = before_share, after_share
    noise = (judged[0].noise ** 2 + judged[1].noise ** 2) ** 0.5
    return Change(
        name,
        new["name"],
        before,
        after,
        after.median / before.median - 1,
        normalised,
        noise,
        new_case.get("unit", "") if "amount" in new else "",
    )


def _text(seconds: float, unit: str) -> str:
    return f"{1 / seconds:,.0f} {unit}/s" if unit else f"{report.milliseconds(seconds)} ms"


def table(found: list[Change]) -> str:
    rows = [
        {
            "case": change.case,
            "side": change.side,
            "before": _text(change.before.median, change.unit),
            "after": _text(change.after.median, change.unit),
            "time": f"{change.time:+.1%}",
            "against yardstick": "" if change.against_yardstick is None else f"{change.against_yardstick:+.1%}",
            "noise": f"{change.noise:.1%}",
            "verdict": change.verdict,
        }
        for change in found
    ]
    return report.aligned(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--fail-on-slower", action="store_true")
    args = parser.parse_args(argv)
    try:
        before, after = report.load(args.before), report.load(args.after)
        found = changes(before, after)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not found:
        print("the two runs have no side of a case in common", file=sys.stderr)
        return 1
    print(f"before: {report.machine_line(before)}\nafter:  {report.machine_line(after)}\n\n{table(found)}")
    slower = [change for change in found if change.side.startswith("pyseq") and change.verdict == "slower"]
    return 1 if slower and args.fail_on_slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
