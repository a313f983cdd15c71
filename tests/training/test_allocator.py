"""Large temporaries do not page-fault anew, and the holes between tensors are used again."""

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

# Every other one of 64 blocks of 1 MB is freed and made again; prints by how many of them the memory grew.
HOLES = """
import sys, torch
from pyseq.training.allocator import keep_freed_memory, use_malloc
if not (keep_freed_memory() and use_malloc()):
    sys.exit(77)
def resident():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) * 1024
SIZE = 1_000_000
blocks = [torch.ones(SIZE, dtype=torch.uint8) for _ in range(64)]
before = resident()
blocks[::2] = [None] * 32
blocks[::2] = [torch.ones(SIZE, dtype=torch.uint8) for _ in range(32)]
print(round((resident() - before) / SIZE))
"""

# What a program may ask of the allocator. Runs in a process of its own, because an allocator stays.
USE = """
import gc, sys, torch
from pyseq.training.allocator import use_malloc
if not use_malloc():
    sys.exit(77)
for size in (0, 1, 63, 64, 4097, 3 << 20):
    x = torch.full((size,), 7, dtype=torch.uint8)
    assert x.data_ptr() % 64 == 0 and bool((x == 7).all())
y = torch.arange(5)
y.resize_(100_000)
assert y[:5].tolist() == [0, 1, 2, 3, 4]
assert torch.equal(torch._lazy_clone(y), y)
shared = torch.arange(5).share_memory_()
assert shared.sum() == 10
with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as log:
    z = torch.ones(1 << 20)
    del z
    gc.collect()
found = [e.nbytes() for e in log.profiler.kineto_results.events() if e.name() == "[memory]"]
assert (4 << 20) in found and sum(found) == 0, found
try:
    torch.empty(1 << 60, dtype=torch.uint8)
except RuntimeError as error:
    print(str(error))
"""


def run(code: str, *arguments: str) -> str:
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if result.returncode == 77:
        pytest.skip("this C library has no mallopt, or pyseq._torch is not built for this torch")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_freed_memory_is_used_again():
    assert int(run(FAULTS, "keep")) < 0.1 * int(run(FAULTS, "leave"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_hole_fits_the_next_tensor_of_its_size():
    assert int(run(HOLES)) <= 2


def test_torch_finds_what_it_expects_of_an_allocator():
    from pyseq.training.memory import is_out_of_memory

    assert is_out_of_memory(RuntimeError(run(USE)))
