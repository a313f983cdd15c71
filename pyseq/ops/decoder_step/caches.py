"""Keys and values of one batch. They are written once and stay where they are: a search that reorders its hypotheses
changes a table that says where those of each hypothesis lie, and those of the source are kept once for each sentence.

Sizes: R hypotheses, T positions so far, B sentences of at most S source tokens, C = dim. A key [C] is followed by its
value [C].
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops.decoder_step.weights import DecoderWeights

NOWHERE = -1
STEPS, PLACES = 32, 64  # memory is asked for, at least, for so many further steps, and for such multiples of places


class Keys(NamedTuple):
    """What the queries of R hypotheses attend to in one layer."""

    keys_values: Tensor  # N x 2 C, rows perhaps apart
    slots: Tensor  # R x places, int32: a row of keys_values, or NOWHERE
    length: Tensor  # [1], int32: places from here on are left out, whatever they hold


class DecoderCache:
    """The cache of a batch, which begins with a hypothesis for each sentence."""

    def rows(self) -> int:
        """How many hypotheses there are."""
        raise NotImplementedError

    def add_step(self, padding: Tensor | None) -> None:
        """Make room for one more position; ``padding`` [R] is True where nothing will attend to it."""
        raise NotImplementedError

    def write(self, layer: int, key_value: Tensor) -> None:
        """Keep the keys and values [R x 2 C] of the newest position."""
        raise NotImplementedError

    def own(self, layer: int) -> Keys:
        """What hypotheses attend to of themselves."""
        raise NotImplementedError

    def of_source(self, layer: int) -> Keys | None:
        """What they attend to of their source sentences; None without a source."""
        raise NotImplementedError

    def reorder(self, rows: Tensor) -> None:
        """Keep the hypotheses ``rows`` [R'], in that order."""
        raise NotImplementedError


class StepCache(DecoderCache):
    """A block of memory for each step, and the source without padding: for the core, on the CPU, all in fp32.

    Attributes:
        steps: of each step so far [layers x rows of that step x 2 C].
        addresses, step_rows: of each of them its address and rows, for the core.
        ancestors: [R x T] int32, the row of each step; NOWHERE where that position is padding.
        source: [layers x N x 2 C] of the N source tokens, or None. (The tokens of a layer lie side by side: a stride of
            several layers is often a multiple of 4,096 bytes, and a processor keeps few such lines in its first cache.)
        source_begin: [B + 1] int64, the first of a sentence's source tokens.
        sentence: [R] int32, the sentence of each hypothesis.
    """

    def __init__(self, weights: DecoderWeights, encoder_out: Tensor | None, padding_mask: Tensor | None, rows: int):
        """Begin a batch.

        Args:
            encoder_out: [S x B x encoder C], or None without a source.
            padding_mask: [B x S], True at padding; None if there is none.
            rows: B.
        """
        self.layers, self.width = len(weights.layers), 2 * weights.dim
        self.steps: list[Tensor] = []
        self.addresses, self.step_rows = array("q"), array("q")
        self.ancestors = torch.empty(rows, 0, dtype=torch.int32)
        self.sentence = torch.arange(rows, dtype=torch.int32)
        self.source: Tensor | None = None
        self.source_begin = torch.zeros(rows + 1, dtype=torch.int64)
        if weights.source is not None:
            assert encoder_out is not None
            tokens = encoder_out.transpose(0, 1)  # B x S x C
            kept = tokens.flatten(0, 1) if padding_mask is None else tokens[~padding_mask]  # N x C
            self.source = torch.empty(self.layers, len(kept), self.width)
            weight, bias = (None if t is None else t.unflatten(0, (self.layers, self.width)) for t in weights.source)
            assert weight is not None
            for layer in range(self.layers):
                self.source[layer] = F.linear(kept, weight[layer], None if bias is None else bias[layer])
            lengths = torch.full((rows,), tokens.size(1)) if padding_mask is None else (~padding_mask).sum(1)
            torch.cumsum(lengths, 0, out=self.source_begin[1:])

    def rows(self) -> int:
        return self.ancestors.size(0)

    def add_step(self, padding: Tensor | None) -> None:
        self.steps.append(torch.empty(self.layers, self.rows(), self.width))
        self.addresses.append(self.steps[-1].data_ptr())
        self.step_rows.append(self.rows())
        own = torch.arange(self.rows(), dtype=torch.int32)
        own = own if padding is None else own.masked_fill(padding, NOWHERE)
        self.ancestors = torch.cat([self.ancestors, own.unsqueeze(1)], dim=1)

    def write(self, layer: int, key_value: Tensor) -> None:
        self.steps[-1][layer] = key_value

    def own(self, layer: int) -> Keys:
        rows = torch.tensor([step.size(1) for step in self.steps])
        index = (self.ancestors + (rows.cumsum(0) - rows)).masked_fill(self.ancestors < 0, NOWHERE)
        return Keys(torch.cat([step[layer] for step in self.steps]), index.int(), _length(index))

    def of_source(self, layer: int) -> Keys | None:
        if self.source is None:
            return None
        sentence = self.sentence.long()
        begin, lengths = self.source_begin[:-1][sentence], self.source_begin.diff()[sentence]
        place = torch.arange(int(lengths.max()) if lengths.numel() else 0)
        index = (begin.unsqueeze(1) + place).masked_fill(place >= lengths.unsqueeze(1), NOWHERE)
        return Keys(self.source[layer], index.int(), _length(index))

    def reorder(self, rows: Tensor) -> None:
        self.ancestors, self.sentence = self.ancestors[rows], self.sentence[rows]


class SlotMemory:
    """The memory of a :class:`SlotCache`. It grows by doubling and serves one batch after the other.

    Attributes:
        keys_values: [layers x slots x 2 C]. Slot 0 takes what rows without a hypothesis write.
        own: [rows x places] slots, with how many of the places are in use [1]. So is ``source_places``.
        slots: [rows] int64, where the newest position goes.
        source: [tokens x layers x 2 C], padding included.
        moves: how often something has been moved: what had looked at addresses has to look again.
    """

    def __init__(self, weights: DecoderWeights, like: Tensor):
        """``like``: a tensor of the dtype and on the device that keys and values have."""
        layers, width = len(weights.layers), 2 * weights.dim
        with torch.inference_mode(False):  # the next batch may come without it
            self.keys_values = like.new_zeros(layers, 0, width)
            self.own = like.new_zeros(0, 0, dtype=torch.int32)
            self.own_length = like.new_zeros(1, dtype=torch.int32)
            self.slots = like.new_zeros(0, dtype=torch.int64)
            self.source = like.new_zeros(0, layers, width)
            self.source_places = torch.zeros_like(self.own)
            self.source_length = torch.zeros_like(self.own_length)
        self.moves = 0

    def make_room(self, name: str, *sizes: int) -> Tensor:
        """The tensor of that name, at least that large."""
        tensor: Tensor = getattr(self, name)
        if all(size <= have for size, have in zip(sizes, tensor.shape, strict=True)):
            return tensor
        doubled = [have if size <= have else max(size, 2 * have) for size, have in zip(sizes, tensor.shape)]
        with torch.inference_mode(False), torch.no_grad():
            larger = tensor.new_zeros(doubled)
            larger[tuple(slice(0, have) for have in tensor.shape)] = tensor
        setattr(self, name, larger)
        self.moves += 1
        return larger


class SlotCache(DecoderCache):
    """One block of memory, of which each position of a hypothesis has a slot: for devices. Nothing here reads a tensor.

    Attributes:
        memory: where all is kept.
        for_graphs: whether addresses and shapes of a step stay the same, as CUDA graphs need it.
        room: rows of queries that the tables are for: R of them, or more; the others are of no hypothesis.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        encoder_out: Tensor | None,
        padding_mask: Tensor | None,
        x: Tensor,
        memory: SlotMemory | None = None,
    ):
        """Begin a batch; arguments as for :class:`StepCache`.

        Args:
            x: [B x C], of the dtype and on the device of all.
            memory: used by no other batch meanwhile; rows are then rounded up to powers of two. None: memory and rows
                of its own.
        """
        self.for_graphs = memory is not None
        self.memory = SlotMemory(weights, x) if memory is None else memory
        self.count, self.positions, self.used = 0, 0, 1
        self.room = 0
        self.places: Tensor | None = None  # B x S slots of the source
        self.sentence = torch.arange(x.size(0), device=x.device)
        if weights.source is not None:
            assert encoder_out is not None
            tokens = encoder_out.transpose(0, 1)  # B x S x C
            places = torch.arange(tokens.size(0) * tokens.size(1), device=x.device).view(tokens.shape[:2])
            self.places = places.int() if padding_mask is None else places.int().masked_fill(padding_mask, NOWHERE)
            keys_values = F.linear(tokens.flatten(0, 1), *weights.source).view(-1, *self.memory.source.shape[1:])
            if self.for_graphs:
                source = self.memory.make_room("source", *keys_values.shape)
                source[: len(keys_values)] = keys_values
            else:
                self.memory.source = keys_values
            self.memory.source_length.fill_(tokens.size(1))
        self._set_rows(x.size(0))
        self._place_source()

    def rows(self) -> int:
        return self.count

    def _set_rows(self, count: int) -> None:
        self.count = count
        self.room = max(8, 1 << (count - 1).bit_length()) if self.for_graphs and count else count

    def _place_source(self) -> None:
        if self.places is not None:
            table = self.memory.make_room("source_places", self.room, _places(self.places.size(1)))
            self._fill(table, self.places[self.sentence])

    def _fill(self, table: Tensor, slots: Tensor) -> None:
        """Write the places [R x n] into a table, and NOWHERE for the rows of no hypothesis."""
        table[: self.count, : slots.size(1)] = slots
        if self.room > self.count:
            table[self.count : self.room, : slots.size(1)] = NOWHERE

    def add_step(self, padding: Tensor | None) -> None:
        memory = self.memory
        end = self.used + self.count
        layers, slots, width = memory.keys_values.shape
        if end > slots:
            memory.make_room("keys_values", layers, self.used + STEPS * self.count, width)
        own = memory.make_room("own", self.room, _places(self.positions + 1))
        newest = torch.arange(self.used, end, device=own.device)
        rows = memory.make_room("slots", self.room)
        rows[: self.count] = newest
        if self.room > self.count:
            rows[self.count : self.room] = 0
        newest = newest if padding is None else newest.masked_fill(padding, NOWHERE)
        self._fill(own[:, self.positions :], newest.unsqueeze(1))
        self.used, self.positions = end, self.positions + 1
        memory.own_length.fill_(self.positions)

    def write(self, layer: int, key_value: Tensor) -> None:
        self.memory.keys_values[layer].index_copy_(0, self.memory.slots[: self.room], key_value)

    def own(self, layer: int) -> Keys:
        memory = self.memory
        return Keys(memory.keys_values[layer], memory.own[: self.room], memory.own_length)

    def of_source(self, layer: int) -> Keys | None:
        memory = self.memory
        if self.places is None:
            return None
        return Keys(memory.source[:, layer], memory.source_places[: self.room], memory.source_length)

    def reorder(self, rows: Tensor) -> None:
        slots = self.memory.own[:, : self.positions][rows]
        self.sentence = self.sentence[rows]
        self._set_rows(rows.numel())
        self._fill(self.memory.make_room("own", self.room, _places(self.positions)), slots)
        self._place_source()


def _places(count: int) -> int:
    return -(-count // PLACES) * PLACES


def _length(index: Tensor) -> Tensor:
    return torch.tensor([index.size(1)], dtype=torch.int32)
