"""The compiled half of the data path, ``pyseq._core.data``, or None where it is not built.

Batching, collation and token blocks each have a numpy reference that says what the compiled function computes, the
words of text have one in Python. It takes over, some tens of times slower, when this is None.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)


def load_native() -> Any:
    """``pyseq._core.data``, or None (with one warning that says why)."""
    try:
        return importlib.import_module("pyseq._core").data
    except ImportError as error:
        logger.warning("the compiled core is not available (%s): the data path runs in Python and numpy", error)
        return None


def int64_array(values: npt.ArrayLike, name: str) -> Int64Array:
    """``values`` as a contiguous, aligned int64 array (a copy only where needed), which the compiled core asks for.

    Columns of a memory-mapped index file are not aligned, for instance.

    Raises:
        TypeError: the values are not integers.
    """
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {array.dtype}")
    return np.require(array, np.int64, ["C_CONTIGUOUS", "ALIGNED"])


native = load_native()
