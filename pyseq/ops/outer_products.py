"""The sum in fp32 of outer products of bf16 rows, on CPUs that multiply bf16: what the gradient of a weight is.

torch's product of bf16 matrices on a CPU is rounded to bf16, so that a sum over chunks is a rounded product, converted
and added, for each chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyseq.ops import dispatch


def pays() -> bool:
    """Whether :func:`outer_products_` can be used, and was measured to be faster than what torch does.

    That is so on processors of AMD with AVX512_BF16. Those of Intel that have it have AMX, too, which torch uses.
    """
    return dispatch.multiplies_bf16() and bool(dispatch.required_core().vendor() == "amd")


def outer_products_(out: Tensor, a: Tensor, b: Tensor, *, accumulate: bool = False) -> Tensor:
    """``out = a^T b``, or ``out += a^T b``. Autograd does not see it. Subnormal numbers count as 0.

    Each element is a sum in one order, whatever the number of threads.

    Args:
        out: [M x N] fp32 on the CPU, apart from the other tensors.
        a, b: [K x M] and [K x N] bf16 on the CPU. None of the three has gaps within a row.
        accumulate: add to what ``out`` holds.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: the tensors do not fit.
        RuntimeError: the processor has no such products.
        ConfigError: the core is not built.
    """
    for tensor, dtype in ((out, torch.float32), (a, torch.bfloat16), (b, torch.bfloat16)):
        if tensor.dtype != dtype or tensor.device.type != "cpu":
            raise TypeError(f"outer_products_ sums bf16 in fp32 on the CPU, not {tensor.dtype} on {tensor.device}")
    shapes = " ".join(str(tuple(t.shape)) for t in (out, a, b))
    if not (out.dim() == a.dim() == b.dim() == 2) or (*a.shape, b.size(1)) != (len(b), *out.shape):
        raise ValueError(f"{shapes} are not the shapes of out [M x N], a [K x M] and b [K x N]")
    for tensor in (out, a, b):
        rows, columns = tensor.shape
        if (columns > 1 and tensor.stride(1) != 1) or (rows > 1 and tensor.stride(0) < columns):
            raise ValueError(f"rows of {tuple(tensor.shape)} have gaps or overlap: the strides are {tensor.stride()}")
    dispatch.required_core().outer_products(
        len(a),
        *out.shape,
        a.data_ptr(),
        a.stride(0),
        b.data_ptr(),
        b.stride(0),
        out.data_ptr(),
        out.stride(0),
        accumulate,
        torch.get_num_threads(),
    )
    return out
