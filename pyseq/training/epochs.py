"""The training data, epoch by epoch, with the state that lets a run go on in mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyseq.config.config import Config
from pyseq.data import iterators
from pyseq.data.batching import token_budget
from pyseq.training import distributed
from pyseq.utils import resolve_max_positions


@dataclass
class Epoch:
    """One pass over the training data. ``updates`` yields lists of ``--update-freq`` micro-batches, once."""

    number: int
    iterator: Any  # EpochBatchIterator
    updates: iterators.GroupedIterator

    def at_end(self) -> bool:
        """Whether every batch of the epoch has been used."""
        return not self.updates.has_next()


class Epochs:
    """Iterates over the epochs that are left; the first may begin in its middle."""

    def __init__(self, cfg: Config, task: Any, model: Any) -> None:
        self.cfg, self.task, self.model = cfg, task, model
        self.iterator = self.batch_iterator(1)

    def batch_iterator(self, epoch: int) -> Any:
        """The epoch's batches, this rank's share of them."""
        dataset_cfg, subset = self.cfg.dataset, self.cfg.dataset.train_subset
        if subset not in self.task.datasets or self.task.has_sharded_data("train"):
            self.task.load_dataset(subset, epoch=epoch, combine=True)
        return self.task.get_batch_iterator(
            dataset=self.task.dataset(subset),
            max_tokens=token_budget(dataset_cfg.max_tokens, dataset_cfg.packed),
            max_sentences=dataset_cfg.batch_size,
            max_positions=resolve_max_positions(
                self.task.max_positions(), self.model.max_positions(), dataset_cfg.max_tokens
            ),
            ignore_invalid_inputs=True,
            required_batch_size_multiple=dataset_cfg.required_batch_size_multiple,
            seed=self.cfg.common.seed,
            num_shards=distributed.world_size(),
            shard_id=distributed.rank(),
            num_workers=dataset_cfg.num_workers,
            epoch=epoch,
            data_buffer_size=dataset_cfg.data_buffer_size,
            disable_iterator_cache=dataset_cfg.update_epoch_batch_itr,
            skip_remainder_batch=self.cfg.optimization.skip_remainder_batch,
            grouped_shuffling=dataset_cfg.grouped_shuffling,
            update_epoch_batch_itr=dataset_cfg.update_epoch_batch_itr,
        )

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.iterator.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state`` was saved."""
        if state.get("epoch", 1) != self.iterator.epoch:
            self.iterator = self.batch_iterator(state["epoch"])
        self.iterator.load_state_dict(state)

    def __iter__(self) -> Iterator[Epoch]:
        optimization = self.cfg.optimization
        while not optimization.max_epoch or self.iterator.next_epoch_idx <= optimization.max_epoch:
            number = self.iterator.next_epoch_idx
            batches = self.iterator.next_epoch_itr(shuffle=number > self.cfg.dataset.curriculum)
            frequencies = optimization.update_freq
            update_freq = frequencies[min(number, len(frequencies)) - 1]
            updates = iterators.GroupedIterator(
                batches, update_freq, skip_remainder_batch=optimization.skip_remainder_batch
            )
            yield Epoch(number, self.iterator, updates)
            self.iterator = self.batch_iterator(self.iterator.next_epoch_idx)
