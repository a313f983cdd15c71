"""Every back end of adam_ against float64 oracles and torch's optimizers."""

from __future__ import annotations

import pytest
import torch

import pyseq.ops as ops
from support.backends import running_on

BACKENDS = ["torch", "cpp-avx512", "cpp-avx2", "cpp-portable"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("amsgrad", [True, False])
@pytest.mark.parametrize("maximize", [True, False])
def test_trajectory_is_that_of_torch(backend: str, decoupled: bool, amsgrad: bool, maximize: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    want = torch.randn(10, 7, generator=generator).double().requires_grad_()
    param = want.detach().float()
    states = [torch.zeros_like(param) for _ in range(3)]
    step = torch.zeros(())
    settings = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8}
    form = torch.optim.AdamW if decoupled else torch.optim.Adam
    theirs = form([want], **settings, amsgrad=amsgrad, maximize=maximize)
    with running_on(backend):
        for _ in range(200):
            grad = torch.randn(param.shape, generator=generator)
            want.grad = grad.double()
            theirs.step()
            ops.adam_(
                [param],
                [grad],
                [states[0]],
                [states[1]],
                step=step,
                **settings,
                beta1=0.9,
                beta2=0.999,
                max_exp_avg_sqs=[states[2]] if amsgrad else None,
                decoupled=decoupled,
                eps_mode="torch",
                maximize=maximize,
            )
    assert float(step) == 200
    torch.testing.assert_close(param.double(), want.detach(), rtol=1e-5, atol=1e-5)
