"""``pyseq-generate``: translate a binarised (or raw) data set and score the result.

    pyseq-generate DATA --path checkpoints/checkpoint_best.pt --beam 5 --remove-bpe

Prints, for each sentence, S- (source), T- (reference) and for each of --nbest hypotheses H- (score and text), D- (the
same, detokenised) and P- (score of each token); scores are logarithms to base 2. The order is that of the batches.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import torch

from pyseq import utils
from pyseq.cli.evaluation import build_generator, device_of, hypothesis_text, load_models, text_codecs
from pyseq.cli.options import read_options
from pyseq.cli.run import run
from pyseq.config.config import Config
from pyseq.config.parser import get_generation_parser
from pyseq.data.post_process import post_process
from pyseq.errors import ConfigError
from pyseq.generation.generator import SequenceGenerator
from pyseq.generation.text import HypothesisText
from pyseq.generation.workers import in_order, replicas
from pyseq.metrics import StopwatchMeter, TimeMeter
from pyseq.scoring import build_scorer
from pyseq.tasks import Task, setup_task
from pyseq.training.progress import progress_bar

logger = logging.getLogger("pyseq.generate")

DEFAULT_MAX_TOKENS = 12000


def main(argv: Sequence[str] | None = None) -> Any:
    """Run ``pyseq-generate`` with ``argv`` (default: the process's own arguments).

    Returns:
        The scorer, with all sentences added.

    Raises:
        UserError: something in the options, the data or a checkpoint is wrong.
    """
    options = read_options(get_generation_parser, argv)
    if options is None:
        return None
    cfg, _ = options
    return generate(cfg)


def generate(cfg: Config) -> Any:
    """Translate ``cfg.dataset.gen_subset``, print, and return the scorer."""
    if cfg.generation.replace_unk is not None and str(cfg.dataset.dataset_impl) != "raw":
        raise ConfigError("--replace-unk needs the source as text: give --dataset-impl raw")
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        cfg.dataset.max_tokens = DEFAULT_MAX_TOKENS
    utils.set_all_seeds(cfg.common.seed)
    device = device_of(cfg)
    task = setup_task(cfg.task)
    models, saved = load_models(cfg, task, device)
    task.load_dataset(cfg.dataset.gen_subset, task_cfg=saved.task)
    generator = build_generator(cfg, task, models)
    _, decode = text_codecs(cfg, task)
    text = hypothesis_text(cfg, task, generator, decode)
    scorer = build_scorer(cfg.scoring, task.target_dictionary)
    progress = batches(cfg, task, models)
    with output_file(cfg) as output, loaded_objects_left_alone():
        printer = Printer(cfg, task, text, scorer, output)
        timer, words = StopwatchMeter(), TimeMeter()
        samples = (utils.move_to_device(sample, device) for sample in progress if "net_input" in sample)
        workers = make_workers(cfg, task, generator, models, device, len(progress))
        timer.start()
        for sample, hypotheses in in_order(samples, functools.partial(translate, cfg, task), workers):
            tokens = sum(len(found[0]["tokens"]) for found in hypotheses)
            timer.stop(tokens)
            timer.start()  # others are translated while these are printed
            printer.add(utils.move_to_cpu(sample), hypotheses)
            words.update(tokens)
            progress.log({"wps": round(words.avg)})
        tell_speed(timer, printer.sentences)
        printer.print_score()
    return scorer


def batches(cfg: Config, task: Any, models: list[Any]) -> Any:
    """The batches of the subset (this shard's share), with a progress bar."""
    iterator = task.get_batch_iterator(
        dataset=task.dataset(cfg.dataset.gen_subset),
        max_tokens=cfg.dataset.max_tokens,
        max_sentences=cfg.dataset.batch_size,
        max_positions=utils.resolve_max_positions(task.max_positions(), *[model.max_positions() for model in models]),
        ignore_invalid_inputs=cfg.dataset.skip_invalid_size_inputs_valid_test,
        required_batch_size_multiple=cfg.dataset.required_batch_size_multiple,
        seed=cfg.common.seed,
        num_shards=cfg.dataset.num_shards,
        shard_id=cfg.dataset.shard_id,
        num_workers=cfg.dataset.num_workers,
        data_buffer_size=cfg.dataset.data_buffer_size,
    ).next_epoch_itr(shuffle=False)
    return progress_bar(
        iterator,
        log_format=cfg.common.log_format,
        log_interval=cfg.common.log_interval,
        log_file=cfg.common.log_file,
        default_log_format="simple" if cfg.common.no_progress_bar else "tqdm",
    )


def make_workers(
    cfg: Config, task: Any, generator: Any, models: list[Any], device: torch.device, batches: int
) -> list[tuple[Any, list[Any]]]:
    """A generator with its models for each of --num-generation-workers.

    Raises:
        ConfigError: what was asked for cannot be.
    """
    count = cfg.generation.num_generation_workers
    draws = cfg.generation.retain_dropout  # one stream of random numbers, in the order of the batches
    alone = draws or cfg.common.compile or device.type != "cpu"  # what is compiled counts on a number of threads
    if count < 0 or (count > 1 and alone):
        raise ConfigError(
            f"--num-generation-workers {count}: it must not be negative, and with --retain-dropout, with --compile or "
            "on a GPU only 1 is possible"
        )
    if count == 0:
        count = torch.get_num_threads()
        alike = type(task).inference_step is Task.inference_step  # what another one keeps in the task is not known
        if alone or not alike or batches < 2 * count:
            count = 1
    if count > 1:
        logger.info("%d batches at a time, each on one thread", count)
        if isinstance(generator, SequenceGenerator):
            generator.prepare()
    return replicas(generator, models, count, task.source_dictionary, task.target_dictionary)


def translate(cfg: Config, task: Any, generator: Any, models: list[Any], sample: dict[str, Any]) -> Any:
    """The hypotheses of a batch."""
    return task.inference_step(
        generator, models, sample, prefix_tokens=prefix_of(cfg, sample), constraints=sample.get("constraints")
    )


def prefix_of(cfg: Config, sample: dict[str, Any]) -> Any:
    """The first --prefix-size tokens of the references, or None."""
    if cfg.generation.prefix_size <= 0:
        return None
    if sample.get("target") is None:
        raise ConfigError("--prefix-size takes the prefix from the references, and this data set has none")
    return sample["target"][:, : cfg.generation.prefix_size]


@contextlib.contextmanager
def output_file(cfg: Config) -> Iterator[TextIO]:
    """Standard output, or ``generate-SUBSET.txt`` in --results-path."""
    folder = cfg.common_eval.results_path
    if folder is None:
        yield sys.stdout
        return
    path = os.path.join(folder, f"generate-{cfg.dataset.gen_subset}.txt")
    os.makedirs(folder, exist_ok=True)
    logger.info("writing %s", path)
    with open(path, "w", buffering=1, encoding="utf-8") as file:
        yield file


@contextlib.contextmanager
def loaded_objects_left_alone() -> Iterator[None]:
    """Garbage collections inside look through what was made inside alone, not through all that was loaded before."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Printer:
    """Prints sentences with their hypotheses, and hands the best hypothesis of each to the scorer."""

    def __init__(self, cfg: Config, task: Any, text: HypothesisText, scorer: Any, output: TextIO) -> None:
        self.cfg, self.text, self.scorer, self.output = cfg, text, scorer, output
        self.src_dict, self.tgt_dict = task.source_dictionary, task.target_dictionary
        self.bpe_symbol = cfg.common_eval.post_process
        self.dataset = task.dataset(cfg.dataset.gen_subset)
        self.sentences = 0
        self.has_target = False

    def add(self, sample: dict[str, Any], hypotheses: list[Any]) -> None:
        """A batch and what was generated for it."""
        targets = sample.get("target")
        nbest = 1 if self.cfg.common_eval.quiet else self.cfg.generation.nbest
        for i, sample_id in enumerate(sample["id"].tolist()):
            found = utils.move_to_cpu(hypotheses[i][:nbest])
            source = sample["net_input"]["src_tokens"][i]
            target = None if targets is None else utils.strip_pad(targets[i], self.tgt_dict.pad())
            self.add_sentence(sample_id, source, target, found)
        self.sentences += len(sample["id"])

    def add_sentence(self, sample_id: int, source: Any, target: Any, found: list[Any]) -> None:
        words = []
        if self.text.replacements is not None:
            words = self.dataset.src.get_original_text(sample_id).split()
        if self.src_dict is not None:
            self.print(f"S-{sample_id}\t{self.source_text(source, words)}")
        reference = None
        if target is not None:
            reference = self.reference_text(sample_id, target)
            self.print(f"T-{sample_id}\t{reference}")
        for rank, hypothesis in enumerate(found):
            string = self.text.string(hypothesis, source, words)
            decoded = self.text.decode(string)
            for line in self.text.lines(sample_id, hypothesis, string, decoded):
                self.print(line)
            if rank == 0 and reference is not None:
                self.score(target, reference, hypothesis["tokens"], decoded)

    def print(self, line: str) -> None:
        if not self.cfg.common_eval.quiet:
            print(line, file=self.output)

    def source_text(self, source: Any, words: list[str]) -> str:
        if words:
            return post_process(" ".join(words), self.bpe_symbol)
        text: str = self.src_dict.string(utils.strip_pad(source, self.tgt_dict.pad()), self.bpe_symbol)
        return text

    def reference_text(self, sample_id: int, target: Any) -> str:
        if self.text.replacements is not None:
            return post_process(self.dataset.tgt.get_original_text(sample_id).strip(), self.bpe_symbol)
        text: str = self.tgt_dict.string(
            target, self.bpe_symbol, escape_unk=True, extra_symbols_to_ignore=self.text.ignore
        )
        return text

    def score(self, target: Any, reference: str, tokens: Any, decoded: str) -> None:
        """Count the best hypothesis: by token ids where these are the words of the text, else by the text."""
        self.has_target = True
        as_text = self.bpe_symbol is not None or self.text.replacements is not None
        if as_text or not hasattr(self.scorer, "add"):
            self.scorer.add_string(reference, decoded)
        else:
            self.scorer.add(target, tokens)

    def print_score(self) -> None:
        """The last line, where there are references."""
        if not self.has_target:
            return
        if self.cfg.bpe is not None and hasattr(self.scorer, "add"):
            logger.warning("the score is of words split at spaces: give --scoring sacrebleu for one of plain text")
        subset, beam = self.cfg.dataset.gen_subset, self.cfg.generation.beam
        line = f"Generate {subset} with beam={beam}: {self.scorer.result_string()}"
        print(line, file=self.output, flush=True)
        if self.output is not sys.stdout:
            print(line, flush=True)


def tell_speed(timer: StopwatchMeter, sentences: int) -> None:
    logger.info("NOTE: hypothesis and token scores are output in base 2")
    seconds = max(timer.sum, 1e-9)
    logger.info(
        f"Translated {sentences:,} sentences ({timer.n:,} tokens) in {timer.sum:.1f}s "
        f"({sentences / seconds:.2f} sentences/s, {timer.n / seconds:.2f} tokens/s)"
    )


def cli_main() -> None:
    run(main)


if __name__ == "__main__":
    cli_main()
