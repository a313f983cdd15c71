"""How the core finds tensors, by pyseq._torch or DLPack's table: what it takes for plain memory has to be that."""

from __future__ import annotations

import array

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pyseq.ops import dispatch
from pyseq.ops.segments import increment_version
from support.backends import reading_tensors_by

WAYS = ("torch", "dlpack")
BASE = torch.arange(24.0)


class Subclass(torch.Tensor):
    pass


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(4)


PLAIN = {
    "contiguous": BASE,
    "from an offset on": BASE[3:],
    "transposed": BASE.view(4, 6).t(),
    "of no dimensions": BASE[5],
    "empty": torch.empty(0, 3),
    "a parameter": torch.nn.Parameter(BASE.clone()),
    "made in inference mode": torch.inference_mode()(lambda: torch.ones(5))(),
    "copied when written to": torch._lazy_clone(BASE),
    **{str(dtype): torch.ones(5, dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)},
}
OTHER = {
    "with gaps": BASE[::2],
    "expanded": BASE[:1].expand(5),
    "negated when read": torch.complex(BASE, BASE).conj().imag,
    "complex": torch.complex(BASE, BASE),
    "int64": torch.arange(5),
    "bool": torch.ones(5, dtype=torch.bool),
    "int16": torch.ones(5, dtype=torch.int16),
    "sparse": BASE.to_sparse(),
    "without memory": torch.empty(5, device="meta"),
    "of a subclass": torch.ones(5).as_subclass(Subclass),
    "fake": fake(),
    "zero by decree": torch._efficientzerotensor(5),
    "no tensor": [1.0, 2.0],
}


def row_of(tensor: object) -> tuple[list[int], int] | None:
    """What the core makes of a tensor: address, elements, dtype, and the mask of dtypes."""
    row = array.array("q", [0, 0, 0])
    found = dispatch.required_core().norm_table([tensor], row.buffer_info()[0])
    return None if found is None else (row.tolist(), found[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PLAIN)
def test_plain_tensors_are_found(way: str, name: str) -> None:
    tensor = PLAIN[name]
    with reading_tensors_by(way):
        found = row_of(tensor)
    number = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}[tensor.dtype]
    assert found is not None and found[0][1:] == [tensor.numel(), number] and found[1] == 1 << number
    assert found[0][0] == tensor.data_ptr()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OTHER)
def test_what_is_not_plain_memory_is_left_to_python(way: str, name: str) -> None:
    with reading_tensors_by(way):
        assert row_of(OTHER[name]) is None


@pytest.mark.parametrize("way", WAYS)
def test_what_functions_are_transformed_over_is_left_to_python(way: str) -> None:
    found = []

    def look(x: torch.Tensor) -> torch.Tensor:
        found.append(row_of(x))
        return x.sum()

    with reading_tensors_by(way):
        torch.vmap(look)(torch.ones(3, 4))
        torch.func.grad(look)(torch.ones(3))
    assert found == [None, None]


def test_writing_to_a_lazy_copy_leaves_the_original() -> None:
    original = torch.ones(6)
    for way in WAYS:
        copy = torch._lazy_clone(original)
        with reading_tensors_by(way):
            found = row_of(copy)
        assert found is not None and found[0][0] == copy.data_ptr() != original.data_ptr()


@pytest.mark.parametrize("way", WAYS)
def test_versions_go_up(way: str) -> None:
    tensors = [torch.ones(3), torch.nn.Parameter(torch.ones(2)), torch.ones(4)[1:]]
    with reading_tensors_by(way):
        increment_version(tensors)
        increment_version((PLAIN["made in inference mode"], tensors[0]))
    assert [tensor._version for tensor in tensors] == [2, 1, 1]


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_found_where_they_are(way: str) -> None:
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (5, 3, 0, 7)]
    for param in params:
        param.grad = torch.ones_like(param)
    states = [[torch.zeros_like(param) for param in params] for _ in range(2)]
    with reading_tensors_by(way):
        table = dispatch.required_core().AdamTable()
        assert table.read((params, [param.grad for param in params], *states, None, None))
        params[1].grad = torch.ones(3)
        assert table.follow(params)
        rows = torch.frombuffer(table.rows(), dtype=torch.int64).view(-1, 8)
        assert rows[:, 1].tolist() == [p.grad.data_ptr() for p in params if p.grad is not None and p.numel()]
        for other in (None, torch.ones(6)[::2], torch.ones(3).to_sparse()):
            params[1].grad = other
            assert not table.follow(params)


def put(param: torch.nn.Parameter, grad: torch.Tensor) -> None:
    param.grad = grad


def put_data(param: torch.nn.Parameter, data: torch.Tensor) -> None:
    assert param.grad is not None
    param.grad.data = data


KEPT = {  # what a gradient becomes that was memory[:4], and where it then begins; None: it cannot be updated by
    "as it was": (lambda param, memory: None, 0),
    "elsewhere in its memory": (lambda param, memory: put_data(param, memory[4:]), 4),
    "a new tensor elsewhere in its memory": (lambda param, memory: put(param, memory[2:6]), 2),
    "of another dtype": (lambda param, memory: put_data(param, memory.view(torch.bfloat16)[:4]), None),
    "of another size": (lambda param, memory: put_data(param, memory[:3]), None),
    "of another layout": (lambda param, memory: put_data(param, memory[:4].view(2, 2).t()), None),
    "sparse": (lambda param, memory: put(param, memory[:4].to_sparse()), None),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KEPT)
def test_gradients_that_have_stayed_for_long_are_still_looked_at(way: str, name: str) -> None:
    change, begin = KEPT[name]
    param, memory = torch.nn.Parameter(torch.zeros(4)), torch.zeros(8)
    param.grad = memory[:4]
    with reading_tensors_by(way):
        table = dispatch.required_core().AdamTable()
        assert table.read(([param], [param.grad], [torch.zeros(4)], [torch.zeros(4)], None, None))
        for _ in range(5):
            assert table.follow([param]) and not table.moved()
        change(param, memory)
        assert table.follow([param]) == (begin is not None)
        if begin is not None:
            assert table.moved() == (begin != 0)
            assert torch.frombuffer(table.rows(), dtype=torch.int64)[1] == memory[begin:].data_ptr()


def test_a_module_for_another_torch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("pyseq._torch")
    find = dispatch.torch_module.__wrapped__
    assert (find() is module) == (module.torch_version == torch.__version__)
    monkeypatch.setattr(module, "torch_version", "0.0.1")
    assert find() is None
    monkeypatch.setattr(dispatch, "torch_module", find)
    assert "pyseq._torch: not used" in dispatch.report()
