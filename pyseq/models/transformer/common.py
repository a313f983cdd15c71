"""What encoder and decoder share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyseq.modules import LayerDropModuleList


def layer_list(layerdrop: float) -> nn.ModuleList:
    """An empty list for layers, of which training leaves out a share of ``layerdrop``."""
    return LayerDropModuleList(layerdrop) if layerdrop > 0 else nn.ModuleList()


def drop_idle_mask(mask: Tensor) -> Tensor | None:
    """None for a mask that masks nothing, where finding out is free: not on a GPU, which the host would wait for."""
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and not mask.any():
        return None
    return mask
