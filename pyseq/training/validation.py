"""Validation: the criterion over whole subsets, without gradients."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

from pyseq import metrics, utils
from pyseq.config.config import Config
from pyseq.data.batching import token_budget
from pyseq.training import distributed
from pyseq.training.progress import progress_bar
from pyseq.training.trainer import Trainer


def subset_batches(cfg: Config, task: Any, model: Any, subset: str) -> Any:
    """The batches of a validation subset, this rank's share of them, in order."""
    return task.get_batch_iterator(
        dataset=task.dataset(subset),
        max_tokens=token_budget(cfg.dataset.max_tokens_valid, cfg.dataset.packed),
        max_sentences=cfg.dataset.batch_size_valid,
        max_positions=utils.resolve_max_positions(task.max_positions(), model.max_positions()),
        ignore_invalid_inputs=cfg.dataset.skip_invalid_size_inputs_valid_test,
        required_batch_size_multiple=cfg.dataset.required_batch_size_multiple,
        seed=cfg.common.seed,
        num_shards=distributed.world_size(),
        shard_id=distributed.rank(),
        num_workers=cfg.dataset.num_workers,
        epoch=1,
        data_buffer_size=cfg.dataset.data_buffer_size,
        disable_iterator_cache=False,
    ).next_epoch_itr(shuffle=False, set_dataset_epoch=False)


def validate(trainer: Trainer, subset: str, epoch: int | None) -> OrderedDict[str, Any]:
    """The smoothed metrics of one subset. The training metrics are not touched."""
    cfg, task = trainer.cfg, trainer.task
    if cfg.dataset.fixed_validation_seed is not None:
        utils.set_torch_seed(cfg.dataset.fixed_validation_seed)
    task.begin_valid_epoch(epoch, trainer.model)
    batches = progress_bar(
        subset_batches(cfg, task, trainer.model, subset),
        log_format=cfg.common.log_format if distributed.is_master() else "none",
        log_interval=cfg.common.log_interval,
        epoch=epoch,
        prefix=f"valid on '{subset}' subset",
        default_log_format="simple" if cfg.common.no_progress_bar else "tqdm",
    )
    with metrics.aggregate(new_root=True) as aggregator:
        for sample in itertools.islice(batches, cfg.dataset.max_valid_steps):
            trainer.valid_step(sample)
    return aggregator.get_smoothed_values()
