"""What a module remembers between the steps of generation.

The state is one dict for the whole model, owned by the caller: ``{"<module>.<key>": value}``.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=type[nn.Module])


class IncrementalState:
    """Mixin: read and write this module's own entries of an incremental state."""

    def _full_key(self, key: str) -> str:
        # The address names the module as long as it lives, and a deep copy of the module gets its own.
        return f"{type(self).__name__}.{id(self)}.{key}"

    def get_incremental_state(self, incremental_state: dict[str, Any] | None, key: str) -> Any:
        """The value stored under ``key``, or None."""
        return None if incremental_state is None else incremental_state.get(self._full_key(key))

    def set_incremental_state(
        self, incremental_state: dict[str, Any] | None, key: str, value: Any
    ) -> dict[str, Any] | None:
        """Store ``value`` (a tensor, or any container of them) under ``key``; returns the state."""
        if incremental_state is not None:
            incremental_state[self._full_key(key)] = value
        return incremental_state


def with_incremental_state(cls: M) -> M:
    """Class decorator that adds the methods of :class:`IncrementalState` to a module."""
    for name in ("_full_key", "get_incremental_state", "set_incremental_state"):
        if not hasattr(cls, name):
            setattr(cls, name, getattr(IncrementalState, name))
    return cls
