"""What the commands that run a trained model have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from pyseq import utils
from pyseq.cli.compiling import compile_for_inference
from pyseq.config.config import Config
from pyseq.config.flags import literal_dict
from pyseq.errors import ConfigError
from pyseq.generation.generator_with_alignment import SequenceGeneratorWithAlignment
from pyseq.generation.text import HypothesisText, load_replacements
from pyseq.training.allocator import keep_freed_memory
from pyseq.training.checkpoint import load_model_ensemble

logger = logging.getLogger(__name__)


def device_of(cfg: Config) -> torch.device:
    """The GPU if there is one and --cpu is not given, else the CPU."""
    if cfg.common.cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", cfg.distributed_training.device_id)


def load_models(cfg: Config, task: Any, device: torch.device) -> tuple[list[Any], Config]:
    """The ensemble that --path names, ready for inference, and the options of its first checkpoint.

    Raises:
        ConfigError: no --path, --model-overrides is no dict or has an unknown option, or --compile has no compiler.
        CheckpointError: a checkpoint is missing, damaged, or does not fit the task.
    """
    if not cfg.common_eval.path:
        raise ConfigError("--path is required: the checkpoint, or several separated by ':'")
    try:
        overrides = literal_dict(cfg.common_eval.model_overrides)
    except (ValueError, SyntaxError):
        raise ConfigError(
            f"--model-overrides is not a dict like '{{\"dropout\": 0}}': {cfg.common_eval.model_overrides}"
        ) from None
    keep_freed_memory()
    logger.info("loading model(s) from %s", cfg.common_eval.path)
    models, saved = load_model_ensemble(
        utils.split_paths(cfg.common_eval.path),
        task=task,
        arg_overrides=overrides,
        suffix=cfg.checkpoint.checkpoint_suffix,
        unsafe=cfg.checkpoint.unsafe_load,
    )
    for model in models:
        if cfg.common.bf16:
            model.to(torch.bfloat16)
        model.to(device)
        model.prepare_for_inference_(cfg)
    if cfg.common.compile:
        compile_for_inference(models)
    parameters = utils.count_parameters(p for model in models for p in model.parameters())
    logger.info("%d model(s), %s parameters, %s on %s", len(models), f"{parameters:,}", dtype_name(models[0]), device)
    return models, saved


def dtype_name(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def build_generator(cfg: Config, task: Any, models: list[Any]) -> Any:
    """The task's generator, with attention and alignments where the options ask for them."""
    generation = cfg.generation
    options: dict[str, Any] = {"cuda_graphs": True} if cfg.common.cuda_graphs else {}
    if generation.score_reference:
        if generation.replace_unk is not None:
            raise ConfigError("--replace-unk changes what is generated, and --score-reference generates nothing")
        return task.build_generator(models, generation)
    if generation.print_alignment is not None:
        options["print_alignment"] = str(generation.print_alignment)
        return task.build_generator(
            models, generation, seq_gen_cls=SequenceGeneratorWithAlignment, extra_gen_cls_kwargs=options
        )
    if generation.replace_unk is not None:
        options["need_attention"] = True
    return task.build_generator(models, generation, extra_gen_cls_kwargs=options or None)


def text_codecs(cfg: Config, task: Any) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """``encode`` (plain text to tokens and subwords) and ``decode``, by --tokenizer and --bpe."""
    tokenizer, bpe = task.build_tokenizer(cfg.tokenizer), task.build_bpe(cfg.bpe)

    def encode(text: str) -> str:
        text = text if tokenizer is None else tokenizer.encode(text)
        return text if bpe is None else bpe.encode(text)

    def decode(text: str) -> str:
        text = text if bpe is None else bpe.decode(text)
        return text if tokenizer is None else tokenizer.decode(text)

    return encode, decode


def hypothesis_text(cfg: Config, task: Any, generator: Any, decode: Callable[[str], str]) -> HypothesisText:
    """How hypotheses are written out."""
    return HypothesisText(
        task.target_dictionary,
        bpe_symbol=cfg.common_eval.post_process,
        ignore=symbols_to_strip(generator),
        decode=decode,
        replacements=load_replacements(cfg.generation.replace_unk),
        print_alignment=cfg.generation.print_alignment is not None,
        print_step=cfg.generation.print_step,
    )


def symbols_to_strip(generator: Any) -> set[int]:
    symbols: set[int] | None = getattr(generator, "symbols_to_strip_from_output", None)
    return {generator.eos} if symbols is None else symbols
