"""linear_cross_entropy for torch.compile, which needs operators that it can see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.cross_entropy import KERNELS, Options
from pyseq.ops.linear_cross_entropy.autograd import Call, Results, in_dtypes_of, second_derivative, summed
from pyseq.ops.linear_cross_entropy.run import Gradients, Wanted, run

# It runs the kernels of cross_entropy.
dispatch.register_operation(
    "linear_cross_entropy",
    cpp=dispatch.KERNEL_DTYPES,
    triton=dispatch.KERNEL_DTYPES,
    cuda=dispatch.KERNEL_DTYPES,
)

_library = torch.library.Library("pyseq", "FRAGMENT")
_TENSORS = "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? scale"
_OPTIONS = (
    "float label_smoothing, str smoothing_form, float z_loss, float soft_cap, Tensor? weight, int ignore_index, "
    "int chunk_rows, ScalarType dtype"
)
_WANTED = "bool want_input, bool want_weight, bool want_bias"
_RESULTS = "Tensor loss, Tensor nll, Tensor correct, Tensor z_loss"
_GRADIENTS = "Tensor grad_input, Tensor grad_weight, Tensor grad_bias"
_library.define(f"linear_cross_entropy({_TENSORS}, {_OPTIONS}, {_WANTED}) -> ({_RESULTS}, {_GRADIENTS})")
_library.define(f"linear_cross_entropy_rows({_TENSORS}, {_OPTIONS}) -> ({_RESULTS})")
_library.define(f"linear_cross_entropy_backward(Tensor grad_loss, {_TENSORS}, {_OPTIONS}, {_WANTED}) -> ({_GRADIENTS})")
_N_TENSORS, _N_CALL = 5, 13


def call(call: Call, reduce: bool, wanted: Wanted) -> Results:
    """The results of a call, from an operator."""
    arguments = *call[:5], *call.options, *call[6:]
    if reduce:
        return torch.ops.pyseq.linear_cross_entropy(*arguments, *wanted)[:4]
    results: Results = torch.ops.pyseq.linear_cross_entropy_rows(*arguments)
    return results


def _call_of(arguments: tuple[Any, ...]) -> Call:
    return Call(*arguments[:5], Options(*arguments[5:10]), *arguments[10:_N_CALL])  # type: ignore[call-arg]


def _kernel(call: Call) -> Any:
    return KERNELS[dispatch.choose("linear_cross_entropy", call.input.device.type, call.dtype)]


def _sums(*arguments: Any) -> tuple[Tensor, ...]:
    call, wanted = _call_of(arguments), Wanted(*arguments[_N_CALL:])
    rows, gradients = run(call.problem(), _kernel(call), call.row_weight(), wanted)
    results = summed((rows.loss, rows.nll, rows.correct, rows.z_loss(call.options)), call.scale)
    return *results, *_present(gradients, call)


def _rows(*arguments: Any) -> tuple[Tensor, ...]:
    call = _call_of(arguments)
    rows, _ = run(call.problem(), _kernel(call))
    return rows.loss, rows.nll, rows.correct, rows.z_loss(call.options)


def _backward(grad_loss: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    call, wanted = _call_of(arguments), Wanted(*arguments[_N_CALL:])
    _, gradients = run(call.problem(), _kernel(call), grad_loss, wanted)
    return _present(gradients, call)


def _present(gradients: Gradients, call: Call) -> tuple[Tensor, ...]:
    """An operator returns tensors: an empty one where there is no gradient."""
    return tuple(call.input.new_empty(0) if grad is None else grad for grad in gradients)


for _name, _function in (("", _sums), ("_rows", _rows), ("_backward", _backward)):
    _library.impl(f"linear_cross_entropy{_name}", _function, "CompositeExplicitAutograd")


def _fake_gradients(call: Call, wanted: Wanted) -> tuple[Tensor, ...]:
    sums = torch.promote_types(call.dtype, torch.float32)
    shapes = call.input.shape, call.weight.shape, call.weight.shape[:1]
    return tuple(
        call.input.new_empty(shape, dtype=dtype) if want else call.input.new_empty(0)
        for shape, dtype, want in zip(shapes, (call.dtype, sums, sums), wanted, strict=True)
    )


def _fake_results(call: Call, shape: Any) -> tuple[Tensor, ...]:
    dtypes = torch.float32, torch.float32, torch.bool if shape else torch.int64, torch.float32
    return tuple(call.input.new_empty(shape, dtype=dtype) for dtype in dtypes)


@torch.library.register_fake("pyseq::linear_cross_entropy", lib=_library)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    call = _call_of(arguments)
    return *_fake_results(call, ()), *_fake_gradients(call, Wanted(*arguments[_N_CALL:]))


@torch.library.register_fake("pyseq::linear_cross_entropy_rows", lib=_library)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    call = _call_of(arguments)
    return _fake_results(call, call.target.shape)


@torch.library.register_fake("pyseq::linear_cross_entropy_backward", lib=_library)
def _(grad_loss: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(_call_of(arguments), Wanted(*arguments[_N_CALL:]))


def _save_sums(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.wanted = inputs[_N_CALL:]
    gradients = [grad if want else None for grad, want in zip(output[4:], ctx.wanted, strict=True)]
    ctx.save_for_backward(*inputs[:3], *gradients)
    ctx.gain = _call_of(inputs).gain()
    ctx.mark_non_differentiable(*output[1:])


def _sums_gradient(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    tensors, gradients = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    factor = grad_loss / ctx.gain
    scaled = Gradients(*(None if grad is None else grad * factor for grad in gradients))
    return *in_dtypes_of(tensors, scaled), *[None] * (_N_CALL - 3 + len(ctx.wanted))


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.others = inputs[_N_TENSORS:9], inputs[10:]
    ctx.save_for_backward(*inputs[:_N_TENSORS], inputs[9])
    ctx.mark_non_differentiable(*output[1:])


def _rows_gradient(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    *tensors, weight = ctx.saved_tensors
    before, after = ctx.others
    wanted = Wanted(*ctx.needs_input_grad[:3])
    grads = torch.ops.pyseq.linear_cross_entropy_backward(grad_loss, *tensors, *before, weight, *after, *wanted)
    present = Gradients(*(grad if want else None for grad, want in zip(grads, wanted, strict=True)))
    return *in_dtypes_of(tuple(tensors[:3]), present), *[None] * (_N_CALL - 3)


torch.library.register_autograd("pyseq::linear_cross_entropy", _sums_gradient, setup_context=_save_sums, lib=_library)
torch.library.register_autograd(
    "pyseq::linear_cross_entropy_rows", _rows_gradient, setup_context=_save_rows, lib=_library
)
torch.library.register_autograd("pyseq::linear_cross_entropy_backward", second_derivative, lib=_library)
