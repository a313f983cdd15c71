"""``pyseq-eval-lm``: the perplexity of a text under a language model.

pyseq-eval-lm DATA --path checkpoints/checkpoint_best.pt --gen-subset test --context-window 400
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyseq import utils
from pyseq.cli.evaluation import device_of, load_models
from pyseq.cli.options import read_options
from pyseq.cli.run import run
from pyseq.config.config import Config
from pyseq.config.parser import get_eval_lm_parser
from pyseq.data.dictionary import Dictionary
from pyseq.errors import ConfigError, DataError
from pyseq.generation.beams import Hypothesis
from pyseq.generation.sequence_scorer import SequenceScorer
from pyseq.metrics import StopwatchMeter
from pyseq.tasks import setup_task
from pyseq.training.progress import progress_bar

logger = logging.getLogger("pyseq.eval_lm")

DEFAULT_MAX_TOKENS = 36000


def main(argv: Sequence[str] | None = None) -> dict[str, float] | None:
    """Run ``pyseq-eval-lm`` with ``argv`` (default: the process's own arguments).

    Returns:
        ``loss``, in bits a word, and ``perplexity``.

    Raises:
        UserError: something in the options, the data or a checkpoint is wrong.
    """
    options = read_options(get_eval_lm_parser, argv)
    if options is None:
        return None
    cfg, _ = options
    device = device_of(cfg)
    leave_room_for_context(cfg)
    task = setup_task(cfg.task)
    models, _ = load_models(cfg, task, device)
    task.load_dataset(cfg.dataset.gen_subset)
    dataset = task.dataset(cfg.dataset.gen_subset)
    logger.info("%s %s %s examples", cfg.task.data, cfg.dataset.gen_subset, f"{len(dataset):,}")
    results = eval_lm(
        models,
        task.source_dictionary,
        batches(cfg, task, models, dataset),
        post_process=cfg.common_eval.post_process,
        output_word_probs=cfg.eval_lm.output_word_probs,
        output_word_stats=cfg.eval_lm.output_word_stats,
        target_dictionary=task.target_dictionary,
        softmax_batch=cfg.eval_lm.softmax_batch,
        remove_bos_token=getattr(cfg.task, "add_bos_token", False),
        device=device,
    )
    logger.info(f"Loss (base 2): {results['loss']:.4f}, Perplexity: {results['perplexity']:.2f}")
    return results


def leave_room_for_context(cfg: Config) -> None:
    """Shorten blocks by --context-window, so that a block and its context are as long as --tokens-per-sample."""
    context = cfg.eval_lm.context_window
    if context <= 0:
        return
    if context >= cfg.task.tokens_per_sample:
        raise ConfigError(
            f"--context-window {context} leaves nothing of --tokens-per-sample {cfg.task.tokens_per_sample} to score"
        )
    cfg.task.tokens_per_sample -= context


def batches(cfg: Config, task: Any, models: list[Any], dataset: Any) -> Any:
    """The batches to score, in the order of the text, with a progress bar."""
    if not hasattr(task, "eval_lm_dataloader"):
        raise ConfigError(f"--task {cfg.task._name} does not evaluate language models: it has no eval_lm_dataloader")
    iterator = task.eval_lm_dataloader(
        dataset=dataset,
        max_tokens=cfg.dataset.max_tokens or DEFAULT_MAX_TOKENS,
        batch_size=cfg.dataset.batch_size,
        max_positions=utils.resolve_max_positions(*[model.max_positions() for model in models]),
        num_shards=cfg.dataset.num_shards,
        shard_id=cfg.dataset.shard_id,
        num_workers=cfg.dataset.num_workers,
        data_buffer_size=cfg.dataset.data_buffer_size,
        context_window=cfg.eval_lm.context_window,
    )
    return progress_bar(
        iterator,
        log_format=cfg.common.log_format,
        log_interval=cfg.common.log_interval,
        log_file=cfg.common.log_file,
        default_log_format="simple" if cfg.common.no_progress_bar else "tqdm",
    )


def eval_lm(
    models: list[Any],
    source_dictionary: Dictionary,
    batch_iterator: Iterable[dict[str, Any]],
    post_process: str | None = None,
    output_word_probs: bool = False,
    output_word_stats: bool = False,
    target_dictionary: Dictionary | None = None,
    softmax_batch: int = 0,
    remove_bos_token: bool = False,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Score the targets of batches.

    Args:
        models: the ensemble.
        source_dictionary: its words name the tokens.
        batch_iterator: batches as a language modelling task makes them.
        post_process: count words instead of subwords (``subword_nmt``, ``@@ `` or ``@@``). A word has the sum of its
            pieces' log-probabilities.
        output_word_probs: log each word with its log-probability.
        output_word_stats: log what each word of the vocabulary came to.
        target_dictionary: if not the source's.
        softmax_batch: most positions to normalise at once; 0: no limit.
        remove_bos_token: the first token of each sample is not counted.
        device: where the models are.

    Returns:
        ``loss``, the mean negative log-probability of a word to base 2, and ``perplexity``, 2 ** loss.

    Raises:
        ConfigError: ``post_process`` is of another kind.
        DataError: there is nothing to score.
    """
    target_dictionary = target_dictionary or source_dictionary
    device = device or next(models[0].parameters()).device
    scorer = SequenceScorer(target_dictionary, softmax_batch)
    tally = Tally(
        target_dictionary,
        Pieces(source_dictionary, post_process),
        remove_bos_token,
        output_word_probs,
        output_word_stats,
    )
    timer = StopwatchMeter()
    for sample in batch_iterator:
        if "net_input" not in sample:
            continue
        sample = utils.move_to_device(sample, device)
        timer.start()
        hypotheses = scorer.generate(models, sample)
        timer.stop(utils.item(sample["ntokens"]))
        for sample_id, (hypothesis,) in zip(sample["id"].tolist(), utils.move_to_cpu(hypotheses)):
            tally.add(sample_id, hypothesis)
    if tally.count == 0:
        raise DataError("there are no tokens to score")
    logger.info(f"Evaluated {timer.n:,} tokens in {timer.sum:.1f}s ({timer.n / max(timer.sum, 1e-9):.2f} tokens/s)")
    for stat in sorted(tally.stats.values(), key=lambda s: s.count, reverse=True):
        logger.info(stat)
    loss = -tally.total / tally.count / math.log(2)
    return {"loss": loss, "perplexity": math.inf if loss > 1000 else 2**loss}


class Tally:
    """Log-probabilities, summed over words.

    Attributes:
        total: of all words, in nats.
        count: of words.
        stats: what each word came to, if that is wanted.
    """

    def __init__(
        self, dictionary: Dictionary, pieces: Pieces, remove_bos_token: bool, print_words: bool, keep_stats: bool
    ) -> None:
        self.dictionary, self.pieces = dictionary, pieces
        self.first = int(remove_bos_token)
        self.print_words, self.keep_stats = print_words, keep_stats
        self.total, self.count = 0.0, 0
        self.stats: dict[str, WordStat] = {}

    def add(self, sample_id: int, hypothesis: Hypothesis) -> None:
        """Count a scored sample."""
        tokens = hypothesis["tokens"][self.first :]
        scores, joined = self.pieces.merge(tokens, hypothesis["positional_scores"][self.first :].float())
        possible = ~scores.isinf()
        if not bool(possible.all()):
            logger.info("skipping tokens with inf scores: %s", self.dictionary.string(tokens[~possible]))
        self.total += float(scores[possible].sum(dtype=torch.float64))
        self.count += int(possible.sum()) - joined
        if not (self.print_words or self.keep_stats):
            return
        words = list(self.pieces.words(tokens.tolist(), scores.tolist()))
        if self.print_words:
            logger.info("%d %s", sample_id, "\t".join(f"{word.text} [{word.score:2f}]" for word in words))
        for word in words if self.keep_stats else ():
            stat = self.stats.setdefault(word.text, WordStat(word.text, word.is_bpe))
            stat.add(word.score, word.next_score)


@dataclass
class Word:
    """A word with its log-probability and, if there is one, that of the word after it."""

    text: str
    is_bpe: bool
    score: float
    next_score: float | None


class Pieces:
    """Which tokens are not the last of their word."""

    def __init__(self, dictionary: Dictionary, symbol: str | None) -> None:
        if symbol not in (None, "subword_nmt", "@@ ", "@@"):
            raise ConfigError(f"--post-process {symbol}: only subword_nmt and '@@ ' can be undone in scoring")
        self.dictionary = dictionary
        self.mark = "" if symbol is None else "@@"
        ends = [symbol is not None and dictionary[i].endswith(self.mark) for i in range(len(dictionary))]
        self.continues = torch.tensor(ends)

    def merge(self, tokens: Tensor, scores: Tensor) -> tuple[Tensor, int]:
        """Give the last piece of each word the sum of the word's ``scores`` [T], and the others 0.

        Returns:
            The new scores, and the number of pieces that were joined to another.
        """
        continues = self.continues[tokens]
        continues[-1:] = False
        word = (~continues).cumsum(0) - (~continues).long()
        sums = scores.new_zeros(len(scores)).index_add_(0, word, scores)
        return torch.where(continues, 0.0, sums[word]), int(continues.sum())

    def words(self, tokens: list[int], scores: list[float]) -> Iterator[Word]:
        """The words of merged scores. One that the sample cuts short is left out."""
        text, is_bpe = "", False
        for i, token in enumerate(tokens):
            piece = self.dictionary[token]
            if self.continues[token]:
                text, is_bpe = text + piece[: -len(self.mark)], True
                continue
            following = next((score for score in scores[i + 1 :] if score != 0), None)
            yield Word(text + piece, is_bpe, scores[i], following)
            text, is_bpe = "", False


@dataclass
class WordStat:
    """What the occurrences of a word came to: how likely it was, and how likely the words after it were."""

    word: str
    is_bpe: bool
    log_prob: float = 0.0
    next_word_prob: float = 0.0
    count: int = 0
    missing_next_words: int = 0

    def add(self, log_prob: float, next_word_prob: float | None) -> None:
        """Count an occurrence; ``next_word_prob`` is None at the end of a sample."""
        self.log_prob += log_prob
        self.next_word_prob += next_word_prob or 0.0
        self.missing_next_words += next_word_prob is None
        self.count += 1

    def __str__(self) -> str:
        counted = self.count - self.missing_next_words
        return f"{self.word}\t{self.count}\t{self.log_prob}\t{self.is_bpe}\t{self.next_word_prob}\t{counted}"


def cli_main() -> None:
    run(main)


if __name__ == "__main__":
    cli_main()
