"""Token files for tests, in the formats that fairseq has written over the years."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyseq.data.indexed_builder import MMapDatasetBuilder

ITEMS = [[5, 6, 2], [2], [], [7, 65000, 2]]


def write_mmap(prefix: Path | str, items: list[list[int]], dtype: Any = np.uint16) -> str:
    with MMapDatasetBuilder(f"{prefix}.bin", dtype) as builder:
        for item in items:
            builder.add_item(torch.tensor(item, dtype=torch.int32))
        builder.finalize(f"{prefix}.idx")
    return str(prefix)


def write_torchnet(prefix: Path | str, items: list[list[int]]) -> str:
    """The older format, written field by field."""
    sizes = [len(item) for item in items]
    offsets = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    numbers = [*range(len(items) + 1), *offsets, *sizes]
    header = b"TNTIDX\0\0" + struct.pack("<QQQQQ", 1, 4, 4, len(items), len(sizes))
    Path(f"{prefix}.idx").write_bytes(header + struct.pack(f"<{len(numbers)}q", *numbers))
    Path(f"{prefix}.bin").write_bytes(np.array([t + 1 for item in items for t in item], dtype="<i4").tobytes())
    return str(prefix)
