"""Tables that Triton kernels read are on the device once, and CUDA graphs find them there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

tables = pytest.importorskip("pyseq.kernels.tables", exc_type=ImportError)


def test_a_table_is_prepared_again_where_it_has_changed():
    prepared: list[list[int]] = []

    def prepare(table: Tensor) -> tuple[Tensor, int]:
        prepared.append(table.tolist())
        return table + 1, len(prepared)

    kept = tables.DeviceTable()
    table = torch.tensor([1, 2])
    for _ in range(2):
        rows, number = kept.get(table, torch.device("cpu"), prepare)
        assert (rows.tolist(), number) == ([2, 3], 1)
    table[0] = 5  # in place: what is compared is a copy
    assert kept.get(table, torch.device("cpu"), prepare)[0].tolist() == [6, 3]
    assert prepared == [[1, 2], [5, 2]]


def test_what_a_graph_captures_has_to_have_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1))
    with pytest.raises(RuntimeError, match="call it once with the same tensors"):
        tables.DeviceTable().get(torch.tensor([1]), torch.device("cuda"), lambda table: (table, None))
