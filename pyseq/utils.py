"""Small helpers on tensors and nested samples, shared by every floor above."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyseq.errors import ConfigError, nearest


def item(value: Any) -> Any:
    """A Python number for a one-element tensor, else the value itself. Waits for the device."""
    return value.item() if hasattr(value, "item") else value


def inherits(instance: object, base: type, *names: str) -> bool:
    """Whether the class of ``instance`` overrides none of these attributes of ``base``."""
    return all(getattr(type(instance), name, None) is getattr(base, name) for name in names)


def apply_to_sample(fn: Callable[[Tensor], Any], sample: Any) -> Any:
    """``fn`` applied to every tensor in nested dicts, lists, tuples and sets."""
    if torch.is_tensor(sample):
        return fn(sample)
    if isinstance(sample, dict):
        return type(sample)((key, apply_to_sample(fn, value)) for key, value in sample.items())
    if isinstance(sample, (list, set)):
        return type(sample)(apply_to_sample(fn, value) for value in sample)
    if isinstance(sample, tuple):
        parts = [apply_to_sample(fn, value) for value in sample]
        return type(sample)(*parts) if hasattr(sample, "_fields") else tuple(parts)
    return sample


def move_to_device(sample: Any, device: torch.device | str) -> Any:
    """``sample`` with every tensor on ``device``; the copy does not block where the memory is pinned.

    Integers that leave the CPU remember what they were there: see :func:`host_copy`.
    """

    def moved(tensor: Tensor) -> Tensor:
        there = tensor.to(device, non_blocking=True)
        leaves = tensor.device.type == "cpu" and there.device.type != "cpu"
        if leaves and not tensor.is_floating_point() and not there.is_inference():
            there.__dict__["_moved_from"] = tensor, _state(there)
        return there

    return apply_to_sample(moved, sample)


def host_copy(tensor: Tensor) -> Tensor:
    """The tensor on the CPU that :func:`move_to_device` made ``tensor`` of, to be read without waiting for a device.

    ``tensor`` itself where there is none, or it has been written to since.
    """
    host, state = tensor.__dict__.get("_moved_from", (tensor, None))
    return host if state is None or state == _state(tensor) else tensor


def _state(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor is written to, and what its copies, which take its attributes along, do not share."""
    return tensor._version, id(tensor)


def move_to_cuda(sample: Any, device: torch.device | str | None = None) -> Any:
    return move_to_device(sample, device or torch.device("cuda"))


def move_to_cpu(sample: Any) -> Any:
    """``sample`` on the CPU, 16-bit floats widened to fp32."""

    def to_cpu(t: Tensor) -> Tensor:
        return t.to("cpu", torch.float32) if t.dtype in (torch.bfloat16, torch.float16) else t.cpu()

    return apply_to_sample(to_cpu, sample)


def set_torch_seed(seed: int) -> None:
    """Seed torch on the CPU and on every GPU."""
    torch.manual_seed(seed)


