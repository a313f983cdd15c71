"""Translation from one language to another."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pyseq import metrics, utils
from pyseq.config.flags import literal_dict
from pyseq.config.group import II, ConfigGroup
from pyseq.config.groups import opt
from pyseq.data import (
    AppendTokenDataset,
    ConcatDataset,
    Dictionary,
    LanguagePairDataset,
    StripTokenDataset,
    TruncateDataset,
    data_utils,
)
from pyseq.data.dataset_impl import dataset_exists
from pyseq.data.encoders import build_tokenizer
from pyseq.errors import ConfigError, DataError
from pyseq.tasks import register_task
from pyseq.tasks.task import Task

logger = logging.getLogger(__name__)

EVAL_BLEU_ORDER = 4


@dataclass
class TranslationConfig(ConfigGroup):
    """Options of the translation task."""

    data: str | None = opt(None, "folder with the binarised data; several, separated by ':', are used one an epoch")
    source_lang: str | None = opt(None, "source language", argparse_alias="-s")
    target_lang: str | None = opt(None, "target language", argparse_alias="-t")
    load_alignments: bool = opt(False, "load the binarised alignments")
    left_pad_source: bool = opt(True, "pad the source on the right instead of the left")
    left_pad_target: bool = opt(False, "pad the target on the left")
    max_source_positions: int = opt(1024, "longest source sentence, in tokens")
    max_target_positions: int = opt(1024, "longest target sentence, in tokens")
    upsample_primary: int = opt(-1, "repeat the first of several training sets this often")
    truncate_source: bool = opt(False, "cut source sentences to --max-source-positions")
    num_batch_buckets: int = opt(0, "pad lengths up to this many buckets, so that few shapes occur")
    train_subset: str = II("dataset.train_subset")
    dataset_impl: str | None = II("dataset.dataset_impl")
    required_seq_len_multiple: int = II("dataset.required_seq_len_multiple")
    eval_bleu: bool = opt(False, "translate the validation set and report BLEU")
    eval_bleu_args: str | None = opt("{}", "generation options for --eval-bleu, as a dict: '{\"beam\": 4}'")
    eval_bleu_detok: str = opt("space", "tokenizer that joins words before BLEU; space leaves them as they are")
    eval_bleu_detok_args: str | None = opt("{}", "options of that tokenizer, as a dict")
    eval_tokenized_bleu: bool = opt(False, "compute BLEU on the tokens as they are")
    eval_bleu_remove_bpe: str | None = opt(None, "undo BPE before BLEU; alone: '@@ '", argparse_const="@@ ")
    eval_bleu_print_samples: bool = opt(False, "log a sample translation at each validation")


def load_langpair_dataset(
    data_path: str,
    split: str,
    src: str,
    src_dict: Dictionary,
    tgt: str,
    tgt_dict: Dictionary,
    combine: bool,
    dataset_impl: str | None,
    upsample_primary: int,
    left_pad_source: bool,
    left_pad_target: bool,
    max_source_positions: int,
    max_target_positions: int,
    prepend_bos: bool = False,
    load_alignments: bool = False,
    truncate_source: bool = False,
    append_source_id: bool = False,
    num_buckets: int = 0,
    shuffle: bool = True,
    pad_to_multiple: int = 1,
    prepend_bos_src: int | None = None,
) -> LanguagePairDataset:
    """Read the pairs of ``split``; with ``combine`` also of ``split1``, ``split2``, ... as one dataset.

    Raises:
        DataError: no such data, or source and target differ in length.
    """
    if prepend_bos or append_source_id or prepend_bos_src is not None:
        raise ConfigError("prepend_bos and append_source_id are not carried yet")
    limit = max_source_positions if truncate_source else None
    sources, targets = load_sides(data_path, split, src, src_dict, tgt, tgt_dict, combine, dataset_impl, limit)
    source = joined(sources, upsample_primary)
    target = joined(targets, upsample_primary) if targets else None
    if target is not None and len(source) != len(target):
        raise DataError(f"{data_path}: '{split}' has {len(source)} source and {len(target)} target sentences")
    align_path = os.path.join(data_path, f"{split}.align.{src}-{tgt}")
    alignments = data_utils.load_indexed_dataset(align_path, None, dataset_impl) if load_alignments else None
    return LanguagePairDataset(
        source,
        source.sizes,
        src_dict,
        target,
        None if target is None else target.sizes,
        tgt_dict,
        left_pad_source=left_pad_source,
        left_pad_target=left_pad_target,
        align_dataset=alignments,
        num_buckets=num_buckets,
        shuffle=shuffle,
        pad_to_multiple=pad_to_multiple,
    )


def load_sides(
    data_path: str,
    split: str,
    src: str,
    src_dict: Dictionary,
    tgt: str,
    tgt_dict: Dictionary,
    combine: bool,
    dataset_impl: str | None,
    truncate_source_to: int | None,
) -> tuple[list[Any], list[Any]]:
    """The source and the target side of ``split`` and, with ``combine``, of ``split1``, ``split2``, ... if they exist.

    Raises:
        DataError: there is no ``split``, or only some of its parts have a target side.
    """
    sources: list[Any] = []
    targets: list[Any] = []
    for part, prefix in parts_of(data_path, split, src, tgt, combine, dataset_impl):
        source = data_utils.load_indexed_dataset(prefix + src, src_dict, dataset_impl)
        if truncate_source_to is not None:
            shortened = TruncateDataset(StripTokenDataset(source, src_dict.eos()), truncate_source_to - 1)
            source = AppendTokenDataset(shortened, src_dict.eos())
        sources.append(source)
        target = data_utils.load_indexed_dataset(prefix + tgt, tgt_dict, dataset_impl)
        if target is not None:
            targets.append(target)
        logger.info("%s %s %s-%s %d examples", data_path, part, src, tgt, len(source))
    if not sources:
        raise DataError(
            f"no '{split}' data for {src}-{tgt} in {data_path}: expected {split}.{src}-{tgt}.{src}.bin. "
            "Make it with pyseq-preprocess, or give the split it is called by."
        )
    if targets and len(sources) != len(targets):
        raise DataError(f"{data_path}: some of the '{split}' sets have a target side, others do not")
    return sources, targets


def parts_of(
    data_path: str, split: str, src: str, tgt: str, combine: bool, dataset_impl: str | None
) -> Iterator[tuple[str, str]]:
    """The name and the path up to the language of ``split`` and, with ``combine``, of ``split1``, ``split2``, ..."""
    for k in itertools.count() if combine else range(1):
        part = f"{split}{k or ''}"
        prefix = pair_prefix(data_path, part, src, tgt, dataset_impl)
        if prefix is None:
            return
        yield part, prefix


def joined(datasets: list[Any], upsample_first: int) -> Any:
    """One dataset of several, the first repeated ``upsample_first`` times (once if that is 0 or less)."""
    if len(datasets) == 1:
        return datasets[0]
    return ConcatDataset(datasets, [max(upsample_first, 1)] + [1] * (len(datasets) - 1))


def pair_prefix(data_path: str, split: str, src: str, tgt: str, impl: str | None) -> str | None:
    """The path of ``split`` up to the language, in whichever direction it was binarised."""
    for pair in (f"{src}-{tgt}", f"{tgt}-{src}"):
        prefix = os.path.join(data_path, f"{split}.{pair}.")
        if dataset_exists(prefix + src, impl):
            return prefix
    return None


@register_task("translation", dataclass=TranslationConfig)
class TranslationTask(Task):
    """Source and target sentences, one dictionary each.

    Args:
        cfg: its options.
        src_dict, tgt_dict: dictionaries of the two languages.
    """

    cfg: TranslationConfig

    def __init__(self, cfg: TranslationConfig, src_dict: Dictionary, tgt_dict: Dictionary) -> None:
        super().__init__(cfg)
        self.src_dict, self.tgt_dict = src_dict, tgt_dict

    @classmethod
    def setup_task(cls, cfg: TranslationConfig, **kwargs: Any) -> TranslationTask:
        """Find the languages and load their dictionaries."""
        if not cfg.data:
            raise ConfigError("the translation task needs the folder with the binarised data")
        folder = utils.split_paths(cfg.data)[0]
        if not os.path.isdir(folder):
            raise DataError(f"no such data folder: {folder}. Make it with pyseq-preprocess.")
        if cfg.source_lang is None or cfg.target_lang is None:
            found = data_utils.infer_language_pair(folder)
            if cfg.source_lang == found[1] or cfg.target_lang == found[0]:
                found = found[::-1]
            cfg.source_lang, cfg.target_lang = cfg.source_lang or found[0], cfg.target_lang or found[1]
        if cfg.source_lang is None or cfg.target_lang is None:
            raise ConfigError(f"could not tell the languages from the files in {folder}: give -s and -t")
        src_dict = cls.load_dictionary(os.path.join(folder, f"dict.{cfg.source_lang}.txt"))
        tgt_dict = cls.load_dictionary(os.path.join(folder, f"dict.{cfg.target_lang}.txt"))
        for side in ("pad", "eos", "unk"):
            if getattr(src_dict, side)() != getattr(tgt_dict, side)():
                raise DataError(f"{folder}: the two dictionaries number <{side}> differently")
        logger.info("[%s] dictionary: %d types", cfg.source_lang, len(src_dict))
        logger.info("[%s] dictionary: %d types", cfg.target_lang, len(tgt_dict))
        return cls(cfg, src_dict, tgt_dict)

    def load_dataset(self, split: str, combine: bool = False, task_cfg: Any = None, epoch: int = 1, **kw: Any) -> None:
        cfg = self.cfg
        paths = utils.split_paths(cfg.data or "")
        if split != cfg.train_subset:
            paths = paths[:1]
        assert cfg.source_lang is not None and cfg.target_lang is not None
        self.datasets[split] = load_langpair_dataset(
            paths[(epoch - 1) % len(paths)],
            split,
            cfg.source_lang,
            self.src_dict,
            cfg.target_lang,
            self.tgt_dict,
            combine=combine,
            dataset_impl=cfg.dataset_impl,
            upsample_primary=cfg.upsample_primary,
            left_pad_source=cfg.left_pad_source,
            left_pad_target=cfg.left_pad_target,
            max_source_positions=cfg.max_source_positions,
            max_target_positions=cfg.max_target_positions,
            load_alignments=cfg.load_alignments,
            truncate_source=cfg.truncate_source,
            num_buckets=cfg.num_batch_buckets,
            shuffle=split != "test",
            pad_to_multiple=cfg.required_seq_len_multiple or 1,
        )

    def build_dataset_for_inference(
        self, src_tokens: list[Tensor], src_lengths: list[int], constraints: Any = None, **kwargs: Any
    ) -> LanguagePairDataset:
        return LanguagePairDataset(
            src_tokens,
            src_lengths,
            self.source_dictionary,
            tgt_dict=self.target_dictionary,
            left_pad_source=self.cfg.left_pad_source,
            constraints=constraints,
        )

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.eval_bleu:
            self.tokenizer = build_tokenizer(
                argparse.Namespace(tokenizer=self.cfg.eval_bleu_detok, **literal_dict(self.cfg.eval_bleu_detok_args))
            )
            options = argparse.Namespace(**literal_dict(self.cfg.eval_bleu_args))
            self.sequence_generator = self.build_generator([model], options)
        return model

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> tuple[Tensor, Any, dict[str, Any]]:
        loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        if self.cfg.eval_bleu:
            bleu = self._inference_with_bleu(self.sequence_generator, sample, model)
            logging_output["_bleu_sys_len"], logging_output["_bleu_ref_len"] = bleu.sys_len, bleu.ref_len
            # Sums over batches (and ranks) give the corpus score; sentence scores would not.
            for i in range(EVAL_BLEU_ORDER):
                logging_output[f"_bleu_counts_{i}"] = bleu.counts[i]
                logging_output[f"_bleu_totals_{i}"] = bleu.totals[i]
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        if not self.cfg.eval_bleu:
            return

        def total(key: str) -> Any:
            return utils.item(sum(log.get(key, 0) for log in logging_outputs))

        counts = [total(f"_bleu_counts_{i}") for i in range(EVAL_BLEU_ORDER)]
        totals = [total(f"_bleu_totals_{i}") for i in range(EVAL_BLEU_ORDER)]
        if max(totals) > 0:
            metrics.log_scalar("_bleu_counts", np.array(counts))
            metrics.log_scalar("_bleu_totals", np.array(totals))
            metrics.log_scalar("_bleu_sys_len", total("_bleu_sys_len"))
            metrics.log_scalar("_bleu_ref_len", total("_bleu_ref_len"))
            metrics.log_derived("bleu", corpus_bleu)

    def _inference_with_bleu(self, generator: Any, sample: Any, model: Any) -> Any:
        import sacrebleu

        hypotheses, references = [], []
        for i, hypothesis in enumerate(self.inference_step(generator, [model], sample)):
            hypotheses.append(self._words(hypothesis[0]["tokens"], "UNKNOWNTOKENINHYP"))
            target = utils.strip_pad(sample["target"][i], self.tgt_dict.pad())
            references.append(self._words(target, "UNKNOWNTOKENINREF"))
        if self.cfg.eval_bleu_print_samples:
            logger.info("example hypothesis: %s", hypotheses[0])
            logger.info("example reference: %s", references[0])
        tokenize = "none" if self.cfg.eval_tokenized_bleu else "13a"
        return sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenize)

    def _words(self, tokens: Tensor, unknown: str) -> str:
        text = self.tgt_dict.string(tokens.int().cpu(), self.cfg.eval_bleu_remove_bpe, unk_string=unknown)
        decoded: str = self.tokenizer.decode(text) if self.tokenizer else text
        return decoded

    def max_positions(self) -> tuple[int, int]:
        return (self.cfg.max_source_positions, self.cfg.max_target_positions)

    @property
    def source_dictionary(self) -> Dictionary:
        return self.src_dict

    @property
    def target_dictionary(self) -> Dictionary:
        return self.tgt_dict


def corpus_bleu(meters: metrics.MetersDict) -> float:
    """BLEU from the summed n-gram counts of a validation."""
    from sacrebleu.metrics import BLEU

    sums = {key: meters[key].sum for key in ("_bleu_counts", "_bleu_totals", "_bleu_sys_len", "_bleu_ref_len")}  # type: ignore[attr-defined]
    bleu = BLEU.compute_bleu(
        correct=sums["_bleu_counts"].tolist(),
        total=sums["_bleu_totals"].tolist(),
        sys_len=int(sums["_bleu_sys_len"]),
        ref_len=int(sums["_bleu_ref_len"]),
        smooth_method="exp",
    )
    return round(bleu.score, 2)


__all__ = ["TranslationConfig", "TranslationTask", "load_langpair_dataset"]
