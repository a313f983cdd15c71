"""Packages and files that an encoder needs."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from pyseq.errors import ConfigError


def required(module: str, flag: str) -> ModuleType:
    """Import a package that pyseq does without. Raises ConfigError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise ConfigError(
            f"{flag} needs the package {package} ({error}). Install it with: pip install pyseq[bpe]"
        ) from error


def existing_file(path: str | None, flag: str, chosen: str) -> str:
    """``path``, if it is a file. Raises ConfigError that names the flag otherwise."""
    if not path:
        raise ConfigError(f"{chosen} needs {flag} FILE")
    if not os.path.isfile(path):
        raise ConfigError(f"{flag} {path}: no such file")
    return path
