"""``python -m pyseq.ops``: which back ends there are, why the rest are not, and what each operation runs on."""

from __future__ import annotations

import pyseq.ops

if __name__ == "__main__":
    print(pyseq.ops.report())
