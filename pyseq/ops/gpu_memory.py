"""Memory on a GPU that the CUDA kernels of several operations use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyseq.ops import dispatch

_workspaces: dict[tuple[int | None, int], Tensor] = {}
_Key = tuple[int | None, int]


def stream_of(device: torch.device) -> int:
    """The handle of the current stream of ``device``."""
    return torch.cuda.current_stream(device).cuda_stream


def workspace(device: torch.device, stream: int) -> Tensor:
    """Memory for the launches on one stream, which follow each other. ``device`` is the current device.

    A CUDA graph that is being captured gets its own: it may be replayed beside work on any stream.
    """
    size = dispatch.required_cuda().workspace_bytes
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(size, dtype=torch.uint8, device=device)
    key = device.index, stream
    if key not in _workspaces:
        _workspaces[key] = torch.zeros(size, dtype=torch.uint8, device=device)
    return _workspaces[key]


class UploadedTable:
    """The copy on a GPU of a table that kernels read, made again only where the table or the stream has changed."""

    def __init__(self) -> None:
        self._of: tuple[_Key, Tensor] | None = None
        self._copy: Tensor | None = None

    def get(self, table: Tensor, device: torch.device, stream: int) -> Tensor:
        """``table`` (int64, on the CPU, contiguous) on ``device``, which is the current device, for work on ``stream``.

        A CUDA graph that is being captured gets its own copy, which its replays write again.
        """
        if torch.cuda.is_current_stream_capturing():
            return _upload(table, device, stream)
        key = device.index, stream
        known = self._of is not None and self._of[0] == key and torch.equal(self._of[1], table)
        if self._copy is None or not known:
            self._of, self._copy = (key, table.clone()), _upload(table, device, stream)
        return self._copy


def _upload(table: Tensor, device: torch.device, stream: int) -> Tensor:
    copy = torch.empty(table.shape, dtype=table.dtype, device=device)
    native: Any = dispatch.required_cuda()
    native.upload_table(copy.data_ptr(), table.data_ptr(), table.nbytes, stream)
    return copy
