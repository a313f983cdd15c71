"""A checkpoint as a file: written whole or not at all, read without running code from it.

The layout is fairseq's: a dict with ``args``, ``cfg``, ``model``, ``criterion``, ``optimizer_history``, ``task_state``,
``extra_state`` and ``last_optimizer_state``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyseq.errors import CheckpointError


def _safe_classes() -> list[Any]:
    """What a fairseq checkpoint holds besides tensors and plain containers: a namespace, and perhaps numpy scalars."""
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # numpy 1 and 2 wrote it so
    dtypes = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    return [argparse.Namespace, np.dtype, *dtypes, *((scalar, name) for name in names)]


def load_checkpoint_file(path: str | os.PathLike[str], unsafe: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: the file.
        unsafe: fall back to pickle, which runs code that the file contains, if the safe loader refuses the file.

    Raises:
        CheckpointError: the file is missing, damaged, cut short, no checkpoint, or refused by the safe loader.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"no checkpoint at {path}{_neighbours(path)}")
    try:
        with torch.serialization.safe_globals(_safe_classes()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
        if refused is None:
            raise CheckpointError(f"{path} is damaged, cut short or no checkpoint. Use another one.") from None
        if not unsafe:
            raise CheckpointError(
                f"{path} holds a {refused.group(1)}, which the safe loader refuses. If you trust where the file comes "
                "from, load it with --unsafe-load, which runs code that the file contains."
            ) from None
        state = torch.load(path, map_location="cpu", weights_only=False)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged, cut short or no checkpoint ({_first_line(error)}). Use another one of the run."
        ) from None
    if not isinstance(state, dict) or "model" not in state:
        raise CheckpointError(f"{path} is not a checkpoint: it has no 'model'")
    return state


def save_checkpoint_file(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write ``state`` to ``path`` atomically: readers see the old file or the whole new one.

    Raises:
        CheckpointError: it could not be written (a full disk, say); a file that was at ``path`` before is untouched.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise CheckpointError(
            f"could not write {path} ({_first_line(_root(error))}). Checkpoints saved before are untouched: make room "
            "and run the same command again to resume."
        ) from error


def _sync_folder(path: str | os.PathLike[str]) -> None:
    """Let the new name outlast a power failure, as the contents do."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def copy_checkpoint_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give the checkpoint at ``source`` a second name, atomically and without a second copy where the disk allows."""
    temporary = f"{target}.tmp"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise CheckpointError(f"could not write {target} ({error.strerror})") from error


def _neighbours(path: str | os.PathLike[str]) -> str:
    folder = Path(path).parent
    if not folder.is_dir():
        return f": the folder {folder} does not exist"
    found = sorted(p.name for p in folder.glob("*.pt"))
    return f". In {folder}: {', '.join(found[:8])}" if found else ""


def _root(error: BaseException) -> BaseException:
    """The error of the file system behind torch's, which says more."""
    while error.__context__ is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
