"""Which sentences of a batch go on, found out without making the host wait for a GPU."""

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
    device it takes what was true :attr:`lag` steps ago: a sentence that has ended stays that much longer, without
    effect, since all its hypotheses are there.
    """

    def __init__(self, bsz: int, device: torch.device) -> None:
        self.device = device
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
        if len(self._asked) <= self.lag:
            return torch.arange(len(self._left), device=self.device)
        sentences, answer, arrived = self._asked.popleft()
        if arrived is not None:
            arrived.synchronize()
        ended = {sentence for sentence, on in zip(sentences, answer.tolist()) if not on}
        places = [place for place, sentence in enumerate(self._left) if sentence not in ended]
        self._left = [self._left[place] for place in places]
        return self._upload(places)

    def _ask(self, goes_on: Tensor) -> Answer:
        if self.device.type != "cuda":
            return Answer(self._left, goes_on, None)
        host, arrived = goes_on.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))
        return Answer(self._left, host, arrived)

    def _upload(self, places: list[int]) -> Tensor:
        if self.device.type != "cuda":
            return torch.tensor(places, dtype=torch.long)
        return torch.tensor(places, dtype=torch.long, pin_memory=True).to(self.device, non_blocking=True)
