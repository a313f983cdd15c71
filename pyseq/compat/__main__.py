"""Run a script that imports fairseq: ``python -m pyseq.compat script.py [arguments]``."""

from __future__ import annotations

import os
import runpy
import sys

from pyseq import compat


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python -m pyseq.compat SCRIPT [arguments]")
    del sys.argv[0]
    # As python SCRIPT would have it: the script's folder is searched for modules, the working directory is not.
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    compat.install()
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
