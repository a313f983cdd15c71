"""A table of translations read off word alignments, for ``--replace-unk``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from pyseq.data.binarizer import AlignmentBinarizer
from pyseq.data.dictionary import Dictionary
from pyseq.data.text_file import iterate_lines, tokenize_line
from pyseq.errors import DataError


def aligned_pairs(path: str, source_path: str, target_path: str) -> Iterator[tuple[str, str]]:
    """The aligned words (source, target) of three files with the same number of lines.

    Raises:
        DataError: an alignment is not ``SOURCE-TARGET``, or points behind the end of its sentence.
    """
    files = iterate_lines(path), iterate_lines(source_path), iterate_lines(target_path)
    for number, (line, source, target) in enumerate(zip(*files, strict=True), start=1):
        words, translations = tokenize_line(source), tokenize_line(target)
        for pair in line.split():
            if not AlignmentBinarizer.pair.fullmatch(pair):
                raise DataError(f"{path}:{number}: expected pairs SOURCE-TARGET of word numbers, found {pair!r}")
            i, j = map(int, pair.split("-"))
            if i >= len(words) or j >= len(translations):
                raise DataError(
                    f"{path}:{number}: {pair!r} points behind the end of a sentence: {source_path}:{number} has "
                    f"{len(words)} words, {target_path}:{number} has {len(translations)}"
                )
            yield words[i], translations[j]


def most_frequent_translations(
    path: str, source_path: str, target_path: str, source_dictionary: Dictionary, target_dictionary: Dictionary
) -> dict[str, str]:
    """The word that each source word is aligned with most often (the earliest of several), in order of appearance.

    Pairs with a word that a dictionary does not have are left out.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    unknown = source_dictionary.unk_index, target_dictionary.unk_index
    for word, translation in aligned_pairs(path, source_path, target_path):
        if source_dictionary.index(word) != unknown[0] and target_dictionary.index(translation) != unknown[1]:
            counts[word][translation] += 1
    return {word: translations.most_common(1)[0][0] for word, translations in counts.items()}
