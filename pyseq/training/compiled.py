"""``--compile``: the model through ``torch.compile``."""

from __future__ import annotations

import logging

from torch import nn

logger = logging.getLogger(__name__)


def compile_model(model: nn.Module) -> None:
    """Have ``model(...)`` run through ``torch.compile``, once for batches of all shapes.

    Names of parameters stay. Training and evaluation are compiled apart, each at its first batch. A model that is
    compiled computes padding (``can_pack`` is not asked).
    """
    logger.info("compile: the first batch, and the first of a validation, may take minutes")
    model.compile(dynamic=True)
