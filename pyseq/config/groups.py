"""The option groups that every command shares. Names and defaults are fairseq's."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any

from pyseq.config.group import II, SECTIONS, ChoiceEnum, ConfigGroup


class LogFormat(ChoiceEnum):
    json = "json"
    none = "none"
    simple = "simple"
    tqdm = "tqdm"


class DatasetImpl(ChoiceEnum):
    raw = "raw"
    lazy = "lazy"
    cached = "cached"
    mmap = "mmap"


class PostProcess(ChoiceEnum):
    sentencepiece = "sentencepiece"
    wordpiece = "wordpiece"
    letter = "letter"
    subword_nmt = "subword_nmt"
    at_at = "@@ "
    at_at_bare = "@@"
    none = "none"


def opt(default: Any, help: str, **metadata: Any) -> Any:
    """A field with a help text; mutable defaults are copied for each instance."""
    metadata["help"] = help
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


AUTO = "auto"


def tokens_or_auto(text: str) -> int | str:
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: '{text}' (or '{AUTO}')") from None


@dataclass
class CommonConfig(ConfigGroup):
    """Logging, precision, device, plug-ins."""

    no_progress_bar: bool = opt(False, "do not draw a progress bar (same as --log-format simple)")
    log_interval: int = opt(100, "log progress every N updates")
    log_format: LogFormat | None = opt(None, "how progress is printed; default: tqdm on a terminal, else simple")
    log_file: str | None = opt(None, "also append the log to this file")
    tensorboard_logdir: str | None = opt(None, "write TensorBoard event files below this folder")
    seed: int = opt(1, "seed of every random draw: batch order, initial weights, dropout")
    cpu: bool = opt(False, "train on the CPU even if a GPU is there")
    bf16: bool = opt(False, "bfloat16 parameters and arithmetic with fp32 master weights; CPU and GPU")
    compile: bool = opt(
        False, "run the model through torch.compile, once for batches of all shapes; padding is computed then"
    )
    cuda_graphs: bool = opt(
        False,
        "on a GPU, record CUDA graphs and replay them: of the gradients' norm and Adam's update; in a search, of the "
        "steps of a plain Transformer decoder",
    )
    user_dir: str | None = opt(None, "a Python package (or file) with your plug-ins, imported before anything is built")
    profile: bool = opt(
        False, "write a trace of a few updates to --save-dir, and print where the time went, by part and by operator"
    )
    profile_updates: str = opt(
        "10-14", "updates to trace with --profile, counted from the start of this process; as many before are timed"
    )
    empty_cache_freq: int = opt(0, "empty the CUDA caching allocator every N updates (0: never)")


@dataclass
class DistributedConfig(ConfigGroup):
    """Where the process stands among others. Launch with torchrun; its environment fills these in."""

    distributed_world_size: int = opt(1, "number of processes; read from torchrun's environment when it is set")
    distributed_rank: int = opt(0, "rank of this process; read from torchrun's environment when it is set")
    distributed_backend: str | None = opt(None, "torch.distributed back end; default: nccl on GPUs, gloo on CPUs")
    device_id: int = opt(0, "GPU of this process; read from $LOCAL_RANK when it is set", argparse_alias="--local_rank")


@dataclass
class DatasetConfig(ConfigGroup):
    """Batches and subsets."""

    num_workers: int = opt(1, "processes that load and collate data (0: in the training process)")
    skip_invalid_size_inputs_valid_test: bool = opt(False, "skip over-long samples in validation and test subsets")
    max_tokens: int | None = opt(  # AUTO, too, until the trainer has settled on a number
        None,
        "most tokens in a batch, padding included unless --packed; auto: try growing numbers, and train with the best "
        "that fits",
        parse=tokens_or_auto,
        metavar="N|auto",
    )
    packed: bool = opt(
        False, "train without padding: --max-tokens counts the real tokens of a training or validation batch"
    )
    batch_size: int | None = opt(None, "most sentences in a batch", argparse_alias="--max-sentences")
    required_batch_size_multiple: int = opt(8, "batch sizes are below this or a multiple of it")
    required_seq_len_multiple: int = opt(1, "pad sequence lengths to a multiple of this")
    dataset_impl: DatasetImpl | None = opt(None, "format of the binarised data; default: found from the files")
    data_buffer_size: int = opt(10, "batches to load ahead")
    train_subset: str = opt("train", "subset to train on (train, valid, test)")
    valid_subset: str = opt("valid", "comma-separated subsets to validate on")
    combine_valid_subsets: bool | None = opt(
        None, "validate on all of valid, valid1, ... as one subset", argparse_alias="--combine-val"
    )
    ignore_unused_valid_subsets: bool = opt(False, "do not complain about valid1, valid2, ... that are not listed")
    validate_interval: int = opt(1, "validate every N epochs")
    validate_interval_updates: int = opt(0, "validate every N updates (0: only by epochs)")
    validate_after_updates: int = opt(0, "do not validate before this many updates")
    fixed_validation_seed: int | None = opt(None, "seed to set before every validation")
    disable_validation: bool = opt(False, "never validate")
    max_tokens_valid: int | None = opt(
        II("dataset.max_tokens"), "most tokens in a validation batch; default: --max-tokens"
    )
    batch_size_valid: int | None = opt(
        II("dataset.batch_size"),
        "most sentences in a validation batch; default: --batch-size",
        argparse_alias="--max-sentences-valid",
    )
    max_valid_steps: int | None = opt(None, "stop a validation after this many batches", argparse_alias="--nval")
    curriculum: int = opt(0, "do not shuffle batches for the first N epochs")
    gen_subset: str = opt("test", "subset to generate (train, valid, test)")
    num_shards: int = opt(1, "split generation over N shards")
    shard_id: int = opt(0, "which shard to generate (from 0)")
    grouped_shuffling: bool = opt(False, "shuffle batches in groups of the world size, so that ranks get like shapes")
    update_epoch_batch_itr: bool = opt(
        II("dataset.grouped_shuffling"), "rebuild the batches every epoch instead of keeping the first epoch's"
    )
    update_ordered_indices_seed: bool = opt(False, "draw the sample order anew every epoch")


@dataclass
class OptimizationConfig(ConfigGroup):
    """Updates: how many, from how much data, clipped how, at what learning rate."""

    max_epoch: int = opt(0, "stop after this epoch (0: no limit)")
    max_update: int = opt(0, "stop after this many updates (0: no limit)")
    stop_time_hours: float = opt(0.0, "stop after this many hours in all, earlier runs of the same job included")
    clip_norm: float = opt(0.0, "clip the gradient norm to this (0: do not clip)")
    sentence_avg: bool = opt(False, "average gradients over sentences instead of tokens")
    update_freq: list[int] = opt([1], "batches accumulated for an update; a list gives one value an epoch")
    lr: list[float] = opt([0.25], "learning rate; a list gives one value an epoch where the schedule takes one")
    stop_min_lr: float = opt(-1.0, "stop when the learning rate falls to this")
    skip_remainder_batch: bool = opt(False, "drop an epoch's last group if it has fewer than --update-freq batches")


@dataclass
class CheckpointConfig(ConfigGroup):
    """What is saved, when, and what a run starts from."""

    save_dir: str = opt("checkpoints", "folder of the checkpoints and of metrics.jsonl")
    restore_file: str = opt("checkpoint_last.pt", "checkpoint to resume from, if any (in --save-dir, or a path)")
    continue_once: str | None = opt(None, "resume from this checkpoint, unless --save-dir has checkpoint_last.pt")
    finetune_from_model: str | None = opt(
        None, "start from this checkpoint's weights only, unless --save-dir has checkpoint_last.pt"
    )
    reset_dataloader: bool = opt(False, "on resuming, begin a new epoch sequence")
    reset_lr_scheduler: bool = opt(False, "on resuming, do not load the schedule's state")
    reset_meters: bool = opt(False, "on resuming, do not load the metrics")
    reset_optimizer: bool = opt(False, "on resuming, do not load the optimizer's state")
    optimizer_overrides: str = opt("{}", "a dict of optimizer settings to change on resuming")
    save_interval: int = opt(1, "save every N epochs")
    save_interval_updates: int = opt(0, "save (and validate) every N updates as well (0: only by epochs)")
    keep_interval_updates: int = opt(-1, "keep the last N checkpoints of --save-interval-updates (-1: all)")
    keep_interval_updates_pattern: int = opt(-1, "never remove a checkpoint whose update is a multiple of this")
    keep_last_epochs: int = opt(-1, "keep the last N epoch checkpoints (-1: all)")
    keep_best_checkpoints: int = opt(-1, "keep the N best checkpoints by the metric (-1: only checkpoint_best.pt)")
    no_save: bool = opt(False, "save nothing")
    no_epoch_checkpoints: bool = opt(False, "save only checkpoint_last.pt and checkpoint_best.pt")
    no_last_checkpoints: bool = opt(False, "do not save checkpoint_last.pt")
    no_save_optimizer_state: bool = opt(False, "leave the optimizer's state out of checkpoints")
    best_checkpoint_metric: str = opt("loss", "validation metric that decides which checkpoint is best")
    maximize_best_checkpoint_metric: bool = opt(False, "the metric is better when larger")
    patience: int = opt(-1, "stop after N validations without improvement (-1: never)")
    checkpoint_suffix: str = opt("", "added to the names of checkpoint files")
    write_checkpoints_asynchronously: bool = opt(
        False, "accepted, without effect: it is the default", argparse_alias="--save-async"
    )
    write_checkpoints_synchronously: bool = opt(
        False,
        "let training wait for the file. Otherwise a checkpoint is copied in memory (12 bytes a parameter with adam) "
        "and written while training goes on",
        argparse_alias="--save-sync",
    )
    unsafe_load: bool = opt(
        False, "load a checkpoint with pickle when the safe loader refuses it; runs code that the file contains"
    )


@dataclass
class CommonEvalConfig(ConfigGroup):
    """What is evaluated, and how output is written."""

    path: str | None = opt(None, "checkpoint; several, separated by ':', form an ensemble")
    post_process: str | None = opt(
        None,
        "undo a subword segmentation in the output; alone: subword_nmt",
        argparse_const="subword_nmt",
        argparse_alias="--remove-bpe",
        choices=[choice.value for choice in PostProcess],
    )
    quiet: bool = opt(False, "print only the final score")
    model_overrides: str = opt("{}", "a dict of model options to change on loading")
    results_path: str | None = opt(None, "write generate-SUBSET.txt below this folder instead of standard output")


class PrintAlignment(ChoiceEnum):
    hard = "hard"
    soft = "soft"


@dataclass
class GenerationConfig(ConfigGroup):
    """Beam search."""

    beam: int = opt(5, "beam size")
    nbest: int = opt(1, "hypotheses to print for each sentence")
    max_len_a: float = opt(0.0, "hypotheses have at most a * source length + b tokens: a")
    max_len_b: int = opt(200, "hypotheses have at most a * source length + b tokens: b")
    min_len: int = opt(1, "least length of a hypothesis, end of sentence not counted")
    unnormalized: bool = opt(False, "compare hypotheses by their total score, not by score per token")
    lenpen: float = opt(1.0, "length penalty: below 1 favours short, above 1 long hypotheses")
    unkpen: float = opt(0.0, "penalty on <unk>: below 0 more, above 0 fewer unknowns")
    replace_unk: str | None = opt(
        None, "replace <unk> by the aligned source word, or by its translation in this file", argparse_const="@@ "
    )
    score_reference: bool = opt(False, "score the reference instead of generating")
    prefix_size: int = opt(0, "force the first N target tokens of the reference")
    no_repeat_ngram_size: int = opt(0, "no n-gram of this size twice in a hypothesis")
    temperature: float = opt(1.0, "divide logits by this")
    print_alignment: PrintAlignment | None = opt(
        None, "print the attention as an alignment; alone: hard", argparse_const="hard"
    )
    print_step: bool = opt(False, "print the number of steps of each hypothesis")
    retain_dropout: bool = opt(False, "keep dropout on while generating")
    retain_dropout_modules: list[str] | None = opt(None, "only these modules keep dropout (comma-separated names)")
    num_generation_workers: int = opt(
        0,
        "pyseq-generate on a CPU: batches that are translated at the same time, each by one thread; hypotheses and "
        "their order are the same for any number. 0: as many as there are threads, if there are two batches for each",
    )


@dataclass
class EvalLMConfig(ConfigGroup):
    """Scoring text with a language model."""

    output_word_probs: bool = opt(False, "print each word with its log probability")
    output_word_stats: bool = opt(False, "print statistics for each word of the vocabulary")
    context_window: int = opt(0, "tokens of the block before that each block sees as context")
    softmax_batch: int = opt(sys.maxsize, "most rows of logits held at once")


@dataclass
class InteractiveConfig(ConfigGroup):
    """Translating text as it comes."""

    buffer_size: int = opt(0, "read this many lines into a buffer before translating them")
    input: str = opt("-", "file to read from; - is standard input")


SECTIONS.update(
    {
        "common": CommonConfig,
        "common_eval": CommonEvalConfig,
        "distributed_training": DistributedConfig,
        "dataset": DatasetConfig,
        "optimization": OptimizationConfig,
        "checkpoint": CheckpointConfig,
        "generation": GenerationConfig,
        "eval_lm": EvalLMConfig,
        "interactive": InteractiveConfig,
    }
)
