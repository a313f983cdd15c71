"""What plug-ins import from omegaconf to write their dataclasses, where omegaconf is not installed."""

from __future__ import annotations

from pyseq.config import II

# The default of a field that must be given.
MISSING = "???"

__all__ = ["II", "MISSING"]