def set_all_seeds(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def strip_pad(tensor: Tensor, pad: int) -> Tensor:
    return tensor[tensor.ne(pad)]


def fill_with_neg_inf(tensor: Tensor) -> Tensor:
    """A tensor of -inf, of the shape and device of ``tensor``, in fp32 converted to its dtype."""
    return tensor.float().fill_(float("-inf")).type_as(tensor)


def make_positions(tokens: Tensor, padding_idx: int) -> Tensor:
    """Positions of non-padding tokens, counted from ``padding_idx + 1``; padding gets ``padding_idx``.

    Args:
        tokens: [B, T] integers.
    """
    mask = tokens.ne(padding_idx).int()
    return (torch.cumsum(mask, dim=1).type_as(mask) * mask).long() + padding_idx


def convert_padding_direction(
    tokens: Tensor, padding_idx: int, right_to_left: bool = False, left_to_right: bool = False
) -> Tensor:
    """Move padding from one side of each row to the other. ``tokens`` is [B, T]."""
    if right_to_left == left_to_right:
        raise ValueError("give one of right_to_left and left_to_right")
    pad = tokens.eq(padding_idx)
    width = tokens.size(1)
    shift = pad.long().sum(dim=1, keepdim=True)
    columns = torch.arange(width, device=tokens.device).expand_as(tokens)
    index = (columns - shift) % width if right_to_left else (columns + shift) % width
    # Rows that are already padded on the wanted side stay as they are.
    wrong_side = pad[:, :1] if left_to_right else pad[:, -1:]
    return torch.where(wrong_side, tokens.gather(1, index), tokens)


def softmax(x: Tensor, dim: int, onnx_trace: bool = False) -> Tensor:
    return F.softmax(x, dim=dim, dtype=torch.float32)


def log_softmax(x: Tensor, dim: int, onnx_trace: bool = False) -> Tensor:
    return F.log_softmax(x, dim=dim, dtype=torch.float32)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "swish": F.silu,
    "linear": lambda x: x,
}


def get_available_activation_fns() -> list[str]:
    return list(_ACTIVATIONS)


def get_activation_fn(activation: str) -> Callable[[Tensor], Tensor]:
    """The activation called ``activation``. Raises ConfigError with the nearest names if there is none."""
    if activation not in _ACTIVATIONS:
        raise ConfigError(f"unknown --activation-fn '{activation}'. {nearest(activation, _ACTIVATIONS)}")
    return _ACTIVATIONS[activation]


def get_incremental_state(module: nn.Module, incremental_state: dict[str, Any] | None, key: str) -> Any:
    """The value ``module`` stored under ``key``, or None. The module has ``with_incremental_state``'s methods."""
    return module.get_incremental_state(incremental_state, key)  # type: ignore[operator]


def set_incremental_state(
    module: nn.Module, incremental_state: dict[str, Any] | None, key: str, value: Any
) -> dict[str, Any] | None:
    """Store ``value`` under ``key`` for ``module``."""
    return module.set_incremental_state(incremental_state, key, value)  # type: ignore[operator]


def has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def eval_str_list(value: Any, type: Callable[[Any], Any] = float) -> list[Any] | None:
    """``"1,2"``, ``"[1, 2]"``, a list or a number as a list of ``type``."""
    if value is None:
        return None
    if isinstance(value, str):
        value = ast.literal_eval(value)
    return [type(v) for v in value] if isinstance(value, (list, tuple)) else [type(value)]


def eval_bool(value: Any, default: bool = False) -> bool:
    if value is None:
        return default
    if isinstance(value, str):
        try:
            return bool(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            return default
    return bool(value)


def resolve_max_positions(*limits: Any) -> Any:
    """The tightest of several length limits, each None, a number, a tuple of numbers, or a dict of them."""

    def tighter(a: Any, b: Any) -> Any:
        if isinstance(a, dict) or isinstance(b, dict):
            if not isinstance(a, dict):
                return {key: tighter(value, a) for key, value in b.items()}
            if not isinstance(b, dict):
                return {key: tighter(value, b) for key, value in a.items()}
            return {key: tighter(a.get(key), b.get(key)) for key in {**a, **b}}
        if a is None or b is None:
            return b if a is None else a
        if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
            return tuple(tighter(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, (tuple, list)):
            return tuple(tighter(x, b) for x in a)
        if isinstance(b, (tuple, list)):
            return tuple(tighter(a, x) for x in b)
        return min(a, b)

    result = None
    for limit in limits:
        result = tighter(result, limit)
    return result


def split_paths(paths: str, separator: str = ":") -> list[str]:
    """``a:b`` as ``[a, b]``; URLs keep their colon."""
    return [paths] if "://" in paths else paths.split(separator)


def count_parameters(parameters: Iterable[Tensor]) -> int:
    """Number of elements, shared tensors counted once."""
    return sum({id(p): p.numel() for p in parameters}.values())
