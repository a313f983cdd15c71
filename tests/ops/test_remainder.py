"""Masters as bf16 parameter and 16-bit remainder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyseq.ops as ops
from pyseq.ops import dispatch
from support.adam import BACKENDS, Settings, Tensors, step_on
from support.backends import is_interpreted


def patterns() -> Tensor:
    """All 2^16 high halves with low halves that matter: 0, the tie and its neighbours, the ends, and some others."""
    high = torch.arange(1 << 16, dtype=torch.int64).view(-1, 1)
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1234, 0xABCD])
    return ((high << 16) | low).view(-1)


def as_floats(bits: Tensor) -> Tensor:
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)


def nearest_away(bits: Tensor) -> Tensor:
    """The high half of the nearest bf16 number, ties away from zero, by comparing distances."""
    magnitude, sign = bits & 0x7FFFFFFF, bits >> 31 << 15
    below = magnitude >> 16
    return sign | torch.where(magnitude - (below << 16) >= ((below + 1) << 16) - magnitude, below + 1, below)


def test_round_trip_of_every_finite_number() -> None:
    bits = patterns()
    masters = as_floats(bits)
    finite = masters.isfinite()
    param, remainder = ops.split_master(masters)
    assert param.dtype == torch.bfloat16 and remainder.dtype == torch.int16
    joined = ops.join_master(param, remainder)
    assert torch.equal(joined[finite].view(torch.int32), masters[finite].view(torch.int32))
    assert torch.equal(param[finite].view(torch.int16).to(torch.int64) & 0xFFFF, nearest_away(bits[finite]))


def test_inf_and_nan_stay_what_they_are() -> None:
    masters = as_floats(patterns())
    masters = masters[~masters.isfinite()]
    param, remainder = ops.split_master(masters)
    assert not remainder.any()
    assert torch.equal(param.isnan(), masters.isnan())
    assert torch.equal(param[masters.isinf()].float(), masters[masters.isinf()])
    assert (param[masters.isnan()].view(torch.int16) & 0x40).all()  # quiet
    canonical = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    assert ops.split_master(canonical)[0].isnan().all()  # rounded like a number it would be -0


def frozen(masters: Tensor) -> Tensors:
    """Tensors whose masters an update with lr 0 keeps."""
    param, remainder = ops.split_master(masters)
    zeros = [torch.zeros_like(masters)]
    return Tensors([param], [torch.zeros_like(param)], zeros, [torch.ones_like(masters)], None, [remainder])


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_kernels_split_and_join_alike(backend: str) -> None:
    # The last vector is not whole. Nine has no divisor with eight, the number of low halves: all of them are there.
    masters = as_floats(patterns())[1 :: 9 if is_interpreted(backend) else 1]
    tensors = frozen(masters)
    got = step_on(backend, tensors, Settings(lr=0.0, weight_decay=0.0))
    assert got.extras is not None and tensors.extras is not None
    joined = ops.join_master(tensors.params[0], tensors.extras[0])
    finite = joined.isfinite()
    assert torch.equal(got.params[0][finite].view(torch.int16), tensors.params[0][finite].view(torch.int16))
    assert torch.equal(got.extras[0][finite], tensors.extras[0][finite])
    assert torch.equal(got.params[0].isnan(), masters.isnan())
    assert not got.extras[0][~finite].any()


@pytest.mark.parametrize("backend", ["torch", *BACKENDS])
def test_a_nan_master_is_a_nan_parameter(backend: str) -> None:
    tensors = frozen(torch.ones(37))
    tensors.exp_avgs[0][::2] = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    got = step_on(backend, tensors, Settings(lr=0.1))
    assert got.params[0][::2].isnan().all() and got.params[0][1::2].isfinite().all()


def test_the_kernel_is_there() -> None:
    if not dispatch.status("cpp").available:
        pytest.skip(dispatch.status("cpp").detail)
    assert dispatch.choose("adam", "cpu", torch.bfloat16) == "cpp"
