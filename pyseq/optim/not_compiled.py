"""What ``torch.compile`` is to leave alone, without importing the compiler, which takes as long as torch itself."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def not_compiled(function: F) -> F:
    """``torch.compiler.disable``, which takes effect when the compiler is there."""
    disabled = functools.cache(lambda: torch.compiler.disable(function))

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return (disabled() if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    return run  # type: ignore[return-value]


class TorchOptimizer(torch.optim.Optimizer):
    """The base of our own: torch's, whose methods import the compiler when they are first called, to keep it out."""

    add_param_group = not_compiled(inspect.unwrap(torch.optim.Optimizer.add_param_group))
    load_state_dict = not_compiled(inspect.unwrap(torch.optim.Optimizer.load_state_dict))
    state_dict = not_compiled(inspect.unwrap(torch.optim.Optimizer.state_dict))
    zero_grad = not_compiled(inspect.unwrap(torch.optim.Optimizer.zero_grad))
