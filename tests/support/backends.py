"""Running operations on one back end after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

import pyseq.ops as ops
from pyseq.ops import dispatch

needs_core = pytest.mark.skipif(not dispatch.status("cpp").available, reason=dispatch.status("cpp").detail)


@contextlib.contextmanager
def running_on(name: str) -> Iterator[torch.device]:
    """Run operations on a back end; yields the device that it wants. ``cpp-avx2`` is cpp with that instruction set.

    Skips the test where the back end or the instruction set is not there.
    """
    backend, _, isa = name.partition("-")
    if not dispatch.status(backend).available:
        pytest.skip(dispatch.status(backend).detail)
    with ops.backend(backend), using_isa(isa):
        on_gpu = backend == "cuda" or (backend == "triton" and not dispatch.interpreting())
        yield torch.device("cuda" if on_gpu else "cpu")


def is_interpreted(backend: str) -> bool:
    """Whether kernels run in Triton's interpreter, which takes milliseconds for each program: less is enough then."""
    return backend == "triton" and dispatch.interpreting()


@contextlib.contextmanager
def using_isa(isa: str) -> Iterator[None]:
    """Run the compiled core with an instruction set; an empty name changes nothing."""
    if not isa:
        yield
        return
    core = dispatch.required_core()
    if isa not in core.isas():
        pytest.skip(f"this processor does not run {isa}")
    before = core.isa()
    core.use_isa(isa)
    try:
        yield
    finally:
        core.use_isa(before)


@contextlib.contextmanager
def reading_tensors_by(way: str) -> Iterator[None]:
    """Let the core find tensors by ``torch``'s own headers or by ``dlpack``; skips the test where that is not there."""
    core, beside = dispatch.core(), dispatch.torch_module()
    if core is None:
        pytest.skip(dispatch.status("cpp").detail)
    if way == "torch" and beside is None:
        pytest.skip("pyseq._torch is not built for this torch")
    if way == "dlpack" and not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch does not publish DLPack's exchange table")
    core.use_tensor_access(None if way == "dlpack" else beside.tensor_access())
    try:
        yield
    finally:
        core.use_tensor_access(None if beside is None else beside.tensor_access())
