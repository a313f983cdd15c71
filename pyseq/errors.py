"""Errors that a user can cause, and the words they are told in.

Everything below derives from :class:`UserError`. The commands print its message alone (no traceback)
and exit with a non-zero code; any other exception is a defect of pyseq or of a plug-in and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right. The message says what is wrong, where, and what to do."""


class ConfigError(UserError, ValueError):
    """A flag, a config file or a plug-in's registration is wrong."""


class DataError(UserError):
    """A data file is missing, damaged, or does not fit the rest."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class TrainingError(UserError):
    """The run itself cannot go on (non-finite gradients, loss scale exhausted, out of memory)."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The names in ``known`` that are closest to ``name``, as a sentence (empty if nothing is known)."""
    known = sorted({k for k in known if k})
    if not known:
        return ""
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    return f"Known: {', '.join(known)}." if len(known) <= 40 else ""
