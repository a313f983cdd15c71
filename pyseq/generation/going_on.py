"""Which sentences of a batch go on, found out while the device computes the next step."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

LAG = {"cuda": 2}  # steps: the answer is there by then, and the GPU has enough to do meanwhile. Elsewhere 0.


class Answer(NamedTuple):
    sentences: list[int]  # that were asked about
    goes_on: Tensor  # of each of them, on the host once ``arrived``
    arrived: torch.cuda.Event | None


class GoingOn:
    """The sentences that are left in a batch of ``bsz``.

    How many there are decides the shapes of the next step, so the host has to know. Where the host runs ahead of the
    device it takes what was true :attr:`lag` steps ago, and so waits for no later step than that. A sentence that has
    ended stays that much longer, without effect, since all its hypotheses are there.
    """

    def __init__(self, bsz: int, device: torch.device) -> None:
        self.device, self._on_gpu = device, device.type == "cuda"
        self.lag = LAG.get(device.type, 0)
        self._left = list(range(bsz))
        self._asked: deque[Answer] = deque()

    def among(self, goes_on: Tensor) -> Tensor:
        """The places of those to keep.

        Args:
            goes_on: [B] for each sentence that is left. One that does not go on never will.

        Returns:
            [B'] places among the B, ascending.
        """
        if self.lag == 0:
            return goes_on.nonzero().flatten()
        self._asked.append(self._ask(goes_on))
        ended = self._known_to_have_ended() if len(self._asked) > self.lag else set()
        places = [place for place, sentence in enumerate(self._left) if sentence not in ended]
        if len(places) == len(self._left):
            return torch.arange(len(places), device=self.device)
        self._left = [self._left[place] for place in places]
        return torch.tensor(places, dtype=torch.long, pin_memory=self._on_gpu).to(self.device, non_blocking=True)

    def _ask(self, goes_on: Tensor) -> Answer:
        host, arrived = goes_on.to("cpu", non_blocking=True), torch.cuda.Event() if self._on_gpu else None
        if arrived is not None:
            arrived.record(torch.cuda.current_stream(self.device))
        return Answer(self._left, host, arrived)

    def _known_to_have_ended(self) -> set[int]:
        sentences, goes_on, arrived = self._asked.popleft()
        if arrived is not None:
            arrived.synchronize()
        return {sentence for sentence, on in zip(sentences, goes_on.tolist()) if not on}
