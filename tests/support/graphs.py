"""CUDA graphs without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Replays:
    """Stands in for a recorder of CUDA graphs: what is recorded runs again, into the tensors of the first time.

    Attributes:
        recorded: how often something has been.
        replayed: how often something recorded has run.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, compute: Callable[[], Any], pool: object = None) -> Callable[[], Any]:
        self.recorded += 1
        first: list[Any] = []

        def replay() -> Any:
            self.replayed += 1
            with torch.inference_mode(False), torch.no_grad():  # a graph has no modes
                new = compute()
                if not first:
                    first.append(new)
                for old, fresh in zip(tensors(first[0]), tensors(new)):
                    old.copy_(fresh)
            return first[0]

        return replay


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, tuple):
        return [tensor for part in result for tensor in tensors(part)]
    return [result] if torch.is_tensor(result) else []
