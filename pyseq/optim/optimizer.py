"""The base class of optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyseq.errors import CheckpointError, ConfigError
from pyseq.optim.clip_grad import clip_grad_norm_, dense_grads, measure, measured_grads, multiply_
from pyseq.registry import Optioned


class Optimizer(Optioned):
    """What the trainer asks of an optimizer.

    A plug-in is built as ``cls(cfg, params)`` and sets ``self._optimizer``, a :class:`torch.optim.Optimizer` over
    ``params``. The rest of this class then works as it is.

    Where the torch optimizer's step takes ``factor`` and ``found_inf`` (:attr:`supports_step_with_factor`), averaging
    and clipping do not touch the gradients: the update multiplies them as it reads them. ``param.grad`` then lacks
    that factor until :meth:`apply_factor` is called.
    """

    _optimizer: torch.optim.Optimizer
    graphs: Any = None  # a GraphedTail, after :meth:`use_cuda_graphs`
    joined_grads: list[Tensor] | None = None  # the gradients as a few buffers without gaps, if they lie so
    _factor: Tensor | float | None = None  # what the gradients have yet to be multiplied by
    _found_inf: Tensor | None = None  # not 0: they are not finite

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer underneath."""
        return self._optimizer

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """The torch optimizer's settings as ``cfg`` has them, by the names they have in :attr:`param_groups`."""
        raise NotImplementedError(f"{type(self).__name__} does not define optimizer_config")

    @property
    def params(self) -> Iterator[Tensor]:
        """All parameters of all groups."""
        for group in self.param_groups:
            yield from group["params"]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def get_lr(self) -> float:
        """The learning rate of the first group."""
        return float(self.param_groups[0]["lr"])

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Take over a saved state; ``optimizer_overrides`` then replace settings of every group.

        Raises:
            CheckpointError: the state belongs to another number of parameters. Nothing is changed then.
        """
        saved = [len(group["params"]) for group in state_dict["param_groups"]]
        own = [len(group["params"]) for group in self.param_groups]
        if saved != own:
            raise CheckpointError(
                f"the checkpoint's optimizer state is for {_tensors(saved)}, but the model trains {_tensors(own)}. "
                "Pass --reset-optimizer to begin with a fresh optimizer."
            )
        self.optimizer.load_state_dict(state_dict)
        for group in self.param_groups:
            group.update(optimizer_overrides or {})

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss`` to those of the parameters."""
        self.apply_factor()
        loss.backward()

    def all_reduce_grads(self, module: nn.Module) -> None:
        """Sum gradients over processes, if ``module`` does not do so during the backward pass."""
        reduce = getattr(module, "all_reduce_grads", None)
        if reduce is not None:
            reduce()

    def multiply_grads(self, c: Tensor | float) -> None:
        """Multiply all gradients by ``c``, a number or a 0-dim tensor on the device."""
        if self.supports_step_with_factor:
            self._factor = c if self._factor is None else self._factor * c
        else:
            multiply_(dense_grads(self.params), c)

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Clip the gradients to ``max_norm`` (0: only measure) and return their norm, fp32, from before.

        With :attr:`supports_step_with_factor`, a step with a norm that is not finite changes nothing.
        """
        limit = max_norm if max_norm > 0 else math.inf
        if not self.supports_step_with_factor:
            return clip_grad_norm_(self.params, limit, aggregate_norm_fn=aggregate_norm_fn)
        scale = 1.0 if self._factor is None else self._factor
        joined = self.joined_grads
        if self.graphs is not None and joined and aggregate_norm_fn is None:
            found = self.graphs.measure(joined, limit, scale)
        else:
            grads = measured_grads(self.params) if joined is None else joined
            found = measure(grads, max_norm=limit, scale=scale, aggregate_norm_fn=aggregate_norm_fn)
        self._factor, self._found_inf = found.factor, found.found_inf
        return found.norm

    def apply_factor(self) -> None:
        """Multiply the gradients by what they lack, for code that looks at them between averaging and the step."""
        if self._factor is not None:
            multiply_(dense_grads(self.params), self._factor)
        self._factor = None

    def step(
        self, closure: Callable[[], Any] | None = None, scale: float = 1.0, groups: Iterable[str] | None = None
    ) -> None:
        """Update the parameters.

        Args:
            closure: recomputes the loss, for optimizers that need it more than once.
            scale: the gradients are first divided by this.
            groups: names of the parameter groups to update, for optimizers with :attr:`supports_groups`.
        """
        options: dict[str, Any] = {"groups": groups} if self.supports_groups else {}
        if self.supports_step_with_scale:
            options["scale"] = scale
        elif scale != 1.0:
            self.multiply_grads(1.0 / scale)
        if self.supports_step_with_factor:
            options |= {"factor": self._factor, "found_inf": self._found_inf}
        if self.graphs is not None and closure is None and self.graphs.step(self._factor, self._found_inf):
            return
        self.optimizer.step(closure, **options)

    def use_cuda_graphs(self) -> None:
        """Record the norm and the update from here on, and replay them, where the gradients are :attr:`joined_grads`.

        Raises:
            ConfigError: the torch optimizer's step cannot be recorded.
        """
        from pyseq.optim.fused_adam import FusedAdam
        from pyseq.optim.graphed_tail import GraphedTail

        if not isinstance(self.optimizer, FusedAdam):
            raise ConfigError(
                f"--cuda-graphs replays updates of Adam, and {type(self).__name__} makes others: leave it out, or take "
                "--optimizer adam"
            )
        self.graphs = GraphedTail(self.optimizer)

    def zero_grad(self) -> None:
        """Drop the gradients; their memory is free until the next backward pass."""
        self._factor = self._found_inf = self.joined_grads = None
        for param in self.params:
            param.grad = None

    @property
    def supports_memory_efficient_fp16(self) -> bool:
        """Whether 16-bit parameters can be updated in place, with fp32 arithmetic and states."""
        return bool(getattr(self.optimizer, "supports_memory_efficient_fp16", False))

    @property
    def supports_step_with_scale(self) -> bool:
        """Whether the torch optimizer's step takes ``scale``."""
        return bool(getattr(self.optimizer, "supports_step_with_scale", False))

    @property
    def supports_step_with_factor(self) -> bool:
        """Whether the torch optimizer's step takes ``factor`` and ``found_inf``, as FusedAdam's does."""
        return bool(getattr(self.optimizer, "supports_step_with_factor", False))

    @property
    def supports_groups(self) -> bool:
        """Whether the torch optimizer's step takes ``groups``."""
        return bool(getattr(self.optimizer, "supports_groups", False))

    @property
    def supports_flat_params(self) -> bool:
        """Whether the update of an element depends on no other, so that parameters may be joined into one tensor."""
        return bool(getattr(self.optimizer, "supports_flat_params", False))


def _tensors(counts: list[int]) -> str:
    groups = f" in {len(counts)} groups ({', '.join(map(str, counts))})" if len(counts) > 1 else ""
    return f"{sum(counts)} tensors{groups}"


def learning_rates(cfg: Any) -> list[float]:
    """``--lr`` as a list. Raises ConfigError if it is missing, empty or negative."""
    lr = getattr(cfg, "lr", None)
    rates = [float(rate) for rate in lr] if isinstance(lr, (list, tuple)) else [] if lr is None else [float(lr)]
    if not rates:
        raise ConfigError("--lr is missing: give one learning rate, or a list of them")
    if min(rates) < 0:
        raise ConfigError(f"--lr {','.join(f'{rate:g}' for rate in rates)}: a learning rate cannot be negative")
    return rates
