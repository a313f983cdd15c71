"""pyseq._cuda loads where there is no driver, and says what it is and what is missing."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import pyseq.ops as ops
from pyseq.errors import ConfigError
from pyseq.ops import dispatch

built = pytest.mark.skipif(
    importlib.util.find_spec("pyseq._cuda") is None, reason="pyseq._cuda was not built: no nvcc here"
)
no_device = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@built
def test_loads_without_a_device() -> None:
    native = dispatch.cuda()
    assert native is not None and native.runtime_version >= 11000 and native.workspace_bytes % 8 == 0
    assert all(hasattr(native, name) for name in ("adam", "grad_norm", "cross_entropy_loss", "upload_table"))


@built
@no_device
def test_without_a_device_it_is_absent_with_the_reason() -> None:
    assert "no CUDA device is visible" in dispatch.status("cuda").detail
    assert "no CUDA device is visible" in ops.report()
    with pytest.raises(ConfigError, match="no CUDA device"):
        dispatch.required_cuda()
    with pytest.raises(ConfigError, match="'cuda' cannot be used here"), ops.backend("cuda"):
        pass


@built
@no_device
def test_a_failed_launch_names_the_operation() -> None:
    native = dispatch.cuda()
    assert native is not None
    memory = torch.zeros(native.workspace_bytes + 64, dtype=torch.uint8)
    result = torch.empty(3)
    with pytest.raises(RuntimeError, match="grad_norm could not be launched: "):
        native.grad_norm(0, 0, 0, 0, 1.0, 0, -1.0, memory.data_ptr(), 0, result.data_ptr(), 0)
    rule = (0.9, 0.98, 1e-8, 0.0, True, True, False, False, 0)
    with pytest.raises(RuntimeError, match="adam could not be launched: "):
        native.adam(0, 0, 0, 0, 0, 0, 0, 0, *rule, result.data_ptr(), 0.1, 0, 0, 0, 0, memory.data_ptr(), 0)


@built
def test_the_border_is_checked() -> None:
    native = dispatch.cuda()
    assert native is not None
    out = torch.empty(16, dtype=torch.int64)
    for row in ([0, 5, 0], [2, 5, 0], [16, -1, 0], [16, 5, 4]):
        table = torch.tensor(row)
        with pytest.raises(ValueError):
            native.norm_segments(table.data_ptr(), 1, out.data_ptr())
    good = torch.tensor([16, 16, 16, 16, 0, 0, 5, 0])
    for place, value in ((0, 0), (1, 18), (6, 0), (6, -1), (7, -1), (7, 1 << 31)):
        table = good.clone()
        table[place] = value
        with pytest.raises(ValueError):
            native.adam_segments(table.data_ptr(), 1, 0, 0, 0, 0, out.data_ptr())
    with pytest.raises(ValueError, match="dtypes"):
        native.adam_segments(good.data_ptr(), 1, 0, 0, 0, 2, out.data_ptr())
    assert native.adam_segments(good.data_ptr(), 1, 0, 0, 0, 0, out.data_ptr()) == 1
