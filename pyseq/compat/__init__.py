"""The names by which fairseq's plug-ins know pyseq.

After :func:`install`, ``from fairseq.models import FairseqEncoder`` finds ``pyseq.models.Encoder``, and so on for what
:mod:`pyseq.compat.table` lists. ``python -m pyseq.compat script.py`` runs a script with these names.
"""

from __future__ import annotations

import importlib.util
import sys

from pyseq.compat.alias import AliasFinder

__all__ = ["install"]


def install() -> bool:
    """Let ``import fairseq`` find pyseq, unless the real one is installed. Nothing is imported before it is used.

    Returns:
        Whether ``fairseq`` means pyseq now.
    """
    aliased = next((finder.roots for finder in sys.meta_path if isinstance(finder, AliasFinder)), None)
    if aliased is None:
        aliased = frozenset(name for name in ("fairseq", "omegaconf") if not is_installed(name))
        # In front: a folder called fairseq on sys.path, without a module in it, would be found first.
        sys.meta_path.insert(0, AliasFinder(aliased))
    return "fairseq" in aliased


def is_installed(package: str) -> bool:
    """Whether there is such a package; a bare folder of that name, like a repository's root, is none."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # in sys.modules without a spec
        return True
    return spec is not None and spec.origin is not None
