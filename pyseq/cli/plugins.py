"""What every command does first: make the plug-ins that pyseq ships known, and the log readable."""

from __future__ import annotations

import importlib
import logging
import os
import sys

import pyseq.compat as compat

PACKAGES = (
    "pyseq.criterions",
    "pyseq.data.encoders",
    "pyseq.optim",
    "pyseq.optim.lr_scheduler",
    "pyseq.scoring",
    "pyseq.models",
    "pyseq.tasks",
)


def load_plugins() -> None:
    """Import the plug-in packages, each of which registers its content, and answer to fairseq's module names."""
    for package in PACKAGES:
        importlib.import_module(package)
    compat.install()


def set_up_logging() -> None:
    """fairseq's log lines on standard output; ``LOGLEVEL`` sets the level."""
    logging.basicConfig(
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        level=os.environ.get("LOGLEVEL", "INFO").upper(),
        stream=sys.stdout,
        force=True,
    )
