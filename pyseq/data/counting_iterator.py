"""Iterators that know how far they are: alone, in groups, in shards."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

from pyseq.errors import ConfigError


class CountingIterator:
    """An iterator that knows how far it is.

    Args:
        iterable: has a length, unless ``total`` is given.
        start: items that were consumed before the first of ``iterable``; by default what ``iterable`` says of itself.
        total: number of items in all, those before ``start`` included.

    Attributes:
        n: items consumed, those before ``start`` included.
        total: see above.
        wait_seconds: time spent in waiting for items.

    Raises:
        IndexError: on iteration, if ``iterable`` ends before ``total``.
    """

    def __init__(self, iterable: Any, start: int | None = None, total: int | None = None) -> None:
        self._itr = iter(iterable)
        self.n: int = start if start else getattr(iterable, "n", 0)
        self.total: int = self.n + len(iterable) if total is None else total
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> CountingIterator:
        return self

    def __next__(self) -> Any:
        if not self.has_next():
            raise StopIteration
        begin = time.perf_counter()
        try:
            item = next(self._itr)
        except StopIteration:
            raise IndexError(
                f"Iterator expected to have length {self.total}, but exhausted at position {self.n}."
            ) from None
        finally:
            self.wait_seconds += time.perf_counter() - begin
        self.n += 1
        return item

    def has_next(self) -> bool:
        """Whether there are items left."""
        return self.n < self.total

    def skip(self, n: int) -> CountingIterator:
        """Consume ``n`` items."""
        for _ in range(n):
            next(self)
        return self

    def take(self, n: int) -> CountingIterator:
        """End after ``n`` items in all."""
        self.total = min(self.total, n)
        if hasattr(self._itr, "take"):
            self._itr.take(getattr(self._itr, "n", 0) + max(n - self.n, 0))
        return self


class GroupedIterator(CountingIterator):
    """Lists of ``chunk_size`` items: the micro-batches of an update. The last list may be shorter.

    Args:
        skip_remainder_batch: leave out a shorter last list; ``iterable`` then ends before it too.
    """

    def __init__(self, iterable: Any, chunk_size: int, skip_remainder_batch: bool = False) -> None:
        consumed = getattr(iterable, "n", 0)
        before, left = math.ceil(consumed / chunk_size), len(iterable) - consumed
        whole, rest = divmod(left, chunk_size)
        if skip_remainder_batch and rest:
            iterable.take(consumed + whole * chunk_size)
        total = before + whole + (0 if skip_remainder_batch else min(rest, 1))
        super().__init__(chunks(iterable, chunk_size), start=before, total=total)
        self.chunk_size = chunk_size


def chunks(iterable: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(iterable)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


class ShardedIterator(CountingIterator):
    """Every ``num_shards``-th item, from ``shard_id`` on. All shards are equally long: ``fill_value`` fills them up.

    Raises:
        ConfigError: there is no such shard.
    """

    def __init__(self, iterable: Any, num_shards: int, shard_id: int, fill_value: Any = None) -> None:
        if not 0 <= shard_id < num_shards:
            raise ConfigError(f"shard_id must be between 0 and num_shards - 1 = {num_shards - 1}, not {shard_id}")
        length = math.ceil(len(iterable) / num_shards)
        items = itertools.islice(iterable, shard_id, len(iterable), num_shards)
        padded = itertools.islice(itertools.chain(items, itertools.repeat(fill_value)), length)
        super().__init__(padded, start=math.ceil(getattr(iterable, "n", 0) / num_shards), total=length)
