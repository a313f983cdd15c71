"""From lines of text to token ids, in one process or several."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_builder import MMapDatasetBuilder
from pyseq.data.native import native
from pyseq.data.text_file import LineError, Progress, decode, map_pieces, read_bytes, read_lines, tokenize_line


@dataclass
class BinarizeSummary:
    """What was binarised.

    Attributes:
        num_seq: lines.
        num_tok: tokens, ``</s>`` included.
        replaced: how often each word was replaced by ``<unk>``; None where there is no dictionary.
    """

    num_seq: int = 0
    num_tok: int = 0
    replaced: Counter[str] | None = None

    @property
    def num_replaced(self) -> int:
        return sum(self.replaced.values()) if self.replaced else 0

    @property
    def replaced_percent(self) -> float:
        return 100 * self.num_replaced / max(self.num_tok, 1)

    def merge(self, other: BinarizeSummary) -> None:
        """Add the figures of ``other``."""
        self.num_seq += other.num_seq
        self.num_tok += other.num_tok
        if other.replaced is not None:
            if self.replaced is None:
                self.replaced = Counter()
            self.replaced.update(other.replaced)

    def __str__(self) -> str:
        base = f"{self.num_seq} sents, {self.num_tok} tokens"
        return base if self.replaced is None else f"{base}, {self.replaced_percent:.3}% replaced"


@dataclass(frozen=True)
class BinarizedLines:
    """The tokens of some lines, one after another; ``sizes`` (int32) says how many belong to each line."""

    tokens: npt.NDArray[np.integer[Any]]
    sizes: npt.NDArray[np.int32]
    summary: BinarizeSummary


class Binarizer(ABC):
    """How lines become tokens."""

    @abstractmethod
    def binarize(self, lines: list[str]) -> BinarizedLines:
        """Raises LineError for a line that is not as it should be."""

    def binarize_piece(self, path: str, start: int, end: int) -> BinarizedLines:
        """The tokens of bytes ``start`` to ``end`` of a text file."""
        return self.binarize(read_lines(path, start, end))


class VocabularyBinarizer(Binarizer):
    """Words to their ids in a dictionary.

    Args:
        dictionary: words that it does not have become ``<unk>``. Later changes to it are not seen.
        tokenize: splits a line into words.
        append_eos: end each line with ``</s>``.
        reverse_order: last word first (``</s>`` still at the end).
    """

    def __init__(
        self,
        dictionary: Dictionary,
        tokenize: Callable[[str], list[str]] = tokenize_line,
        append_eos: bool = True,
        reverse_order: bool = False,
    ) -> None:
        self.tokenize, self.append_eos, self.reverse_order = tokenize, append_eos, reverse_order
        self.unk_index, self.unk_word = dictionary.unk_index, dictionary.unk_word
        # None stands for the end of a line, which no word can equal.
        self.ids: dict[str | None, int] = {None: dictionary.eos_index}
        self.ids.update(dictionary.indices)

    @cached_property
    def native(self) -> Any:
        """The vocabulary in the compiled core; None where it does not do what :meth:`binarize` does."""
        changed = self.tokenize is not tokenize_line or type(self).binarize is not VocabularyBinarizer.binarize
        if native is None or changed:
            return None
        return native.Vocabulary({word: id for word, id in self.ids.items() if word is not None})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "native"}

    def binarize_piece(self, path: str, start: int, end: int) -> BinarizedLines:
        if self.native is None:
            return super().binarize_piece(path, start, end)
        data = read_bytes(path, start, end)
        decode(data)  # raises where it is not UTF-8, which the compiled core does not look for
        eos = self.ids[None] if self.append_eos else None
        tokens, sizes, replaced = self.native.encode_lines(data, self.unk_index, eos, self.reverse_order)
        return BinarizedLines(tokens, sizes, BinarizeSummary(len(sizes), len(tokens), Counter(replaced)))

    def binarize(self, lines: list[str]) -> BinarizedLines:
        words: list[str | None] = []
        ends = np.empty(len(lines), dtype=np.int64)
        for i, line in enumerate(lines):
            words += self.tokenize(line)[::-1] if self.reverse_order else self.tokenize(line)
            if self.append_eos:
                words.append(None)
            ends[i] = len(words)
        ids = map(self.ids.get, words, repeat(self.unk_index))
        tokens = np.fromiter(ids, dtype=np.int32, count=len(words))
        unknown = (words[i] for i in np.flatnonzero(tokens == self.unk_index))
        replaced = Counter(word for word in unknown if word is not None and word != self.unk_word)
        sizes = np.diff(ends, prepend=0).astype(np.int32)
        return BinarizedLines(tokens, sizes, BinarizeSummary(len(lines), len(words), replaced))


class AlignmentBinarizer(Binarizer):
    """Word alignments ``0-0 1-2 ...`` (source-target, as fast_align writes them) to ``0 0 1 2 ...``."""

    pair = re.compile(r"[0-9]+-[0-9]+")

    def binarize(self, lines: list[str]) -> BinarizedLines:
        sizes = np.empty(len(lines), dtype=np.int32)
        numbers: list[str] = []
        for i, line in enumerate(lines):
            pairs = line.split()
            for pair in pairs:
                if not self.pair.fullmatch(pair):
                    raise LineError(i + 1, f"expected pairs SOURCE-TARGET of word numbers, found {pair!r}")
                numbers += pair.split("-")
            sizes[i] = 2 * len(pairs)
        tokens = np.array(numbers, dtype=np.int64) if numbers else np.empty(0, dtype=np.int64)
        return BinarizedLines(tokens, sizes, BinarizeSummary(len(lines), len(numbers)))


def binarize_file(
    path: str, binarizer: Binarizer, builder: MMapDatasetBuilder, workers: int = 1, progress: Progress | None = None
) -> BinarizeSummary:
    """Append the lines of a text file to a dataset. The number of processes does not change what is written.

    Args:
        progress: called with the number of bytes done since the last call.

    Raises:
        DataError: the file is missing, not UTF-8 or holds a line that is wrong, or the dataset cannot be written.
    """
    summary = BinarizeSummary()
    for part in map_pieces(binarizer.binarize_piece, path, workers, progress):
        builder.add_items(part.tokens, part.sizes)
        summary.merge(part.summary)
    return summary
