"""``--compile``: models through torch.compile, in place, so that names of parameters stay."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from typing import Any

from pyseq.errors import ConfigError
from pyseq.models.incremental_decoder import IncrementalDecoder

logger = logging.getLogger(__name__)

ADVICE = "--compile needs a C++ compiler, and there is none: install g++, or name one in CXX"


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch.compile calls."""
    return shutil.which(shlex.split(os.environ.get("CXX") or "g++")[0]) is not None


def compile_for_training(model: Any) -> None:
    """Compile a model when it is first called: one graph for batches of all shapes."""
    model.compile(dynamic=True)


def compile_for_inference(models: list[Any]) -> None:
    """Compile what scoring calls, the model, and what a search calls, its encoder and its decoder.

    Decoders that keep an incremental state are left alone: they would be compiled anew for every kind of state that
    they meet in a search (empty, a token, several, one row, many), and steps of a plain one are one operation already.

    Raises:
        ConfigError: there is no C++ compiler.
    """
    if not has_compiler():
        raise ConfigError(ADVICE)
    logger.info("compile: the first batch may take minutes")
    for model in models:
        parts = [model, getattr(model, "encoder", None), getattr(model, "decoder", None)]
        for part in parts:
            if part is not None and not isinstance(part, IncrementalDecoder):
                part.compile(dynamic=True)
