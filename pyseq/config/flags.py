"""Dataclass fields as argparse flags."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

from pyseq.config.group import ConfigGroup, default_of, reference_of

# omegaconf's word for a field that must be given.
MANDATORY = "???"


def add_group_arguments(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    group: type[ConfigGroup] | ConfigGroup,
    suppress_defaults: bool = False,
) -> None:
    """Add a flag for every field of ``group``.

    Args:
        parser: a parser, or one of its argument groups.
        group: the dataclass, or an instance whose values become the defaults.
        suppress_defaults: leave out of the namespace what was not given, so that an architecture can fill it in.

    A field ``data`` becomes a positional argument. A field that refers to another group with ``II`` and has no help is
    owned there and adds no flag. An option that the parser already has is left as it is.
    """
    cls = group if isinstance(group, type) else type(group)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name.startswith("_"):
            continue
        default = default_of(field) if isinstance(group, type) else getattr(group, field.name)
        if reference_of(default) and not field.metadata.get("help"):
            continue
        if field.name == "data" and any(action.dest == "data" for action in parser._actions):
            continue  # argparse would take a second positional of the same name
        names, options = argument_of(field, hints[field.name], default)
        if suppress_defaults and names[0].startswith("-"):
            options["default"] = argparse.SUPPRESS
        try:
            parser.add_argument(*names, **options)
        except argparse.ArgumentError:
            continue


def argument_of(field: dataclasses.Field[Any], hint: Any, default: Any) -> tuple[list[str], dict[str, Any]]:
    """The names and keywords with which ``add_argument`` makes the flag of ``field``."""
    if field.name == "data":
        return ["data"], {"help": field.metadata.get("help", "the data")}
    names = ["--" + field.name.replace("_", "-")]
    alias = field.metadata.get("argparse_alias")
    if alias:
        names += [alias] if isinstance(alias, str) else list(alias)
    options: dict[str, Any] = {"dest": field.name, "help": field.metadata.get("help", "").replace("%", "%%")}
    plain = without_none(hint)
    options["required"] = default == MANDATORY
    if reference_of(default) or default == MANDATORY:
        default = None
    options["default"] = default.value if isinstance(default, Enum) else default
    if plain is bool:
        del options["required"]
        options["action"] = "store_false" if default is True else "store_true"
        return names, options
    options["type"], choices = (field.metadata["parse"], None) if "parse" in field.metadata else converter(plain)
    choices = field.metadata.get("choices") or choices
    if choices:
        options["choices"] = list(choices)
    if "argparse_const" in field.metadata:
        options["nargs"], options["const"] = "?", field.metadata["argparse_const"]
    options["metavar"] = None if choices else field.metadata.get("metavar") or metavar_of(plain)
    return names, options


def without_none(hint: Any) -> Any:
    """``X | None`` -> ``X``; everything else unchanged."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [t for t in typing.get_args(hint) if t is not type(None)]
        return inner[0] if len(inner) == 1 else str
    return hint


def metavar_of(hint: Any) -> str:
    origin = typing.get_origin(hint) or hint
    return {int: "N", float: "X", list: "A,B", tuple: "A,B", str: "STR"}.get(origin, "VALUE")


def converter(hint: Any) -> tuple[Callable[[str], Any], list[str] | None]:
    """The function that reads a flag's text as ``hint``, and the choices if there are only so many."""
    origin = typing.get_origin(hint)
    if origin in (list, tuple):
        inner = typing.get_args(hint)
        return list_of(inner[0] if inner else str), None
    if origin is typing.Literal:
        return str, [str(a) for a in typing.get_args(hint)]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return str, [str(member.value) for member in hint]
    if hint in (int, float, str):
        return typing.cast(Callable[[str], Any], hint), None
    return str, None


def list_of(inner: type) -> Callable[[str], list[Any]]:
    """Reads ``1,2``, ``[1, 2]`` or ``(1, 2)`` as a list of ``inner``."""

    def read(text: str) -> list[Any]:
        text = text.strip()
        if inner is str and not text.startswith(("[", "(")):
            return [part.strip() for part in text.split(",") if part.strip()]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise argparse.ArgumentTypeError(f"'{text}' is not a list of {inner.__name__}, like 1,2") from None
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        try:
            return [inner(item) for item in items]
        except (TypeError, ValueError):
            raise argparse.ArgumentTypeError(f"'{text}' is not a list of {inner.__name__}, like 1,2") from None

    read.__name__ = f"list of {inner.__name__}"
    return read


def literal_dict(text: str | dict[str, Any] | None) -> dict[str, Any]:
    """A dict given as text, in Python's or JSON's spelling. Raises ValueError if it is neither."""
    if not text:
        return {}
    if isinstance(text, dict):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected a dict, got {text!r}")
    return value
