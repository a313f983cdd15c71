"""LayerDrop (Fan et al., 2020, https://arxiv.org/abs/1909.11556)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn


class LayerDropModuleList(nn.ModuleList):
    """A module list that, in training, leaves out each module with probability ``p`` whenever it is iterated over."""

    def __init__(self, p: float, modules: Iterable[nn.Module] | None = None) -> None:
        super().__init__(modules)
        self.p = p

    def __iter__(self) -> Iterator[nn.Module]:
        draws = torch.rand(len(self)).tolist()  # on the CPU: nothing waits for a device
        for draw, module in zip(draws, super().__iter__()):
            if not self.training or draw > self.p:
                yield module
