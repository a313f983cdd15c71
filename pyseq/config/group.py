"""A config group: a dataclass whose fields are flags.

Field ``a_b`` is the flag ``--a-b``. Metadata understood: ``help``, ``argparse_alias`` (a second flag),
``argparse_const`` (the value when the flag stands alone), ``choices``, ``parse`` (reads the flag's text) and
``metavar`` (what --help calls the value). A field whose default is :func:`II`
belongs to another group and takes its value from there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass
from enum import Enum
from typing import Any, TypeVar

G = TypeVar("G", bound="ConfigGroup")


@dataclass
class ConfigGroup:
    """Base of every group of options, those of plug-ins included."""

    _name: str | None = None

    def __post_init__(self) -> None:
        """Outside of a run's config, what refers to a shared group has that group's default."""
        for field in dataclasses.fields(self):
            path = reference_of(getattr(self, field.name))
            if path is not None and path.split(".")[0] in SECTIONS:
                setattr(self, field.name, shared_default(path))

    @classmethod
    def from_namespace(cls: type[G], args: Any) -> G:
        return group_from(cls, args)


# The groups that every command shares, by their section's name; pyseq.config.groups fills it.
SECTIONS: dict[str, type[ConfigGroup]] = {}


class ChoiceEnum(Enum):
    """An enum of strings, offered as the choices of a flag."""

    @classmethod
    def choices(cls) -> list[str]:
        return [member.value for member in cls]

    def __str__(self) -> str:
        return str(self.value)


def II(path: str) -> Any:
    """A default taken from another group: ``lr: list[float] = II("optimization.lr")``."""
    return "${" + path + "}"


def reference_of(value: Any) -> str | None:
    """The dotted path if ``value`` is what :func:`II` returns, else None."""
    if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
        return value[2:-1]
    return None


def default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def group_from(cls: type[G], source: Any) -> G:
    """A ``cls`` whose fields are read from ``source`` (a namespace, another group or a dict); the rest are defaults."""
    get = source.get if isinstance(source, dict) else lambda key, default: getattr(source, key, default)
    values = {}
    for field in dataclasses.fields(cls):
        value = get(field.name, default_of(field))
        path = reference_of(value)
        # A reference to a group that is not there (the model's, the task's) has no value.
        values[field.name] = None if path is not None and path.split(".")[0] not in SECTIONS else value
    return cls(**values)


def shared_default(path: str) -> Any:
    """The default of ``group.field`` among the groups that every command shares, None where there is none."""
    section, _, name = path.partition(".")
    fields = dataclasses.fields(SECTIONS[section]) if section in SECTIONS else ()
    value = next((default_of(field) for field in fields if field.name == name), None)
    further = reference_of(value)
    return value if further is None else shared_default(further)
