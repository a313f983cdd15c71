"""pyseq-preprocess: count words into dictionaries and turn text into binary datasets."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from pyseq.config.parser import Parser
from pyseq.data.atomic_file import complete_files, replacing, telling_disk_errors
from pyseq.data.binarizer import AlignmentBinarizer, Binarizer, BinarizeSummary, VocabularyBinarizer, binarize_file
from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_builder import MMapDatasetBuilder
from pyseq.data.indexed_format import best_fitting_int_dtype, data_file_path, index_file_path
from pyseq.data.text_file import PIECE_BYTES, Progress, count_lines, map_pieces, read_text
from pyseq.data.translation_table import most_frequent_translations
from pyseq.errors import ConfigError, DataError

logger = logging.getLogger("pyseq.cli.preprocess")

LOG_FORMAT, DATE_FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s", "%Y-%m-%d %H:%M:%S"

# Dictionaries appear last: where they are, the datasets are.
DICTIONARY = "dict."

# fairseq's preprocess takes these and does nothing with them.
WITHOUT_EFFECT = {
    "--bpe": "split the text into subwords first",
    "--tokenizer": "tokenize the text first",
    "--task": "the files are the same for every task",
    "--user-dir": "the files are the same for every task",
    "--seed": "nothing is drawn at random",
    "--cpu": "it always runs on the CPU",
}
UNWRITTEN = {
    "lazy": "is read but not written: use mmap",
    "cached": "is read but not written: use mmap",
    "fasta": "is not carried: use raw or mmap",
    "huffman": "is not carried: use mmap",
}


@dataclass(frozen=True)
class Split:
    """One set of input files: ``prefix.LANG`` becomes the dataset ``name``; ``flag`` is where the prefix came from."""

    name: str
    prefix: str
    flag: str


def dataset_impl(value: str) -> str:
    if value in UNWRITTEN:
        raise argparse.ArgumentTypeError(f"{value} {UNWRITTEN[value]}")
    return value


def get_parser() -> Parser:
    parser = Parser("pyseq-preprocess", description="Build dictionaries and binary datasets from text.", add_help=True)
    add = parser.add_argument_group("languages and input").add_argument
    add("-s", "--source-lang", metavar="SRC", help="source language: the suffix of its files")
    add("-t", "--target-lang", metavar="TARGET", help="target language")
    add("--trainpref", metavar="FP", help="train file prefix; dictionaries are built from it")
    add("--validpref", metavar="FP", help="validation file prefixes, separated by commas")
    add("--testpref", metavar="FP", help="test file prefixes, separated by commas")
    add("--align-suffix", metavar="FP", help="suffix of files with word alignments beside the text")
    add("--only-source", action="store_true", help="process the source language alone (for language models)")

    add = parser.add_argument_group("dictionaries").add_argument
    add("--thresholdtgt", metavar="N", type=int, default=0, help="target words less frequent than this are unknown")
    add("--thresholdsrc", metavar="N", type=int, default=0, help="source words less frequent than this are unknown")
    add("--tgtdict", metavar="FP", help="use this target dictionary")
    add("--srcdict", metavar="FP", help="use this source dictionary")
    add("--nwordstgt", metavar="N", type=int, default=-1, help="most target symbols to keep, special ones included")
    add("--nwordssrc", metavar="N", type=int, default=-1, help="most source symbols to keep, special ones included")
    add("--joined-dictionary", action="store_true", help="one dictionary for both languages")
    add("--padding-factor", metavar="N", type=int, default=8, help="pad dictionaries to a multiple of N symbols")
    add("--dict-only", action="store_true", help="build dictionaries only")

    add = parser.add_argument_group("output").add_argument
    add("--destdir", metavar="DIR", default="data-bin", help="destination folder")
    add("--alignfile", metavar="ALIGN", help="fast_align's output for the training text, for a table of translations")
    add("--dataset-impl", type=dataset_impl, choices=["mmap", "raw"], default="mmap", help="format of the datasets")
    add("--workers", metavar="N", type=int, default=1, help="processes to use; the files do not depend on it")
    add("--no-progress-bar", action="store_true", help="show no progress on long files")
    return parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Raises ConfigError for flags that are unknown, missing or at odds with each other."""
    parser = get_parser()
    args, unknown = parser.parse_known_args(argv)
    for flag in (argument.split("=", 1)[0] for argument in unknown):
        if flag in WITHOUT_EFFECT:
            raise ConfigError(f"{flag} has no effect on preprocess ({WITHOUT_EFFECT[flag]}): leave it out")
    parser.refuse_unknown(unknown)
    problems = list(problems_of(args))
    if problems:
        raise ConfigError("\n".join(problems))
    return args


