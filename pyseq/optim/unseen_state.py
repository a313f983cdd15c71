"""Optimizers that know whether anybody but themselves may hold the tensors of their state.

Where those of thousands of small parameters lie takes longer to look up than to update. As long as nobody has had them
in hand, nobody can have put others in their place, and there is nothing to look up.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from pyseq.optim.not_compiled import TorchOptimizer


class UnseenStateOptimizer(TorchOptimizer):
    """A torch optimizer that notes when its ``state`` is asked for.

    ``state_dict`` is no way to the state's tensors: it gives tensors of its own, in the same memory.

    Attributes:
        _state: for subclasses, what others see as ``state``.
        _state_was_seen: whether someone has asked for it since this object made it.
    """

    _state: defaultdict[Tensor, Any]
    _state_was_seen: bool = True

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """As in torch.optim. From the first look at it on, steps look where its tensors lie."""
        self._state_was_seen = True
        return self._state

    @state.setter
    def state(self, value: defaultdict[Tensor, Any]) -> None:
        self._state, self._state_was_seen = value, True

    def state_dict(self) -> dict[str, Any]:
        """As that of torch.optim, hooks included."""
        seen: list[bool] = []

        def before(optimizer: torch.optim.Optimizer) -> None:
            seen.append(self._state_was_seen)

        def after(optimizer: torch.optim.Optimizer, packed: dict[str, Any]) -> dict[str, Any]:
            self._state_was_seen = seen.pop()  # in between, torch.optim alone has looked
            return self._handed_out(packed)

        # Behind the hooks of users that come before the packing, and before those that see what is packed.
        handles = [
            self.register_state_dict_pre_hook(before),
            self.register_state_dict_post_hook(after, prepend=True),
        ]
        try:
            return super().state_dict()
        finally:
            for handle in handles:
                handle.remove()

    def _handed_out(self, packed: dict[str, Any]) -> dict[str, Any]:
        """The packed state, in new dictionaries and new tensors on the same memory."""
        return {**packed, "state": {key: _aliases(value) for key, value in packed["state"].items()}}


def _aliases(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return {key: _aliases(part) for key, part in value.items()} if isinstance(value, dict) else value
