"""Every case. A module in ops/ (operations) or runs/ (what a user runs) has a list ``CASES`` of harness.Case."""

from __future__ import annotations

import importlib
import pkgutil

from .harness import Case

FOLDERS = ("ops", "runs")


def cases_of(*folders: str) -> list[Case]:
    """The cases of every module in these folders, in the order of the modules' names."""
    found: list[Case] = []
    for folder in folders:
        package = importlib.import_module(f".{folder}", __package__)
        for module in pkgutil.iter_modules(package.__path__):
            if module.name not in ("__main__", "cases"):
                found += importlib.import_module(f".{folder}.{module.name}", __package__).CASES
    return found


def all_cases() -> list[Case]:
    return cases_of(*FOLDERS)
