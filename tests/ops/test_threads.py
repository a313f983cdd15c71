"""Operations leave the pool of threads as it is, which they share with torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyseq.ops import dispatch

# Sizes that are worth more than one thread and fewer than eight. An operation that asks for a team of some threads ends
# the others, and the next one that asks for all has to start them anew.
PROGRAM = """
import os
import torch
import pyseq.ops as ops
from pyseq.ops.decoder_step import DecoderWeights, LayerWeights, StepCache, decoder_step
from pyseq.ops.linear_top_candidates import linear_top_candidates
from pyseq.ops.packed_linear import PackedLinear
from pyseq.optim import FusedAdamW

def threads():
    return set(os.listdir("/proc/self/task"))

torch.set_num_threads(8)
rows, weight, bias = torch.randn(200, 128), torch.randn(128, 128), torch.randn(128)
leaf, gain = torch.randn(200, 256, requires_grad=True), torch.ones(256)
target = torch.randint(256, (200,))
segments = ops.Segments.from_lengths([5] * 10)
parameter = torch.nn.Parameter(torch.randn(50_000))
parameter.grad = torch.randn(50_000)
optimizer = FusedAdamW([parameter])
packed = PackedLinear.pack(torch.randn(400, 128), torch.randn(400))
square, wide = (PackedLinear.pack(torch.randn(n, 64), torch.randn(n)) for n in (64, 192))
norm = torch.ones(64), torch.zeros(64)
some, pairs = torch.randn(300, 256).bfloat16(), ops.dispatch.required_core().has_bf16_products()
layers = [LayerWeights(norm, wide, square, norm, square, square, None)]
decoder = DecoderWeights(layers, None, 2, False, "relu", 1e-5)
works = {
    "gemm": lambda: ops.gemm_(torch.empty(200, 128), rows, weight),
    "outer products": lambda: pairs and ops.outer_products_(torch.empty(200, 128), some[:, :200], some[:, :128]),
    "cross_entropy": lambda: ops.cross_entropy(leaf, target).backward(),
    "cross_entropy by row": lambda: ops.cross_entropy(leaf, target, reduction="none").sum().backward(),
    "linear_cross_entropy": lambda: ops.linear_cross_entropy(leaf, torch.randn(300, 256), target).backward(),
    "dropout": lambda: ops.dropout(leaf, 0.1).sum().backward(),
    "layer_norm": lambda: ops.layer_norm(leaf, gain, gain, residual=leaf, p=0.1).sum().backward(),
    "attention": lambda: ops.self_attention(torch.randn(50, 3, 2, 64), segments),
    "norm and adam": lambda: optimizer.step(max_norm=1.0),
    "decoder_step": lambda: decoder_step(torch.randn(12, 64), decoder, StepCache(decoder, None, None, 12)),
    "linear_top_candidates": lambda: linear_top_candidates(rows, packed, 5, {}, 0),
}
with ops.backend("cpp"):
    for name, work in works.items():
        work()
        torch.randn(1 << 22).add_(1)  # all eight
        before = threads()
        work()
        gone = before - threads()
        assert not gone, f"{name} ended {len(gone)} threads"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
@pytest.mark.skipif(not dispatch.status("cpp").available, reason=dispatch.status("cpp").detail)
def test_no_operation_ends_threads_of_the_pool() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
