"""``pyseq-interactive``: translate lines of text as they come.

    echo "a little dog" | pyseq-interactive DATA --path checkpoints/checkpoint_best.pt --beam 5 --remove-bpe

Prints, for each line, S- (source as the model saw it), W- (seconds) and for each of --nbest hypotheses H-, D- and P-,
in the order of the input. See pyseq-generate for what they are.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from pyseq import utils
from pyseq.cli.evaluation import build_generator, device_of, hypothesis_text, load_models, text_codecs
from pyseq.cli.options import read_options
from pyseq.cli.run import run
from pyseq.config.config import Config
from pyseq.config.parser import get_generation_parser
from pyseq.errors import ConfigError, DataError
from pyseq.generation.beams import Hypothesis
from pyseq.generation.text import HypothesisText
from pyseq.tasks import setup_task

logger = logging.getLogger("pyseq.interactive")


class Translation(NamedTuple):
    """A line of the buffer, translated."""

    number: int  # in the buffer
    source: Tensor  # as the model saw it, padding included
    hypotheses: list[Hypothesis]
    seconds: float


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``pyseq-interactive`` with ``argv`` (default: the process's own arguments).

    Raises:
        UserError: something in the options, the input or a checkpoint is wrong.
    """
    options = read_options(functools.partial(get_generation_parser, interactive=True), argv)
    if options is None:
        return
    cfg, _ = options
    check(cfg)
    start = time.perf_counter()
    translator = Translator(cfg)
    if cfg.interactive.buffer_size > 1:
        logger.info("Sentence buffer size: %s", cfg.interactive.buffer_size)
    logger.info("NOTE: hypothesis and token scores are output in base 2")
    logger.info("Type the input sentence and press return:")
    first = 0
    for lines in buffered_lines(cfg.interactive.input, cfg.interactive.buffer_size):
        translator.print(first, lines)
        first += len(lines)
    logger.info("Total time: %.3f seconds; translation time: %.3f", time.perf_counter() - start, translator.seconds)


def check(cfg: Config) -> None:
    """Fill in the defaults of this command, and raise ConfigError for what it cannot do."""
    cfg.interactive.buffer_size = max(cfg.interactive.buffer_size, 1)
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        cfg.dataset.batch_size = 1
    if (cfg.dataset.batch_size or 0) > cfg.interactive.buffer_size:
        raise ConfigError(
            f"--batch-size {cfg.dataset.batch_size} is larger than --buffer-size {cfg.interactive.buffer_size}"
        )
    if cfg.generation.score_reference or cfg.generation.prefix_size > 0:
        raise ConfigError("--score-reference and --prefix-size need references: use pyseq-generate")


def buffered_lines(path: str, size: int) -> Iterator[list[str]]:
    """The lines of a file (``-``: standard input), ``size`` at a time. Raises DataError if it cannot be read."""
    buffer: list[str] = []
    try:
        with contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8") as file:
            for line in file:
                buffer.append(line.strip())
                if len(buffer) >= size:
                    yield buffer
                    buffer = []
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None
    except FileNotFoundError:
        raise DataError(f"--input: no such file: {path}") from None
    if buffer:
        yield buffer


class Translator:
    """A model with all that turns text into its input and its output into text.

    Attributes:
        seconds: time spent translating so far.
    """

    def __init__(self, cfg: Config) -> None:
        utils.set_all_seeds(cfg.common.seed)
        self.cfg, self.device = cfg, device_of(cfg)
        self.task = setup_task(cfg.task)
        self.models, _ = load_models(cfg, self.task, self.device)
        self.generator = build_generator(cfg, self.task, self.models)
        self.encode: Callable[[str], str]
        self.encode, decode = text_codecs(cfg, self.task)
        self.text: HypothesisText = hypothesis_text(cfg, self.task, self.generator, decode)
        self.max_positions = utils.resolve_max_positions(
            self.task.max_positions(), *[model.max_positions() for model in self.models]
        )
        self.seconds = 0.0

    def batches(self, lines: list[str]) -> Any:
        tokens, lengths = self.task.get_interactive_tokens_and_lengths(lines, self.encode)
        return self.task.get_batch_iterator(
            dataset=self.task.build_dataset_for_inference(tokens, lengths),
            max_tokens=self.cfg.dataset.max_tokens,
            max_sentences=self.cfg.dataset.batch_size,
            max_positions=self.max_positions,
            ignore_invalid_inputs=self.cfg.dataset.skip_invalid_size_inputs_valid_test,
        ).next_epoch_itr(shuffle=False)

    def translate(self, lines: list[str]) -> list[Translation]:
        """Translate lines, in batches by length; the result is in the order of ``lines``."""
        translations = []
        for batch in self.batches(lines):
            net_input = {name: batch["net_input"][name] for name in ("src_tokens", "src_lengths")}
            sample = utils.move_to_device({"net_input": net_input}, self.device)
            start = time.perf_counter()
            found = self.task.inference_step(self.generator, self.models, sample)
            seconds = time.perf_counter() - start
            self.seconds += seconds
            rows = zip(batch["id"].tolist(), net_input["src_tokens"], found)
            translations += [Translation(*row, seconds / len(found)) for row in rows]
        return sorted(translations, key=lambda translation: translation.number)

    def print(self, first: int, lines: list[str]) -> None:
        """Translate and print ``lines``, the first of which has number ``first``."""
        src_dict, bpe_symbol = self.task.source_dictionary, self.cfg.common_eval.post_process
        for number, source, hypotheses, seconds in self.translate(lines):
            sample_id = first + number
            if src_dict is not None:
                print(f"S-{sample_id}\t{src_dict.string(utils.strip_pad(source, src_dict.pad()), bpe_symbol)}")
                print(f"W-{sample_id}\t{seconds:.3f}\tseconds")
            words = self.encode(lines[number]).split() if self.text.replacements is not None else []
            for hypothesis in utils.move_to_cpu(hypotheses[: self.cfg.generation.nbest]):
                string = self.text.string(hypothesis, source, words)
                for line in self.text.lines(sample_id, hypothesis, string, self.text.decode(string)):
                    print(line)
        sys.stdout.flush()


def cli_main() -> None:
    run(main)


if __name__ == "__main__":
    cli_main()
