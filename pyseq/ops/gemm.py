"""The matrix product of the compiled core, fp32 on CPUs: what :mod:`pyseq.ops.linear` is made of, for other operations.

How it compares with torch's is in docs/kernels.md, "Linear layers". Each element is a sum in one order, whatever the
number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyseq.ops import dispatch


def pays() -> bool:
    """Whether the product was measured to be faster than torch's on a processor like this one.

    That is so with AVX2, and with AVX-512 on processors of AMD. On Intel's with AVX-512 ours has not
    been measured, and torch's is their maker's own. Nor has it been measured without AVX2.
    """
    if not dispatch.status("cpp").available:
        return False
    core = dispatch.required_core()
    widest: str = core.isas()[0]
    return widest == "avx2" or (widest == "avx512" and core.vendor() == "amd")


def gemm_(
    out: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    accumulate: bool = False,
    bias: Tensor | None = None,
    relu: bool = False,
    row_sums: Tensor | None = None,
) -> Tensor:
    """``out = a b``, or ``out += a b``; then ``+ bias``, then the larger of that and 0. Autograd does not see it.

    Args:
        out: [M x N] fp32 on the CPU, without gaps within a row, apart from the other tensors.
        a, b: [M x K] and [K x N] fp32 on the CPU, of any strides.
        accumulate: add to what ``out`` and ``row_sums`` hold.
        bias: [N] fp32.
        row_sums: [M] fp32, contiguous: gets the sums of the rows of ``a``, if N > 0.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: the tensors do not fit.
        ConfigError: the core is not built.
    """
    _check(out, a, b, bias, row_sums)
    bias = None if bias is None else bias.contiguous()
    dispatch.required_core().gemm(
        out.size(0),
        out.size(1),
        a.size(1),
        a.data_ptr(),
        *a.stride(),
        b.data_ptr(),
        *b.stride(),
        out.data_ptr(),
        out.stride(0),
        accumulate,
        0 if bias is None else bias.data_ptr(),
        relu,
        0 if row_sums is None else row_sums.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _check(out: Tensor, a: Tensor, b: Tensor, bias: Tensor | None, row_sums: Tensor | None) -> None:
    for tensor in (out, a, b, bias, row_sums):
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise TypeError(f"gemm_ is for fp32 tensors on the CPU, not {tensor.dtype} on {tensor.device}")
    shapes = " ".join(str(tuple(t.shape)) for t in (out, a, b))
    if not (out.dim() == a.dim() == b.dim() == 2) or (*a.shape, b.size(1)) != (out.size(0), b.size(0), out.size(1)):
        raise ValueError(f"{shapes} are not the shapes of out [M x N], a [M x K] and b [K x N]")
    if (out.size(1) > 1 and out.stride(1) != 1) or (out.size(0) > 1 and out.stride(0) < out.size(1)):
        raise ValueError(f"the rows of out {tuple(out.shape)} have gaps or overlap: its strides are {out.stride()}")
    if bias is not None and bias.shape != out.shape[1:]:
        raise ValueError(f"bias {tuple(bias.shape)} does not fit out {tuple(out.shape)}")
    if row_sums is not None and (row_sums.shape != out.shape[:1] or not row_sums.is_contiguous()):
        raise ValueError(f"row_sums {tuple(row_sums.shape)} must be contiguous, and {tuple(out.shape[:1])}")