def problems_of(args: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the options, before any text is read."""
    if not args.only_source and not (args.source_lang and args.target_lang):
        yield "give --source-lang and --target-lang, or --only-source for text in one language"
    if args.workers < 1:
        yield f"--workers {args.workers}: at least 1"
    if args.joined_dictionary and args.srcdict and args.tgtdict:
        yield "with --joined-dictionary give --srcdict or --tgtdict, not both"
    if args.align_suffix and args.only_source:
        yield "--align-suffix needs two languages, but --only-source is given"
    if args.alignfile and (args.only_source or not args.trainpref):
        yield "--alignfile needs --trainpref and two languages"
    for flag, path in (("--srcdict", args.srcdict), ("--tgtdict", args.tgtdict), ("--alignfile", args.alignfile)):
        if path and not os.path.isfile(path):
            yield f"{flag} {path}: no such file"
    given = {"source": args.srcdict, "target": args.tgtdict}
    for side, lang in sides(args):
        path = os.path.join(args.destdir, dictionary_name(lang))
        flag = "--srcdict" if side == "source" else "--tgtdict"
        if not given[side] and os.path.exists(path):
            yield f"{path} exists already: use it with {flag} {path}, choose another --destdir, or remove it"
        shared = args.joined_dictionary and (args.srcdict or args.tgtdict)
        if not given[side] and not shared and not args.trainpref:
            yield f"give --trainpref to build the {side} dictionary from, or {flag}"


def sides(args: argparse.Namespace) -> list[tuple[str, str | None]]:
    """The sides to process, each with its language (None: files without a suffix)."""
    source = ("source", args.source_lang)
    return [source] if args.only_source else [source, ("target", args.target_lang)]


def splits_of(args: argparse.Namespace) -> list[Split]:
    splits = [Split("train", args.trainpref, "--trainpref")] if args.trainpref else []
    for name, prefixes in (("valid", args.validpref), ("test", args.testpref)):
        for k, prefix in enumerate(prefixes.split(",") if prefixes else ()):
            splits.append(Split(f"{name}{k or ''}", prefix, f"--{name}pref"))
    return splits


def text_path(prefix: str, lang: str | None) -> str:
    return f"{prefix}.{lang}" if lang else prefix


def dictionary_name(lang: str | None) -> str:
    return f"{DICTIONARY}{lang}.txt" if lang else f"{DICTIONARY}txt"


def dataset_name(args: argparse.Namespace, split: str, lang: str | None) -> str:
    # With --only-source and a language this says "train.de-None.de"; that is the name fairseq's users have on disk.
    return f"{split}.{args.source_lang}-{args.target_lang}.{lang}" if lang else split


def check_inputs(args: argparse.Namespace) -> None:
    """Raise DataError if a text file is missing or empty, or files that belong together differ in their lines."""
    for split in splits_of(args):
        if args.dict_only and split.name != "train":
            continue
        files = [(split.flag, text_path(split.prefix, lang)) for _, lang in sides(args)]
        alignment = text_path(split.prefix, args.align_suffix)
        if args.align_suffix and os.path.isfile(alignment):
            files.append(("--align-suffix", alignment))
        if args.alignfile and split.name == "train":
            files.append(("--alignfile", args.alignfile))
        lines = {path: lines_in(path, flag) for flag, path in files}
        if len(set(lines.values())) > 1 and not args.dict_only:
            counts = ", ".join(f"{path} has {count:,} lines" for path, count in lines.items())
            raise DataError(f"line n of one file must belong to line n of the other, but {counts}")


def lines_in(path: str, flag: str) -> int:
    if not os.path.isfile(path):
        raise DataError(f"{flag}: {path}: no such file")
    lines = count_lines(path)
    if not lines:
        raise DataError(f"{flag}: {path} is empty")
    return lines


def make_dictionaries(args: argparse.Namespace) -> list[Dictionary]:
    """The dictionary of each side: loaded where one is given, else built from the training text."""
    given = [args.srcdict, args.tgtdict]
    limits = [(args.thresholdsrc, args.nwordssrc), (args.thresholdtgt, args.nwordstgt)]
    paths = [text_path(args.trainpref or "", lang) for _, lang in sides(args)]

    def make(path: str | None, texts: list[str], threshold: int, nwords: int) -> Dictionary:
        return Dictionary.load(path) if path else build_dictionary(args, texts, threshold, nwords)

    if args.joined_dictionary:
        return [make(args.srcdict or args.tgtdict, paths, *limits[0])] * len(paths)
    return [make(given[i], [path], *limits[i]) for i, path in enumerate(paths)]


def build_dictionary(args: argparse.Namespace, texts: list[str], threshold: int, nwords: int) -> Dictionary:
    dictionary = Dictionary()
    for path in dict.fromkeys(texts):
        with progress_bar(args, path, "words of") as progress:
            Dictionary.add_file_to_dictionary(path, dictionary, num_workers=args.workers, progress=progress)
    if len(dictionary) == dictionary.nspecial:
        raise DataError(f"--trainpref: there are no words in {' or '.join(texts)}")
    dictionary.finalize(threshold, nwords, args.padding_factor)
    return dictionary


def make_dataset(args: argparse.Namespace, split: Split, lang: str | None, dictionary: Dictionary, folder: str) -> None:
    path = text_path(split.prefix, lang)
    output = os.path.join(folder, dataset_name(args, split.name, lang))
    logger.info("[%s] Dictionary: %d types", lang, len(dictionary))
    if args.dataset_impl == "raw":
        for _ in map_pieces(read_text, path):  # raises where the text is not UTF-8
            pass
        with telling_disk_errors(output):
            shutil.copyfile(path, output)
        logger.info("[%s] %s: copied", lang, path)
        return
    summary = write_dataset(args, path, VocabularyBinarizer(dictionary), output, len(dictionary))
    logger.info("[%s] %s: %s (by %s)", lang, path, summary, dictionary.unk_word)


def make_alignments(args: argparse.Namespace, folder: str) -> None:
    made = 0
    for split in splits_of(args):
        path = text_path(split.prefix, args.align_suffix)
        if not os.path.isfile(path):
            logger.warning("[alignments] %s: no such file; the %s set is without alignments", path, split.name)
            continue
        output = os.path.join(folder, f"{split.name}.align.{args.source_lang}-{args.target_lang}")
        summary = write_dataset(args, path, AlignmentBinarizer(), output, None)
        logger.info("[alignments] %s: parsed %d alignments", path, summary.num_seq)
        made += 1
    if not made:
        raise DataError(f"--align-suffix {args.align_suffix}: there is no alignment file beside any of the texts")


def write_dataset(
    args: argparse.Namespace, path: str, binarizer: Binarizer, output: str, vocabulary: int | None
) -> BinarizeSummary:
    with (
        MMapDatasetBuilder(data_file_path(output), best_fitting_int_dtype(vocabulary)) as builder,
        progress_bar(args, path, "binarise") as progress,
    ):
        summary = binarize_file(path, binarizer, builder, args.workers, progress)
        builder.finalize(index_file_path(output))
    return summary


def make_translation_table(args: argparse.Namespace, dictionaries: list[Dictionary], folder: str) -> None:
    texts = [text_path(args.trainpref, lang) for _, lang in sides(args)]
    table = most_frequent_translations(args.alignfile, texts[0], texts[1], dictionaries[0], dictionaries[1])
    with replacing(os.path.join(folder, f"alignment.{args.source_lang}-{args.target_lang}.txt")) as file:
        file.writelines(f"{word} {translation}\n" for word, translation in table.items())


@contextlib.contextmanager
def progress_bar(args: argparse.Namespace, path: str, what: str) -> Iterator[Progress | None]:
    """Progress in bytes of a long file on standard error: a bar on a terminal, else a line every half minute."""
    size = os.path.getsize(path)
    if args.no_progress_bar or size <= PIECE_BYTES:
        yield None
        return
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread of tqdm's own while processes are forked
    seconds = 1 if sys.stderr.isatty() else 30
    name = f"{what} {os.path.basename(path)}"
    with tqdm(total=size, unit="B", unit_scale=True, desc=name, delay=seconds, mininterval=seconds) as bar:
        yield bar.update


class LogFile(logging.FileHandler):
    """A log that stops without a word when the disk is full: what writes the data tells it."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextlib.contextmanager
def logging_to(path: str) -> Iterator[None]:
    """Log to a file, and to standard output unless the program that called has set logging up."""
    handlers: list[logging.Handler] = [LogFile(path, encoding="utf-8")]
    if not logging.getLogger().handlers:
        handlers.append(logging.StreamHandler(sys.stdout))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(LOG_FORMAT, DATE_FORMAT))
        logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def main(argv: list[str] | None = None) -> None:
    """Preprocess text as the command line ``argv`` (None: that of the process) says.

    Files appear in the destination only when all of them are complete.

    Raises:
        ConfigError: a flag is wrong.
        DataError: a file is missing, empty, not UTF-8, does not fit another, or cannot be written.
    """
    args = parse_args(argv)
    check_inputs(args)
    with telling_disk_errors(args.destdir):
        os.makedirs(args.destdir, exist_ok=True)
    with logging_to(os.path.join(args.destdir, "preprocess.log")), complete_files(args.destdir, DICTIONARY) as folder:
        logger.info(args)
        dictionaries = make_dictionaries(args)
        for (_, lang), dictionary in zip(sides(args), dictionaries):
            dictionary.save(os.path.join(folder, dictionary_name(lang)))
        if args.dict_only:
            return
        for (_, lang), dictionary in zip(sides(args), dictionaries):
            for split in splits_of(args):
                make_dataset(args, split, lang, dictionary, folder)
        if args.align_suffix:
            make_alignments(args, folder)
        if args.alignfile:
            make_translation_table(args, dictionaries, folder)
        logger.info("Wrote preprocessed data to %s", args.destdir)


def cli_main() -> None:
    from pyseq.cli.run import run

    # As an exception it passes through the code that removes unfinished files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run(main)


if __name__ == "__main__":
    cli_main()
