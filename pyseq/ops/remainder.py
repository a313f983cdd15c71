"""An fp32 number as a bf16 parameter and 16 more bits: 4 bytes where a bf16 copy beside an fp32 master takes 6.

The parameter is the master rounded to the nearest bf16, ties away from zero; the remainder is the master's low 16 bits.
(Ties to even cannot be inverted: 65,537 masters would round to each even bf16.) A remainder that is negative as an
int16 says that the master was rounded up. An inf or nan master is an inf or quiet nan parameter with remainder 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXPONENT = 0x7F800000


def split_master(master: Tensor) -> tuple[Tensor, Tensor]:
    """The bf16 parameter and the int16 remainder of an fp32 ``master``, both of its shape."""
    bits = master.view(torch.int32)
    finite = bits & EXPONENT != EXPONENT
    rounded = (bits + 0x8000) >> 16
    quiet = torch.where(master.isnan(), (bits >> 16) | 0x40, bits >> 16)
    param = torch.where(finite, rounded, quiet).to(torch.int16).view(torch.bfloat16)
    return param, torch.where(finite, bits, 0).to(torch.int16)


def join_master(param: Tensor, remainder: Tensor) -> Tensor:
    """The fp32 master of a bf16 ``param`` and its int16 ``remainder``: the inverse of :func:`split_master`."""
    low = remainder.to(torch.int32)
    high = param.view(torch.int16).to(torch.int32) - (low < 0).to(torch.int32)
    return ((high << 16) | (low & 0xFFFF)).view(torch.float32)
