"""Benchmarks: pyseq beside its peers and beside what the machine can do.

    pyseq-bench list [PATTERN ...]             names of the cases that this device has
    pyseq-bench run [PATTERN ...] [options]    run them; a table, and a JSON with every sample
    pyseq-bench compare OLD.json NEW.json      two runs: the change beside the noise
    pyseq-bench plot RUN.json PICTURE ...      shares of the ceilings, ratios, scaling curves (.png, .svg)
    pyseq-bench report RUN.json                tables and targets of a run; --write DOCUMENT puts them there

In a checkout: python -m benchmarks. A name is "group/variant": train/, generate/, preprocess/, startup/, checkpoint/,
data/, and one group for each operation (adam/, cross_entropy/, ...). Cases of whole runs read PYSEQ_REFERENCE and
PYSEQ_DATA, or the options --reference and --data. Add --help to a subcommand for its options.
"""

from __future__ import annotations

import argparse
import signal
import sys

import torch

from . import command, compare, plot, report
from .cases import all_cases
from .harness import select


def list_cases(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="pyseq-bench list")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    print("\n".join(case.name for case in select(all_cases(), args.patterns, torch.device(args.device).type)))
    return 0


def run_cases(argv: list[str]) -> int:
    return command.main(all_cases(), argv, "Run cases by their names; without a pattern, all that this device has.")


COMMANDS = {
    "list": list_cases,
    "run": run_cases,
    "compare": compare.main,
    "plot": plot.main,
    "report": report.main,
}


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if arguments[0] not in COMMANDS:
        print(f"error: {arguments[0]} is none of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return COMMANDS[arguments[0]](arguments[1:])


def cli_main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and the processes of a case end, too
    sys.exit(main())


if __name__ == "__main__":
    cli_main()
