"""What a plug-in is: a class under a name, found by that name on the command line.

``register_criterion``, ``register_optimizer``, ``register_lr_scheduler``, ``register_task``, ``register_model``,
``register_bpe``, ``register_tokenizer`` and ``register_scorer`` are all ``Registry.register`` of one instance each.
What pyseq ships registers itself in the same way as what a user brings with ``--user-dir``.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pyseq.config.flags import add_group_arguments
from pyseq.config.group import ConfigGroup, group_from
from pyseq.errors import ConfigError, nearest

C = TypeVar("C", bound=type)

# Every registry by its kind; the parser reads from here which names each flag takes.
REGISTRIES: dict[str, Registry] = {}


@dataclass(frozen=True)
class Entry:
    """One registered class. ``group`` is its config dataclass; None means that it reads the flat namespace."""

    name: str
    cls: type
    group: type[ConfigGroup] | None

    @property
    def where(self) -> str:
        return where_defined(self.cls)


class Optioned:
    """Base of what takes options: a subclass has those of the class it extends, whether or not it has a dataclass too.

    ``config_group`` is the dataclass that the class, or one it extends, was registered with.
    """

    config_group: type[ConfigGroup] | None = None

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add the flags to an argparse parser. A class without a dataclass may override this and call its parent's."""
        if cls.config_group is not None:
            add_group_arguments(parser, cls.config_group)


class Registry:
    """Name -> class, for one kind of plug-in.

    Args:
        kind: the key in configs and, with dashes, the flag that chooses (``lr_scheduler`` -> ``--lr-scheduler``).
        base: the class that a plug-in of this kind extends, or None if any class will do.
        default: the name used when the flag is not given.
        required: whether :meth:`build` refuses a missing choice (otherwise it returns None).
    """

    def __init__(self, kind: str, base: type | None = None, default: str | None = None, required: bool = False) -> None:
        self.kind, self.base, self.default, self.required = kind, base, default, required
        self._entries: dict[str, Entry] = {}
        REGISTRIES[kind] = self

    def register(self, name: str, dataclass: type[ConfigGroup] | None = None) -> Callable[[C], C]:
        """Decorator that makes a class available as ``name``.

        Raises:
            ConfigError: another class has the name, the class does not extend the kind's base class, or
                ``dataclass`` is not a :class:`ConfigGroup` dataclass. Re-importing the same class is not an error.
        """

        def add(cls: C) -> C:
            self.check(name, cls, dataclass)
            if dataclass is not None:
                cls.config_group = dataclass  # type: ignore[attr-defined]
            self._entries[name] = Entry(name, cls, dataclass)
            return cls

        return add

    def check(self, name: str, cls: type, group: type | None) -> None:
        """Raise ConfigError if ``cls`` may not be registered as ``name``."""
        if self.base is not None and not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise ConfigError(
                f"{self.kind} '{name}' ({where_defined(cls)}) must extend {self.base.__module__}.{self.base.__name__}"
            )
        if group is not None and not (
            isinstance(group, type) and issubclass(group, ConfigGroup) and dataclasses.is_dataclass(group)
        ):
            raise ConfigError(
                f"{self.kind} '{name}' ({where_defined(cls)}): dataclass={group!r} must be a @dataclass that extends "
                "pyseq.config.ConfigGroup"
            )
        old = self._entries.get(name)
        if old is not None and not same_definition(old.cls, cls):
            raise ConfigError(
                f"{self.kind} '{name}' is registered twice: by {old.cls.__qualname__} at {old.where} and by "
                f"{cls.__qualname__} at {where_defined(cls)}. Rename one of them."
            )

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def names(self) -> list[str]:
        return sorted(self._entries)

    def entry(self, name: str) -> Entry:
        """The entry called ``name``. Raises ConfigError with the nearest names if there is none."""
        try:
            return self._entries[name]
        except KeyError:
            raise ConfigError(f"unknown {self.kind} '{name}'. {nearest(name, self._entries)}") from None

    def build(self, cfg: Any, *args: Any, choice: str | None = None, **kwargs: Any) -> Any:
        """Instantiate the plug-in that ``cfg`` chooses.

        ``cfg`` is a plug-in's config node (its ``_name`` chooses), a name, or a flat namespace that has this
        registry's kind as an attribute. A class method ``build_<kind>`` is called in place of the constructor.

        Returns:
            The plug-in, or None if nothing was chosen and this kind is not required.
        """
        choice = choice or choice_of(cfg, self.kind)
        if choice is None:
            if self.required:
                raise ConfigError(f"--{self.kind.replace('_', '-')} is required. Known: {', '.join(self.names())}.")
            return None
        entry = self.entry(choice)
        node = cfg
        if entry.group is not None and not isinstance(cfg, entry.group):
            node = entry.group() if cfg is None or isinstance(cfg, str) else group_from(entry.group, cfg)
        builder = getattr(entry.cls, f"build_{self.kind}", entry.cls)
        return builder(node, *args, **kwargs)


@dataclass(frozen=True)
class Architecture:
    """A named set of values for a model's options: ``fill_in(args)`` sets what ``args`` does not have yet."""

    name: str
    model_name: str
    fill_in: Callable[[Any], None]
    definition: Any  # the model's class, the function, or a row of values, which knows where it stands

    @property
    def where(self) -> str:
        return getattr(self.definition, "where", None) or where_defined(self.definition)


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(name: str) -> Architecture:
    """The architecture called ``name``. Raises ConfigError with the nearest names if there is none."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise ConfigError(f"unknown architecture '{name}'. {nearest(name, ARCHITECTURES)}") from None


def choice_of(cfg: Any, kind: str) -> str | None:
    """The plug-in name that a config node, a namespace or a plain string chooses for ``kind``."""
    if cfg is None or isinstance(cfg, str):
        return cfg
    name = getattr(cfg, "_name", None)
    if name is None:
        name = getattr(cfg, kind, None)
    return name if isinstance(name, str) else None


def same_definition(a: type, b: type) -> bool:
    """Whether two class objects come from one definition, imported twice: a reloaded module, a file under two names."""
    if a is b:
        return True
    where = source_file(a)
    same_place = where == source_file(b) if where else a.__module__ == b.__module__
    return same_place and a.__qualname__ == b.__qualname__


def source_file(obj: Any) -> str | None:
    try:
        path = inspect.getsourcefile(obj)
    except (TypeError, OSError):
        return None
    return os.path.realpath(path) if path else None


def where_defined(obj: Any) -> str:
    """``file:line`` of a class or function, or its module where the source is not at hand. Reads the source: slow."""
    try:
        return f"{inspect.getsourcefile(obj)}:{inspect.getsourcelines(obj)[1]}"
    except (TypeError, OSError):
        return f"module {getattr(obj, '__module__', '?')}"


def import_siblings(package_file: str, package_name: str) -> None:
    """Import every module and package next to ``package_file``, in sorted order, so that each registers itself.

    Names that begin with ``_`` or ``.`` are left out.
    """
    folder = os.path.dirname(package_file)
    for item in sorted(os.listdir(folder)):
        stem, extension = os.path.splitext(item)
        is_package = os.path.isfile(os.path.join(folder, item, "__init__.py"))
        if not item.startswith(("_", ".")) and (extension == ".py" or is_package):
            importlib.import_module(f"{package_name}.{stem}")
