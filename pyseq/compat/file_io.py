"""fairseq's PathManager for local paths, which is what it is without extra packages."""

from __future__ import annotations

import os
import shutil
from typing import IO, Any


class PathManager:
    """File functions under the names that fairseq's code calls."""

    exists = staticmethod(os.path.exists)
    isfile = staticmethod(os.path.isfile)
    isdir = staticmethod(os.path.isdir)
    ls = staticmethod(os.listdir)
    rm = staticmethod(os.remove)

    @staticmethod
    def open(path: str, mode: str = "r", buffering: int = -1, encoding: str | None = None, **kwargs: Any) -> IO[Any]:
        return open(path, mode, buffering, encoding, **kwargs)

    @staticmethod
    def get_local_path(path: str, **kwargs: Any) -> str:
        return path

    @staticmethod
    def mkdirs(path: str) -> None:
        os.makedirs(path, exist_ok=True)

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if not overwrite and os.path.exists(dst_path):
            return False
        shutil.copyfile(src_path, dst_path)
        return True
