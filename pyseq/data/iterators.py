"""The batches of an epoch: their order, their shards, and where a run stands in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pyseq.data.batch_loader import BatchFetcher, BatchLoader, BufferedIterator
from pyseq.data.counting_iterator import CountingIterator, GroupedIterator, ShardedIterator
from pyseq.errors import CheckpointError, ConfigError, DataError

__all__ = ["BufferedIterator", "CountingIterator", "EpochBatchIterator", "GroupedIterator", "ShardedIterator"]

MOST_BUFFERED = 20


class EpochBatchIterator:
    """The batches of a dataset, epoch after epoch, in an order that follows from the seed and the epoch.

    Args:
        dataset: samples by index, and ``set_epoch``.
        collate_fn: makes a batch of samples, ``dataset.collater`` as a rule.
        batch_sampler: the indices of each batch, the same in every epoch; or a function of (dataset, epoch) that makes
            them anew for each epoch.
        seed: the batches of epoch e are shuffled by numpy's legacy generator of seed + e.
        num_shards, shard_id: this is one of so many readers, each of which gets every ``num_shards``-th batch. Shards
            are equally long: those that lack a batch get an empty one.
        num_workers: processes that make batches; 0: none.
        epoch: the first epoch, counted from 1.
        buffer_size: batches made ahead, at most 20; without workers by a thread.
        timeout: seconds to wait for a worker; 0: for ever.
        disable_shuffling: batches always come as they are.
        skip_remainder_batch: leave out the last batch of each epoch.
        grouped_shuffling: shuffle groups of ``num_shards`` batches: what the shards read at one time stays together.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any],
        batch_sampler: Iterable[Sequence[int]] | Callable[[Any, int], Iterable[Sequence[int]]],
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        buffer_size: int = 0,
        timeout: int = 0,
        disable_shuffling: bool = False,
        skip_remainder_batch: bool = False,
        grouped_shuffling: bool = False,
    ) -> None:
        if not 0 <= shard_id < num_shards:
            raise ConfigError(f"--shard-id must be between 0 and --num-shards - 1 = {num_shards - 1}, not {shard_id}")
        self.dataset, self.collate_fn, self.batch_sampler = dataset, collate_fn, batch_sampler
        self.seed, self.num_shards, self.shard_id = seed, num_shards, shard_id
        self.num_workers, self.timeout = num_workers, timeout
        self.buffer_size = min(buffer_size, MOST_BUFFERED)
        self.epoch = max(epoch, 1)
        self.disable_shuffling = disable_shuffling
        self.shuffle = not disable_shuffling
        self.skip_remainder_batch, self.grouped_shuffling = skip_remainder_batch, grouped_shuffling
        self._frozen_batches = None if callable(batch_sampler) else tuple(batch_sampler)
        self._current: CountingIterator | None = None
        self._loaded: CountingIterator | None = None

    @property
    def frozen_batches(self) -> tuple[Sequence[int], ...]:
        """The indices of each batch, of all shards, before they are shuffled."""
        if self._frozen_batches is None:
            assert callable(self.batch_sampler)
            self._frozen_batches = tuple(self.batch_sampler(self.dataset, self.epoch))
        return self._frozen_batches

    @property
    def first_batch(self) -> Any:
        """The first of :attr:`frozen_batches`, collated, or "DUMMY" if samples can only be read by workers.

        Raises:
            DataError: there are no batches.
        """
        if not self.frozen_batches:
            raise DataError(
                "The dataset is empty. This could indicate that all its samples have been skipped as too long: raise "
                "--max-tokens or the --max-*-positions, or use a larger dataset."
            )
        if not getattr(self.dataset, "supports_fetch_outside_dataloader", True):
            return "DUMMY"
        return BatchFetcher(self.dataset, self.collate_fn)[self.frozen_batches[0]]

    def __len__(self) -> int:
        """Batches of this shard in an epoch."""
        return math.ceil(len(self.frozen_batches) / self.num_shards)

    @property
    def n(self) -> int:
        """Batches of this shard that were consumed in this epoch."""
        return self.iterations_in_epoch

    @property
    def iterations_in_epoch(self) -> int:
        iterator = self._loaded if self._current is None else self._current
        return 0 if iterator is None else iterator.n

    @property
    def next_epoch_idx(self) -> int:
        """The epoch that :meth:`next_epoch_itr` is going to give: the next one only if this one is used up."""
        return self.epoch + 1 if self._loaded is None and self.end_of_epoch() else self.epoch

    def end_of_epoch(self) -> bool:
        """Whether all batches of the epoch were consumed."""
        return self._current is not None and not self._current.has_next()

    def next_epoch_itr(
        self, shuffle: bool = True, fix_batches_to_gpus: bool = False, set_dataset_epoch: bool = True
    ) -> CountingIterator:
        """The batches of the next epoch; after :meth:`load_state_dict` what remains of the epoch that was saved.

        Args:
            shuffle: shuffle the batches.
            fix_batches_to_gpus: each shard shuffles batches that stay its own. Has an effect only if the dataset
                prefetches.
            set_dataset_epoch: tell the dataset of a new epoch.
        """
        shuffle = shuffle and not self.disable_shuffling
        before, self.epoch = self.epoch, self.next_epoch_idx
        if self.epoch != before:
            self._begin_epoch(set_dataset_epoch)
        if self._loaded is not None:
            self._current, self._loaded = self._loaded, None
        else:
            batches = self._batches_of_shard(shuffle, fix_batches_to_gpus)
            self._current = self._iterate(batches, offset=0)
            self.shuffle = shuffle
        return self._current

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands; at the end of an epoch, at the beginning of the next."""
        end = self.end_of_epoch()
        return {
            "version": 2,
            "epoch": self.epoch + 1 if end else self.epoch,
            "iterations_in_epoch": 0 if end else self.iterations_in_epoch,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run stood: :meth:`next_epoch_itr` gives what it had not consumed of its epoch.

        Raises:
            CheckpointError: the epoch has no batches left at that place.
        """
        before, self.epoch = self.epoch, state_dict["epoch"]
        self._current = self._loaded = None
        if self.epoch != before:
            self._begin_epoch(set_dataset_epoch=True)
        self.shuffle = state_dict.get("shuffle", True)
        consumed = state_dict.get("iterations_in_epoch", 0)
        if consumed == 0:
            return
        batches = self._batches_of_shard(self.shuffle, fix_batches_to_gpus=False)
        if consumed < len(batches):
            self._loaded = self._iterate(batches, consumed)
        elif state_dict.get("version", 1) == 1:
            # The first version did not distinguish the end of an epoch from the beginning of the next.
            self.epoch += 1
            self._begin_epoch(set_dataset_epoch=True)
        else:
            raise CheckpointError(
                f"The checkpoint was made after {consumed} batches of epoch {self.epoch}, but with these data and "
                f"flags the epoch has {len(batches)}. Give the flags of that run (--max-tokens, --batch-size, number "
                "of devices, data), or start at the beginning of an epoch with --reset-dataloader."
            )

    def _begin_epoch(self, set_dataset_epoch: bool) -> None:
        if set_dataset_epoch and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)
        if callable(self.batch_sampler):
            self._frozen_batches = None

    def _batches_of_shard(self, shuffle: bool, fix_batches_to_gpus: bool) -> list[Sequence[int]]:
        """The batches of this epoch and shard, in order."""
        prefetches = getattr(self.dataset, "supports_prefetch", False)
        seed = self.seed + self.epoch
        stay_in_shard = fix_batches_to_gpus and prefetches
        batches: Sequence[Sequence[int]] = self.frozen_batches
        if shuffle and not stay_in_shard:
            batches = shuffled(batches, seed, self.num_shards if self.grouped_shuffling else 1)
        shard = list(ShardedIterator(batches, self.num_shards, self.shard_id, fill_value=[]))
        if prefetches:
            self.dataset.prefetch([index for batch in shard for index in batch])
        if shuffle and stay_in_shard:
            shard = shuffled(shard, seed + self.shard_id)
        return shard[:-1] if self.skip_remainder_batch else shard

    def _iterate(self, batches: list[Sequence[int]], offset: int) -> CountingIterator:
        """An iterator over the collated ``batches[offset:]``."""
        loader: Any = BatchLoader(
            self.dataset,
            self.collate_fn,
            batches[offset:],
            self.num_workers,
            self.buffer_size,
            self.timeout,
            self.seed + self.epoch,
        )
        if self.num_workers == 0 and self.buffer_size > 0:
            loader = BufferedIterator(self.buffer_size, loader)
        return CountingIterator(loader, start=offset, total=len(batches))


def shuffled(batches: Sequence[Any], seed: int, group: int = 1) -> list[Any]:
    """``batches`` in random order, by numpy's legacy generator.

    Args:
        group: batches that stay together, in their order; fewer that are left over at the end stay there.
    """
    groups = np.arange(len(batches) // group)
    np.random.RandomState(seed).shuffle(groups)
    order = (groups[:, None] * group + np.arange(group)).ravel().tolist()
    return [batches[i] for i in [*order, *range(len(order), len(batches))]]
