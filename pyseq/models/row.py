"""Architectures as rows of values, each over its parent."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from pyseq.config.group import ConfigGroup, default_of, reference_of
from pyseq.models import register_model_architecture


class Row:
    """The values of one architecture.

    Calling it sets the options that a namespace does not have yet, then calls the parent.
    A value may be that of another option, ``II("model.encoder_embed_dim")``, or a function of the options set so far.

    Args:
        model_name: the model that it is an architecture of.
        values: option name to value.
        name: what ``--arch`` calls it; None if it is a parent only.
        parent: the row that sets the rest.
        always: values that are set even if the namespace has others.
    """

    def __init__(
        self,
        model_name: str,
        values: Mapping[str, Any],
        name: str | None = None,
        parent: Row | None = None,
        always: Mapping[str, Any] | None = None,
    ) -> None:
        self.model_name, self.parent = model_name, parent
        self.values, self.always = dict(values), dict(always or {})
        # For the message about a second architecture of this name: the line that the row was written on.
        caller = sys._getframe(1 if parent is None else 2)
        self.where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        if name is not None:
            register_model_architecture(model_name, name)(self)

    def row(self, name: str | None = None, **values: Any) -> Row:
        """A new row over this one."""
        return Row(self.model_name, values, name, parent=self)

    def __call__(self, args: Any) -> None:
        for name, value in self.always.items():
            setattr(args, name, value)
        # What depends on other options comes last: they are set by then.
        for name, value in sorted(self.values.items(), key=lambda item: _depends(item[1])):
            if not hasattr(args, name):
                setattr(args, name, _resolve(value, args))
        if self.parent is not None:
            self.parent(args)


def _depends(value: Any) -> bool:
    return callable(value) or reference_of(value) is not None


def _resolve(value: Any, args: Any) -> Any:
    path = reference_of(value)
    if path is not None:
        return getattr(args, path.removeprefix("model."))
    return value(args) if callable(value) else value


def defaults(group: type[ConfigGroup]) -> dict[str, Any]:
    """The defaults of a model's options, without those that belong to other groups."""
    values = {field.name: default_of(field) for field in dataclasses.fields(group) if not field.name.startswith("_")}
    return {name: value for name, value in values.items() if (reference_of(value) or "model.").startswith("model.")}
