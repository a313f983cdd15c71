from __future__ import annotations

import torch
from torch import nn

from pyseq.modules import LayerDropModuleList


def test_training_leaves_out_the_stated_share_and_inference_none() -> None:
    torch.manual_seed(0)
    layers = LayerDropModuleList(0.3, [nn.Identity() for _ in range(10)])
    seen = [list(layers) for _ in range(1000)]
    assert abs(sum(map(len, seen)) / 10_000 - 0.7) < 0.02
    order = {id(layer): i for i, layer in enumerate(layers.eval())}
    assert all([order[id(a)] for a in some] == sorted(order[id(a)] for a in some) for some in seen)
    assert len(list(layers)) == len(layers) == 10
