"""What ``torch.compile`` is to leave alone, without importing the compiler, which takes as long as torch itself."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.optim import optimizer as torch_optimizer

F = TypeVar("F", bound=Callable[..., Any])


def not_compiled(function: F) -> F:
    """``torch.compiler.disable``, which takes effect when the compiler is there."""
    disabled = functools.cache(lambda: torch.compiler.disable(function))

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return (disabled() if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    return run  # type: ignore[return-value]


class TorchOptimizer(torch.optim.Optimizer):
    """The base of our own: torch's, without what its methods take where nobody needs it.

    They import the compiler when they are first called. A step enters a range of the profiler and looks for hooks,
    which takes a good part of what the host does for a step over a few tensors.
    """

    add_param_group = not_compiled(inspect.unwrap(torch.optim.Optimizer.add_param_group))
    load_state_dict = not_compiled(inspect.unwrap(torch.optim.Optimizer.load_state_dict))
    state_dict = not_compiled(inspect.unwrap(torch.optim.Optimizer.state_dict))
    zero_grad = not_compiled(inspect.unwrap(torch.optim.Optimizer.zero_grad))

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """What torch puts in the place of ``step``: here torch's own, where there are hooks or a profiler."""
        hooked = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            noticed = self.has_step_hooks() or torch.autograd._profiler_enabled()
            return (hooked if noticed else func)(self, *args, **kwargs)

        return step

    def has_step_hooks(self) -> bool:
        """Whether something is called before or after a step, of this optimizer or of any."""
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
        )
