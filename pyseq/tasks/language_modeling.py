"""Language modelling: predict the next token of a text."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyseq import utils
from pyseq.config.group import II, ChoiceEnum, ConfigGroup
from pyseq.config.groups import opt
from pyseq.data import (
    AppendTokenDataset,
    Dictionary,
    IdDataset,
    LMContextWindowDataset,
    MonolingualDataset,
    NestedDictionaryDataset,
    NumelDataset,
    PadDataset,
    PrependTokenDataset,
    RandomCropDataset,
    StripTokenDataset,
    TokenBlockDataset,
    TruncateDataset,
    TruncatedDictionary,
    data_utils,
)
from pyseq.errors import ConfigError, DataError
from pyseq.tasks import register_task
from pyseq.tasks.task import Task

logger = logging.getLogger(__name__)


class SampleBreakMode(ChoiceEnum):
    none = "none"
    complete = "complete"
    complete_doc = "complete_doc"
    eos = "eos"


class ShortenMethod(ChoiceEnum):
    none = "none"
    truncate = "truncate"
    random_crop = "random_crop"


@dataclass
class LanguageModelingConfig(ConfigGroup):
    """Options of the language modelling task."""

    data: str | None = opt(None, "folder with the binarised data; several, separated by ':', are used one an epoch")
    sample_break_mode: SampleBreakMode = opt(
        SampleBreakMode.none,
        "none: blocks of --tokens-per-sample; complete: whole sentences up to that; complete_doc: the same, not across "
        "documents; eos: one sentence a sample",
    )
    tokens_per_sample: int = opt(1024, "most tokens in a sample")
    output_dictionary_size: int = opt(-1, "predict only the first N words of the dictionary (-1: all)")
    self_target: bool = opt(False, "predict the token itself")
    future_target: bool = opt(False, "predict the next token")
    past_target: bool = opt(False, "predict the previous token")
    add_bos_token: bool = opt(False, "begin each sample with <s>")
    max_target_positions: int | None = opt(None, "longest target, in tokens; default: --tokens-per-sample")
    shorten_method: ShortenMethod = opt(ShortenMethod.none, "what to do with sentences over --tokens-per-sample")
    shorten_data_split_list: str = opt("", "comma-separated splits to shorten; empty: all")
    pad_to_fixed_length: bool = opt(False, "pad every sample to --tokens-per-sample")
    pad_to_fixed_bsz: bool = opt(False, "pad every batch to --batch-size samples")
    seed: int = II("common.seed")
    batch_size: int | None = II("dataset.batch_size")
    batch_size_valid: int | None = II("dataset.batch_size_valid")
    dataset_impl: str | None = II("dataset.dataset_impl")
    data_buffer_size: int = II("dataset.data_buffer_size")


@register_task("language_modeling", dataclass=LanguageModelingConfig)
class LanguageModelingTask(Task):
    """Text in one dictionary.

    Args:
        cfg: its options.
        dictionary: the input's dictionary.
        output_dictionary: the predictions', a prefix of it; None for the same.
        targets: which of self, future and past are predicted.
    """

    cfg: LanguageModelingConfig

    def __init__(
        self,
        cfg: LanguageModelingConfig,
        dictionary: Dictionary,
        output_dictionary: Dictionary | None = None,
        targets: list[str] | None = None,
    ) -> None:
        super().__init__(cfg)
        self.dictionary, self.output_dictionary = dictionary, output_dictionary or dictionary
        self.targets = targets or ["future"]

    @classmethod
    def setup_task(cls, cfg: LanguageModelingConfig, **kwargs: Any) -> LanguageModelingTask:
        """Load the dictionary."""
        if not cfg.data:
            raise ConfigError("the language_modeling task needs the folder with the binarised data")
        folder = utils.split_paths(cfg.data)[0]
        if not os.path.isdir(folder):
            raise DataError(f"no such data folder: {folder}. Make it with pyseq-preprocess --only-source.")
        dictionary = Dictionary.load(os.path.join(folder, "dict.txt"))
        logger.info("dictionary: %d types", len(dictionary))
        output = dictionary
        if cfg.output_dictionary_size >= 0:
            output = TruncatedDictionary(dictionary, cfg.output_dictionary_size)
        wanted = {"self": cfg.self_target, "future": cfg.future_target, "past": cfg.past_target}
        return cls(cfg, dictionary, output, targets=[name for name, on in wanted.items() if on])

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        model = super().build_model(cfg, from_checkpoint)
        for target in self.targets:
            if target not in model.supported_targets:
                raise ConfigError(f"{type(model).__name__} does not predict '{target}' targets")
        return model

    def load_dataset(self, split: str, combine: bool = False, task_cfg: Any = None, epoch: int = 1, **kw: Any) -> None:
        cfg = self.cfg
        paths = utils.split_paths(cfg.data or "")
        path = os.path.join(paths[(epoch - 1) % len(paths)], split)
        sentences = data_utils.load_indexed_dataset(path, self.dictionary, cfg.dataset_impl, combine=combine)
        if sentences is None:
            raise DataError(
                f"no '{split}' data at {path} (.bin and .idx). Make it with pyseq-preprocess --only-source, "
                "or give the split it is called by."
            )
        sentences = self._shortened(sentences, split)
        mode = str(cfg.sample_break_mode)
        blocks = TokenBlockDataset(
            sentences,
            sentences.sizes,
            cfg.tokens_per_sample,
            pad=self.dictionary.pad(),
            eos=self.dictionary.eos(),
            break_mode=mode,
            include_targets=True,
        )
        batch_size = cfg.batch_size_valid if "valid" in split else cfg.batch_size
        self.datasets[split] = MonolingualDataset(
            dataset=blocks,
            sizes=blocks.sizes,
            src_vocab=self.dictionary,
            tgt_vocab=self.output_dictionary,
            add_eos_for_other_targets=mode != "none",
            shuffle=True,
            targets=self.targets,
            add_bos_token=cfg.add_bos_token,
            fixed_pad_length=cfg.tokens_per_sample if cfg.pad_to_fixed_length else None,
            pad_to_bsz=batch_size if cfg.pad_to_fixed_bsz else None,
        )

    def _shortened(self, sentences: Any, split: str) -> Any:
        cfg, method = self.cfg, str(self.cfg.shorten_method)
        splits = cfg.shorten_data_split_list.split(",") if cfg.shorten_data_split_list else []
        if method == "none" or (splits and split not in splits):
            return sentences
        if method == "truncate":
            return TruncateDataset(sentences, cfg.tokens_per_sample)
        return RandomCropDataset(sentences, cfg.tokens_per_sample, cfg.seed)

    def build_dataset_for_inference(
        self, src_tokens: list[Tensor], src_lengths: list[int], **kwargs: Any
    ) -> NestedDictionaryDataset:
        """Prompts to be continued: each starts with eos (or bos), and its own eos is taken off."""
        pad, eos = self.source_dictionary.pad(), self.source_dictionary.eos()
        blocks = TokenBlockDataset(src_tokens, src_lengths, block_size=None, pad=pad, eos=eos, break_mode="eos")
        text = StripTokenDataset(blocks, eos)
        source = PrependTokenDataset(text, self._first_token())
        target = AppendTokenDataset(text, pad)
        return NestedDictionaryDataset(
            {
                "id": IdDataset(),
                "net_input": {
                    "src_tokens": PadDataset(source, pad_idx=pad, left_pad=False),
                    "src_lengths": NumelDataset(source, reduce=False),
                },
                "target": PadDataset(target, pad_idx=pad, left_pad=False),
            },
            sizes=[np.array(src_lengths)],
        )

    def _first_token(self) -> int:
        dictionary = self.source_dictionary
        return int(dictionary.bos() if self.cfg.add_bos_token else dictionary.eos())

    def inference_step(
        self, generator: Any, models: list[Any], sample: Any, prefix_tokens: Any = None, constraints: Any = None
    ) -> Any:
        with torch.no_grad():
            first = self._first_token()
            if prefix_tokens is None and sample["net_input"]["src_tokens"].nelement():
                prefix_tokens = sample["net_input"]["src_tokens"]
                if bool(prefix_tokens[:, 0].eq(first).all()):
                    prefix_tokens = prefix_tokens[:, 1:]
            return generator.generate(
                models, sample, prefix_tokens=prefix_tokens, constraints=constraints, bos_token=first
            )

    def eval_lm_dataloader(
        self,
        dataset: Any,
        max_tokens: int | None = 36000,
        batch_size: int | None = None,
        max_positions: int | None = None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 1,
        data_buffer_size: int = 10,
        context_window: int = 0,
    ) -> Any:
        """Batches for scoring, in corpus order; with ``context_window`` each block sees that many tokens before it."""
        if context_window > 0:
            dataset = LMContextWindowDataset(
                dataset=dataset,
                tokens_per_sample=self.cfg.tokens_per_sample,
                context_window=context_window,
                pad_idx=self.source_dictionary.pad(),
            )
        return self.get_batch_iterator(
            dataset=dataset,
            max_tokens=max_tokens,
            max_sentences=batch_size,
            max_positions=max_positions,
            ignore_invalid_inputs=True,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            data_buffer_size=data_buffer_size,
        ).next_epoch_itr(shuffle=False)

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.output_dictionary
