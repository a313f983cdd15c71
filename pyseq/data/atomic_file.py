"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from pyseq.errors import DataError


def temporary_name(path: str) -> str:
    """Where the content of ``path`` is written until it is complete: the same folder, so that a rename is enough."""
    return f"{path}.tmp{os.getpid()}"


@contextlib.contextmanager
def telling_disk_errors(path: str) -> Iterator[None]:
    """Turn an OSError (full disk, no permission) into a DataError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}. What was there before is unchanged."
        ) from error


@contextlib.contextmanager
def replacing(path: str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that replaces ``path`` when the block ends without an exception, and else vanishes.

    Args:
        mode: "w" (UTF-8 text) or "wb".

    Raises:
        DataError: the file cannot be written.
    """
    temporary = temporary_name(path)
    with telling_disk_errors(path):
        try:
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            remove_if_there(temporary)
            raise


@contextlib.contextmanager
def complete_files(folder: str, last: str) -> Iterator[str]:
    """A new folder inside ``folder``, whose files move there when the block ends without an exception, and else vanish.

    Args:
        last: files whose name begins with this are moved after all others.

    Raises:
        DataError: ``folder`` cannot be written to.
    """
    with telling_disk_errors(folder):
        new = tempfile.mkdtemp(prefix=".incomplete-", dir=folder)
    try:
        yield new
        with telling_disk_errors(folder):
            for name in sorted(os.listdir(new), key=lambda name: (name.startswith(last), name)):
                os.replace(os.path.join(new, name), os.path.join(folder, name))
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove_if_there(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)
