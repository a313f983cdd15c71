"""Large temporaries do not page-fault anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from pyseq.training.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(77)
def once():
    torch.zeros(32 << 20, dtype=torch.uint8).add_(1)
for _ in range(20): once()  # the heap grows to what is needed
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    result = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True)
    if result.returncode == 77:
        pytest.skip("this C library has no mallopt")
    return int(result.stdout)


def test_freed_memory_is_used_again():
    assert faults("keep") < 0.1 * faults("leave")
