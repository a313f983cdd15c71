"""``--user-dir``: import a folder (or a file) of the user's own plug-ins."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import os
import re
import sys
import traceback
import zlib
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

from pyseq.errors import ConfigError, nearest
from pyseq.registry import import_siblings

# Sub-folders whose modules are imported after the package itself, each of which may register plug-ins.
PLUGIN_FOLDERS = ("models", "tasks", "criterions", "optim", "optim/lr_scheduler", "scoring")

_imported: dict[str, ModuleType] = {}


def import_user_dir(path: str | os.PathLike[str] | None) -> ModuleType | None:
    """Import the package or the single ``.py`` file at ``path``, so that its plug-ins register themselves.

    A package may lie anywhere and may consist of an ``__init__.py`` alone; the modules in its folders ``models``,
    ``tasks``, ``criterions``, ``optim``, ``optim/lr_scheduler`` and ``scoring`` are imported after it.

    It is imported under its folder's name, so that ``from my_folder import x`` means itself and what it pickles can be
    loaded again. Its parent folder is appended to ``sys.path``: packages beside it can be imported, worker processes
    find it again, and being last it hides nothing. If another module has the name already (a folder called
    ``examples``, or ``torch``), it is imported under a private name; its own modules still find each other by the
    folder's name, and find the other module for all that they do not have themselves.

    Args:
        path: absolute, or relative to the working directory; a path that is not there is also looked for beside and in
            the pyseq package. None and "" mean that there is none. What was imported before is not imported again.

    Returns:
        The package, or None without a ``path``.

    Raises:
        ConfigError: there is nothing at ``path``, or importing it failed. The message then has the user's own lines of
            the traceback.
    """
    if not path:
        return None
    location = locate(os.path.expanduser(os.fspath(path)))
    real = os.path.realpath(location)
    if real not in _imported:
        _imported[real] = UserDir(location).load()
    return _imported[real]


def locate(path: str) -> str:
    """The absolute path that ``path`` means. Raises ConfigError with what was tried if there is nothing to import."""
    package = os.path.dirname(os.path.abspath(__file__))
    tried = list(dict.fromkeys(os.path.abspath(os.path.join(base, path)) for base in ("", package, package + "/..")))
    found = next((candidate for candidate in tried if os.path.exists(candidate)), None)
    if found is None:
        parent = os.path.dirname(tried[0])
        hint = nearest(os.path.basename(tried[0]), os.listdir(parent)) if os.path.isdir(parent) else ""
        hint = f" {hint}" if hint.startswith("Did") else ""
        raise ConfigError(f"--user-dir {path}: no such folder or file. Tried {', '.join(tried)}.{hint}")
    if os.path.isfile(found) and not found.endswith(".py"):
        raise ConfigError(f"--user-dir {found}: expected a folder or a .py file")
    wanted = ("__init__.py", *PLUGIN_FOLDERS)
    if os.path.isdir(found) and not any(os.path.exists(os.path.join(found, name)) for name in wanted):
        raise ConfigError(
            f"--user-dir {found}: nothing to import there: it has neither an __init__.py nor a folder models/ or tasks/"
        )
    return found


class UserDir:
    """One folder or file, and the name it is imported under.

    Attributes:
        path: absolute, without a trailing separator.
        folder_name: the name its own modules know it by.
        name: its name in ``sys.modules``.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        name = os.path.basename(path)
        self.folder_name = name.removesuffix(".py") if os.path.isfile(path) else name
        self.name = self.folder_name if self.has_its_name_to_itself() else self.private_name()

    def has_its_name_to_itself(self) -> bool:
        if not self.folder_name.isidentifier():
            return False
        try:
            spec = importlib.util.find_spec(self.folder_name)
        except (ImportError, ValueError):  # ValueError: a module in sys.modules without a spec, like __main__
            return False
        return spec is None or self.is_at(spec)

    def is_at(self, spec: ModuleSpec) -> bool:
        """Whether ``spec`` describes this very folder or file."""
        places = [spec.origin] if os.path.isfile(self.path) else list(spec.submodule_search_locations or ())
        real = os.path.realpath(self.path)
        return any(place is not None and os.path.realpath(place) == real for place in places)

    def private_name(self) -> str:
        """The same for the same path in every process."""
        readable = re.sub(r"\W", "_", self.folder_name)
        return f"user_dir_{readable}_{zlib.crc32(os.path.realpath(self.path).encode()):08x}"

    def load(self) -> ModuleType:
        """Import the package, then the modules of its plug-in folders."""
        parent = os.path.dirname(self.path)
        if parent not in sys.path:
            sys.path.append(parent)
        before = set(sys.modules)
        try:
            module = self.import_package()
            for folder in PLUGIN_FOLDERS:
                self.import_folder(folder)
        except Exception as error:
            # What is half imported would be taken for whole by the next attempt.
            for name in [n for n in set(sys.modules) - before if n == self.name or n.startswith(self.name + ".")]:
                del sys.modules[name]
            raise ConfigError(self.describe(error)) from error
        return module

    def import_package(self) -> ModuleType:
        if self.name in sys.modules:
            return sys.modules[self.name]
        if self.name != self.folder_name:
            sys.meta_path.insert(0, PrivateFinder(self))
        spec = self.spec()
        module = sys.modules[self.name] = importlib.util.module_from_spec(spec)
        if spec.loader is not None:
            spec.loader.exec_module(module)
        return sys.modules[self.name]

    def spec(self) -> ModuleSpec:
        """How to import the package: from its file, or as a bare namespace if the folder has no ``__init__.py``."""
        is_file = os.path.isfile(self.path)
        file = self.path if is_file else os.path.join(self.path, "__init__.py")
        places = None if is_file else [self.path]
        if os.path.exists(file):
            loader = SourceFileLoader(self.name, file)
            if self.name != self.folder_name:
                loader = PrivateLoader(self, self.name, file)
            spec = importlib.util.spec_from_file_location(
                self.name, file, loader=loader, submodule_search_locations=places
            )
            assert spec is not None
            return spec
        spec = ModuleSpec(self.name, None, is_package=True)
        spec.submodule_search_locations = places
        return spec

    def import_folder(self, folder: str) -> None:
        path = os.path.join(self.path, folder)
        if os.path.isdir(path):
            name = f"{self.name}.{folder.replace('/', '.')}"
            importlib.import_module(name)
            import_siblings(os.path.join(path, "__init__.py"), name)

    def describe(self, error: BaseException) -> str:
        """The traceback of ``error``, reduced to lines of the user's own files."""
        report = traceback.TracebackException.from_exception(error)
        own = [frame for frame in report.stack if self.owns(frame.filename)]
        lines = traceback.format_list(own) + list(report.format_exception_only())
        return f"--user-dir {self.path} cannot be imported:\n{''.join(lines).rstrip()}"

    def owns(self, filename: str) -> bool:
        return filename == self.path or filename.startswith(self.path + os.sep)


