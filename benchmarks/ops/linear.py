"""A linear layer, with relu where the model has it, forward and backward: ours, torch's, and a product.

The sizes are those of feed-forward layers and projections of transformer_iwslt and of the tiny recipe. Needed are three
matrix products of 2 N C F operations each: the output, and the gradients of input and weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyseq import ops
from pyseq.ops.linear import reference

from ..harness import Case, Outcome, Side, Work
from ..machine import matrix_yardstick

TOKENS = 3000
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def case(width: int, features: int, relu: bool) -> Callable[[torch.device, bool], Work]:
    def build(device: torch.device, quick: bool) -> Work:
        n, c, f = (300, 32, 48) if quick else (TOKENS, width, features)
        leaves = (
            torch.randn(n, c, device=device).requires_grad_(),
            (torch.randn(f, c, device=device) * c**-0.5).requires_grad_(),
            torch.randn(f, device=device).requires_grad_(),
        )
        grad = torch.randn(n, f, device=device)
        if relu:  # where the rounding of the sum decides whether a unit is open, nothing comes back
            with torch.no_grad():
                grad[reference(*leaves, False).abs() < 1e-4] = 0.0

        def side(name: str, fn: Function) -> Side:
            def run() -> tuple[Tensor, ...]:
                output = fn(*leaves)
                return (output.detach(), *torch.autograd.grad(output, leaves, grad))

            def outcome() -> Outcome:
                return dict(zip(("output", "gradient of input", "gradient of weight", "gradient of bias"), run()))

            return Side(name, run, outcome=outcome, flops=6 * n * c * f)

        activation: Any = "relu" if relu else "none"
        work = Work(
            {"rows": n, "width": c, "features": f, "activation": activation, "dtype": "float32"},
            [
                side("pyseq", lambda x, w, b: ops.linear(x, w, b, activation=activation)),
                side("torch", lambda x, w, b: reference(x, w, b, relu)),
            ],
            bound=1e-5,
        )
        work.sides.append(matrix_yardstick(device, torch.float32, quick))
        return work

    return build


CASES = [
    Case("linear/tiny-qkv", case(128, 384, relu=False), ("cpu",)),
    Case("linear/tiny-fc1", case(128, 256, relu=True), ("cpu",)),
    Case("linear/iwslt-qkv", case(512, 1536, relu=False), ("cpu",)),
    Case("linear/iwslt-fc1", case(512, 1024, relu=True), ("cpu",)),
    Case("linear/iwslt-fc2", case(1024, 512, relu=False), ("cpu",)),
]
