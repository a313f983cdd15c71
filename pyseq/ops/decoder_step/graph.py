"""Steps of a decoder as CUDA graphs: the host asks for all layers at once, instead of for each kernel."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.cuda_graphs import Record, record
from pyseq.ops.decoder_step import DecoderWeights, SlotCache, SlotMemory, attention, run


class _Recorded(NamedTuple):
    """A step for a number of rows: what it reads, and what runs it again and returns what it writes."""

    x: Tensor
    replay: Callable[[], Tensor]


class GraphedSteps:
    """Records the steps of a decoder for 8, 16, 32, ... rows when they are first needed, and replays them.

    Keys and values stay in the same memory from batch to batch. Where it has to grow, and where weights change, steps
    are recorded anew.
    """

    def __init__(self, record: Record = record) -> None:
        self._record = record
        self._weights: DecoderWeights | None = None
        self._memory: SlotMemory | None = None
        self._user: weakref.ref[SlotCache] | None = None
        self._recorded: dict[int, _Recorded] = {}
        self._moves = 0
        self._pool: Any = None

    def begin(
        self, weights: DecoderWeights, encoder_out: Tensor | None, padding_mask: Tensor | None, x: Tensor
    ) -> SlotCache:
        """The cache of a batch; arguments as for :class:`SlotCache`. While there is another, it is not for graphs."""
        if self._user is not None and self._user() is not None:
            return SlotCache(weights, encoder_out, padding_mask, x)
        memory = self._memory
        if memory is None or self._weights is not weights or not _like(memory.keys_values, x):
            self._weights, self._memory = weights, SlotMemory(weights, x)
            self._recorded.clear()
            self._moves = 0
        cache = SlotCache(weights, encoder_out, padding_mask, x, self._memory)
        self._user = weakref.ref(cache)
        return cache

    def step(self, x: Tensor, weights: DecoderWeights, cache: SlotCache, padding: Tensor | None) -> Tensor:
        """As :func:`pyseq.ops.decoder_step.decoder_step`, with a cache of :meth:`begin` that is ``for_graphs``."""
        cache.add_step(padding)
        if cache.memory.moves != self._moves:
            self._recorded.clear()
            self._moves = cache.memory.moves
        recorded = self._recorded.get(cache.room)
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            if recorded is None:
                with torch.inference_mode(False), torch.no_grad():  # the next batch may come without it
                    recorded = self._recorded[cache.room] = self._new(x, weights, cache)
            recorded.x[: len(x)] = x
            return recorded.replay()[: len(x)].clone()

    def _new(self, x: Tensor, weights: DecoderWeights, cache: SlotCache) -> _Recorded:
        attend = attention(dispatch.choose("decoder_step", x.device.type, x.dtype))
        own = x.new_zeros(cache.room, x.size(1))
        own[: len(x)] = x
        if self._pool is None and x.is_cuda:
            self._pool = torch.cuda.graph_pool_handle()
        tables = copy.copy(cache)  # the batch's own may go when the batch ends, and says by that that memory is free

        def step() -> Tensor:
            return run(own, weights, tables, attend)

        step()
        return _Recorded(own, self._record(step, self._pool))


def _like(tensor: Tensor, other: Tensor) -> bool:
    return tensor.device == other.device and tensor.dtype == other.dtype
