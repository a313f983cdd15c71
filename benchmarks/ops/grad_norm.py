"""The 2-norm of many gradients together: ours, torch's, and a copy. Needed is one read of each gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyseq import ops

from ..harness import Case, Side, Unavailable, Work
from ..machine import copy_yardstick, need_memory
from ..parameter_lists import Shapes, allocate, count_of, even, of_model


def norm(shapes: Callable[[], Shapes], dtype: torch.dtype) -> Callable[[torch.device, bool], Work]:
    def build(device: torch.device, quick: bool) -> Work:
        grad_norm: Any = getattr(ops, "grad_norm", None)
        if not callable(grad_norm):
            raise Unavailable("this pyseq has no ops.grad_norm")
        chosen = [tuple(min(n, 64) for n in shape) for shape in shapes()[:20]] if quick else shapes()
        count = count_of(chosen)
        need_memory(2 * count * dtype.itemsize, device)
        gradients = allocate(chosen, dtype, device, adjacent=False, scale=0.01)
        size = count * dtype.itemsize
        config = {"elements": count, "tensors": len(gradients), "dtype": str(dtype).removeprefix("torch.")}
        ours, theirs = lambda: grad_norm(gradients).norm, lambda: torch.nn.utils.get_total_norm(gradients)
        return Work(
            config,
            [
                Side("pyseq", ours, outcome=lambda: {"norm": ours().float().clone()}, bytes=size),
                Side("get_total_norm", theirs, outcome=lambda: {"norm": theirs().float()}, bytes=size),
                copy_yardstick(device, size),
            ],
            # torch sums in the gradients' dtype
            bound=1e-4 if dtype == torch.float32 else 1e-2,
        )

    return build


CASES = [
    Case("grad_norm/fp32-200", norm(lambda: even(200, 50_000_000), torch.float32), ("cpu",)),
    Case("grad_norm/bf16-200", norm(lambda: even(200, 50_000_000), torch.bfloat16), ("cpu",)),
    Case("grad_norm/2000x512", norm(lambda: even(2000, 2000 * 512), torch.float32)),
    Case("grad_norm/transformer-iwslt", norm(lambda: of_model("iwslt"), torch.float32)),
    Case("grad_norm/bf16-1.5G", norm(lambda: even(400, 1_500_000_000), torch.bfloat16), ("cuda",)),
]
