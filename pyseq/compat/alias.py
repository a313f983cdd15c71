"""Modules that stand for other modules: made on import, their names looked up when they are asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from pyseq.compat.table import MODULES, NOTES, RENAMES, SHIMS
from pyseq.errors import nearest


class AliasModule(ModuleType):
    """A fairseq module: its names are those of the pyseq modules in the table."""

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return [n for n in names_of(self.__name__) if not n.startswith("_")]
        if name.startswith("__") and name not in SHIMS.get(self.__name__, {}):
            raise AttributeError(name)
        if f"{self.__name__}.{name}" in MODULES:
            return importlib.import_module(f"{self.__name__}.{name}")
        try:
            return resolve(self.__name__, name)
        except LookupError:
            raise AttributeError(not_here(self.__name__, name)) from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *names_of(self.__name__)})


class AliasFinder(MetaPathFinder, Loader):
    """Makes an :class:`AliasModule` for every module of the table below ``roots``.

    Raises:
        ImportError: a module or a name that pyseq does not have, with the nearest that it has.
    """

    def __init__(self, roots: frozenset[str]) -> None:
        self.roots = roots

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if fullname.split(".")[0] not in self.roots:
            return None
        if fullname not in MODULES:
            # "from fairseq.models import X" asks for a submodule fairseq.models.X when there is no attribute X.
            raise ImportError(not_here(parent, name), name=fullname)
        return ModuleSpec(fullname, self, origin=f"pyseq.compat: {', '.join(MODULES[fullname])}", is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return AliasModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def resolve(module: str, name: str) -> Any:
    """The object that ``name`` of fairseq's ``module`` stands for. Raises LookupError if there is none."""
    if name in SHIMS.get(module, {}):
        source, _, attribute = SHIMS[module][name].partition(":")
        return getattr(importlib.import_module(source), attribute)
    for source in MODULES[module]:
        try:
            return getattr(importlib.import_module(source), RENAMES.get(name, name))
        except AttributeError:
            continue
    raise LookupError(name)


def names_of(module: str) -> list[str]:
    """What fairseq's ``module`` has here, by fairseq's names."""
    ours = {name for source in MODULES[module] for name in public_names(importlib.import_module(source))}
    renamed = {theirs for theirs, name in RENAMES.items() if name in ours}
    below = {m.removeprefix(module + ".") for m in MODULES if m.startswith(module + ".")}
    return sorted(ours | renamed | set(SHIMS.get(module, {})) | {name for name in below if "." not in name})


def public_names(module: ModuleType) -> list[str]:
    """What ``module`` offers: its ``__all__``, or else what it defines itself."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    own = (n for n, value in vars(module).items() if getattr(value, "__module__", module.__name__) == module.__name__)
    return [n for n in own if not n.startswith("_") and not isinstance(getattr(module, n), ModuleType)]


def not_here(module: str, name: str) -> str:
    hint = nearest(name, [*names_of(module), *elsewhere(name)])
    more = f" {hint}" if hint.startswith("Did") else ""
    return f"{module} has no {name!r} in pyseq.{more} {NOTES.get(module, f'dir({module}) lists what there is.')}"


def elsewhere(name: str) -> list[str]:
    """``name`` with the modules that do have it, among those already imported."""
    found = (m for m in MODULES if m in sys.modules and name in names_of(m))
    return [f"{m}.{name}" for m in found]
