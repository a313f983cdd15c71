"""pyseq-score: BLEU of a file of translations against a file of references.

Run as::

    pyseq-score --sys translations.txt --ref references.txt
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TextIO

from pyseq.cli.run import run
from pyseq.config.parser import Parser
from pyseq.errors import DataError
from pyseq.scoring.bleu import MAX_ORDER, BleuConfig, BleuScorer


def get_parser() -> argparse.ArgumentParser:
    parser = Parser("pyseq-score", description="BLEU of tokenised text, one sentence a line.", add_help=True)
    parser.add_argument("-s", "--sys", default="-", metavar="FILE", help="translations; - is standard input")
    parser.add_argument("-r", "--ref", required=True, metavar="FILE", help="references, one for each translation")
    parser.add_argument(
        "-o", "--order", default=MAX_ORDER, type=int, choices=range(1, MAX_ORDER + 1), help="longest n-grams to count"
    )
    parser.add_argument("--ignore-case", action="store_true", help="compare in lower case")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--sacrebleu", action="store_true", help="score with sacrebleu, which tokenises the text itself")
    kind.add_argument("--sentence-bleu", action="store_true", help="print the smoothed BLEU of each sentence instead")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the result.

    Raises:
        DataError: a file is missing or not UTF-8, or the two differ in length.
    """
    args = get_parser().parse_args(argv)
    with opened(args.sys) as sys_file, opened(args.ref) as ref_file:
        pairs = sentence_pairs(sys_file, ref_file, args)
        if args.sacrebleu:
            print(sacrebleu_result(pairs, args.order))
        elif args.sentence_bleu:
            for i, result in enumerate(sentence_results(pairs, args.order)):
                print(f"{i}\t{result}")
        else:
            scorer = BleuScorer(BleuConfig())
            for sys_line, ref_line in pairs:
                scorer.add_string(ref_line, sys_line)
            print(scorer.result_string(args.order))


def opened(path: str) -> contextlib.AbstractContextManager[TextIO]:
    """``path`` open for reading, or standard input for ``-``. Raises DataError if it cannot be opened."""
    if path == "-":
        return contextlib.nullcontext(sys.stdin)
    try:
        return open(path, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def sentence_pairs(sys_file: TextIO, ref_file: TextIO, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Lines of the two files side by side. Raises DataError if one ends before the other, or both are empty."""
    lengths = [0, 0]
    for pair in zip_longest(lines(sys_file, args.sys), lines(ref_file, args.ref)):
        for k, line in enumerate(pair):
            lengths[k] += line is not None
        sys_line, ref_line = pair
        if sys_line is not None and ref_line is not None:
            yield (sys_line.lower(), ref_line.lower()) if args.ignore_case else (sys_line, ref_line)
    names = ["standard input" if path == "-" else path for path in (args.sys, args.ref)]
    if lengths[0] != lengths[1]:
        raise DataError(
            f"{names[0]} has {lengths[0]} lines and {names[1]} has {lengths[1]}: every translation needs one reference"
        )
    if lengths[0] == 0:
        raise DataError(f"{names[0]} and {names[1]} are empty: there is nothing to score")


def lines(file: TextIO, path: str) -> Iterator[str]:
    try:
        for line in file:
            yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error


def sentence_results(pairs: Iterator[tuple[str, str]], order: int) -> Iterator[str]:
    scorer = BleuScorer(BleuConfig())
    for sys_line, ref_line in pairs:
        scorer.reset(one_init=True)
        scorer.add_string(ref_line, sys_line)
        yield scorer.result_string(order)


def sacrebleu_result(pairs: Iterator[tuple[str, str]], order: int) -> str:
    from sacrebleu.metrics import BLEU

    predictions, references = zip(*pairs)
    return str(BLEU(max_ngram_order=order).corpus_score(predictions, [references]).format())


def cli_main() -> None:
    run(main)