class PrivateFinder(MetaPathFinder):
    """Finds the modules below a package that has a private name, and has :class:`PrivateLoader` load them."""

    def __init__(self, user_dir: UserDir) -> None:
        self.user_dir = user_dir

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(self.user_dir.name + "."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = PrivateLoader(self.user_dir, fullname, spec.loader.path)
        return spec


class PrivateLoader(SourceFileLoader):
    """Runs a module whose import statements find its own package under the folder's name as well.

    An import statement calls ``__import__`` of its module's ``__builtins__``, so the modules of one user-dir can be
    given their own without a change to anybody else's.
    """

    def __init__(self, user_dir: UserDir, fullname: str, path: str) -> None:
        super().__init__(fullname, path)
        self.user_dir = user_dir

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self.import_}
        super().exec_module(module)

    def import_(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        """``__import__``: the package's own module if it has all that is asked for, else whatever else has the name."""
        folder = self.user_dir.folder_name
        if level == 0 and (name == folder or name.startswith(folder + ".")):
            own = self.user_dir.name + name[len(folder) :]
            if self.has(own, fromlist or ()):
                name = own
        return builtins.__import__(name, globals, locals, fromlist, level)

    def has(self, own: str, fromlist: Sequence[str]) -> bool:
        """Whether module ``own`` exists and has the names in ``fromlist``."""
        if own == self.user_dir.name and not fromlist:
            return False  # a bare "import torch" in a folder called torch
        if not exists(own):
            return False
        module = importlib.import_module(own)
        return all(name == "*" or hasattr(module, name) or exists(f"{own}.{name}") for name in fromlist)


def exists(module_name: str) -> bool:
    try:
        return importlib.util.find_spec(module_name) is not None
    except ModuleNotFoundError:  # a parent is missing, or is no package
        return False
