"""The base of every task."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyseq import metrics
from pyseq.criterions import build_criterion
from pyseq.data import Dictionary, data_utils, iterators
from pyseq.data.dataset import Dataset
from pyseq.data.encoders import build_bpe, build_tokenizer
from pyseq.errors import ConfigError
from pyseq.generation.generator import SequenceGenerator
from pyseq.generation.generator_with_alignment import SequenceGeneratorWithAlignment
from pyseq.generation.search import BeamSearch
from pyseq.generation.sequence_scorer import SequenceScorer
from pyseq.models import build_model
from pyseq.registry import Optioned


class State(dict[str, Any]):
    """Values that a task computes once and keeps in checkpoints, made on first use by a factory."""

    def __init__(self) -> None:
        super().__init__()
        self._factories: dict[str, Callable[[], Any]] = {}

    def add_factory(self, name: str, factory: Callable[[], Any]) -> None:
        self._factories[name] = factory

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self and name in self._factories:
            self[name] = self._factories[name]()
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the task has no state '{name}'") from None


class Task(Optioned):
    """Loads data, builds the model and the criterion, and says what a training and a validation step are.

    Attributes:
        cfg: the task's config node.
        datasets: split name -> dataset, filled by :meth:`load_dataset`.
        state: values kept in checkpoints (:class:`State`).
    """

    def __init__(self, cfg: Any = None, **kwargs: Any) -> None:
        self.cfg = cfg
        self.datasets: dict[str, Any] = {}
        self.dataset_to_epoch_iter: dict[int, Any] = {}
        self.state = State()

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> Task:
        """Build the task; override it to load dictionaries first."""
        return cls(cfg, **kwargs)

    @staticmethod
    def logging_outputs_can_be_summed(criterion: Any) -> bool:
        return bool(criterion.logging_outputs_can_be_summed())

    # Dictionaries and data.

    @classmethod
    def load_dictionary(cls, filename: str) -> Dictionary:
        return Dictionary.load(filename)

    @classmethod
    def build_dictionary(
        cls, filenames: list[str], workers: int = 1, threshold: int = -1, nwords: int = -1, padding_factor: int = 8
    ) -> Dictionary:
        """Count the words of text files into a dictionary."""
        dictionary = Dictionary()
        for filename in filenames:
            Dictionary.add_file_to_dictionary(filename, dictionary, str.split, workers)
        dictionary.finalize(threshold=threshold, nwords=nwords, padding_factor=padding_factor)
        return dictionary

    @property
    def source_dictionary(self) -> Any:
        return None

    @property
    def target_dictionary(self) -> Any:
        return None

    def has_sharded_data(self, split: str) -> bool:
        """Whether ``data`` lists several folders, one an epoch."""
        return os.pathsep in getattr(self.cfg, "data", "")

    def load_dataset(self, split: str, combine: bool = False, task_cfg: Any = None, **kwargs: Any) -> None:
        """Put the dataset of ``split`` into ``self.datasets``."""
        raise NotImplementedError

    def dataset(self, split: str) -> Any:
        if split not in self.datasets:
            raise KeyError("Dataset not loaded: " + split)
        if not isinstance(self.datasets[split], Dataset):
            raise TypeError(f"the dataset of '{split}' must extend {Dataset.__module__}.{Dataset.__name__}")
        return self.datasets[split]

    def max_positions(self) -> Any:
        """Longest input: a number, a tuple of them, or None."""
        return None

    def filter_indices_by_size(
        self, indices: Any, dataset: Any, max_positions: Any = None, ignore_invalid_inputs: bool = False
    ) -> Any:
        """Drop samples longer than ``max_positions``, or raise DataError for them."""
        return data_utils.filter_by_size(indices, dataset, max_positions, raise_exception=not ignore_invalid_inputs)

    def can_reuse_epoch_itr(self, dataset: Any) -> bool:
        return bool(getattr(dataset, "can_reuse_epoch_itr_across_epochs", False))

    def get_batch_iterator(
        self,
        dataset: Any,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        max_positions: Any = None,
        ignore_invalid_inputs: bool = False,
        required_batch_size_multiple: int = 1,
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        disable_iterator_cache: bool = False,
        skip_remainder_batch: bool = False,
        grouped_shuffling: bool = False,
        update_epoch_batch_itr: bool = False,
    ) -> iterators.EpochBatchIterator:
        """Batches of ``dataset``, in an order that depends on ``seed`` alone.

        Args:
            max_tokens, max_sentences: budget of a batch; None is no limit.
            max_positions: longest sample, see :meth:`filter_indices_by_size`.
            num_shards, shard_id: this rank's share.
            num_workers: processes that load and collate; 0 is this one.
        """
        reuse = not (disable_iterator_cache or update_epoch_batch_itr) and self.can_reuse_epoch_itr(dataset)
        if reuse and id(dataset) in self.dataset_to_epoch_iter:
            return self.dataset_to_epoch_iter[id(dataset)]
        dataset.set_epoch(epoch)
        # Batches that serve every epoch are those of a run that began at epoch 1, whatever epoch it is resumed at.
        with data_utils.numpy_seed(seed + (1 if reuse and not self.has_sharded_data("train") else epoch)):
            indices = dataset.ordered_indices()
        if max_positions is not None:
            indices = self.filter_indices_by_size(indices, dataset, max_positions, ignore_invalid_inputs)
        batches = dataset.batch_by_size(
            indices,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=required_batch_size_multiple,
        )
        iterator = iterators.EpochBatchIterator(
            dataset=dataset,
            collate_fn=dataset.collater,
            batch_sampler=batches,
            seed=seed,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=data_buffer_size,
            skip_remainder_batch=skip_remainder_batch,
            grouped_shuffling=grouped_shuffling,
        )
        if reuse:
            self.dataset_to_epoch_iter[id(dataset)] = iterator
        return iterator

    # Model, criterion, generator.

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        return build_model(cfg, self)

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        return build_criterion(cfg, self)

    def build_tokenizer(self, args: Any) -> Any:
        return build_tokenizer(args)

    def build_bpe(self, args: Any) -> Any:
        return build_bpe(args)

    def build_generator(
        self,
        models: list[Any],
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        """The object whose ``generate(models, sample)`` translates (or, with ``score_reference``, scores) a batch.

        Args:
            args: generation options, by fairseq's names; what is missing takes its default.
        """
        if getattr(args, "score_reference", False):
            return SequenceScorer(
                self.target_dictionary, compute_alignment=getattr(args, "print_alignment", None) is not None
            )
        if prefix_allowed_tokens_fn is not None:
            raise ConfigError("prefix-constrained search is not carried yet")
        options = dict(extra_gen_cls_kwargs or {})
        if seq_gen_cls is None and getattr(args, "print_alignment", None) is not None:
            seq_gen_cls = SequenceGeneratorWithAlignment
            options.setdefault("print_alignment", str(args.print_alignment))
        if getattr(args, "cuda_graphs", False):  # only then: plug-in generators may not know it
            options.setdefault("cuda_graphs", True)
        return (seq_gen_cls or SequenceGenerator)(
            models,
            self.target_dictionary,
            beam_size=getattr(args, "beam", 5),
            max_len_a=getattr(args, "max_len_a", 0),
            max_len_b=getattr(args, "max_len_b", 200),
            min_len=getattr(args, "min_len", 1),
            normalize_scores=not getattr(args, "unnormalized", False),
            len_penalty=getattr(args, "lenpen", 1),
            unk_penalty=getattr(args, "unkpen", 0),
            temperature=getattr(args, "temperature", 1.0),
            no_repeat_ngram_size=getattr(args, "no_repeat_ngram_size", 0),
            search_strategy=BeamSearch(self.target_dictionary),
            **options,
        )

    # Steps.

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        """Forward, loss and backward of one micro-batch.

        Returns:
            The loss, the sample size (denominator of the gradient), and the logging output.
        """
        model.train()
        model.set_num_updates(update_num)
        loss, sample_size, logging_output = criterion(model, sample)
        if ignore_grad:
            loss = loss * 0
        optimizer.backward(loss)
        return loss, sample_size, logging_output

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> tuple[Tensor, Any, dict[str, Any]]:
        """Loss, sample size and logging output of one batch, without gradients."""
        model.eval()
        with torch.no_grad():
            loss, sample_size, logging_output = criterion(model, sample)
        return loss, sample_size, logging_output

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        optimizer.step()

    def inference_step(
        self, generator: Any, models: list[Any], sample: Any, prefix_tokens: Any = None, constraints: Any = None
    ) -> Any:
        # Not inference_mode: what a model caches here (positions, masks) is used again in training by --eval-bleu.
        with torch.no_grad():
            return generator.generate(models, sample, prefix_tokens=prefix_tokens, constraints=constraints)

    def build_dataset_for_inference(self, src_tokens: list[Tensor], src_lengths: list[int], **kwargs: Any) -> Any:
        raise NotImplementedError

    def get_interactive_tokens_and_lengths(
        self, lines: list[str], encode_fn: Callable[[str], str]
    ) -> tuple[list[Tensor], list[int]]:
        tokens = [self.source_dictionary.encode_line(encode_fn(line), add_if_not_exist=False).long() for line in lines]
        return tokens, [t.numel() for t in tokens]

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """Called before each training epoch."""

    def begin_valid_epoch(self, epoch: int | None, model: Any) -> None:
        """Called before each validation."""

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log what the micro-batches of an update (all ranks') came to."""
        if not any("ntokens" in log for log in logging_outputs):
            warnings.warn("ntokens not found in the criterion's logging outputs: no wpb and wps", stacklevel=2)
        else:
            ntokens = sum(log.get("ntokens", 0) for log in logging_outputs)
            metrics.log_scalar("wpb", ntokens, priority=180, round=1)
            metrics.log_speed("wps", ntokens, priority=90, round=1)
        if any("nsentences" in log for log in logging_outputs):
            nsentences = sum(log.get("nsentences", 0) for log in logging_outputs)
            metrics.log_scalar("bsz", nsentences, priority=190, round=1)
        type(criterion).reduce_metrics(logging_outputs)

    # State.

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state.update(state_dict)


class LegacyTask(Task):
    """A task without a dataclass: its options are the flat namespace, ``self.args``."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(None)
        self.args = args

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> Task:
        return cls(cfg, **kwargs)

    def has_sharded_data(self, split: str) -> bool:
        return os.pathsep in getattr(self.args, "data", "")
