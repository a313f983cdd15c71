"""Text that is encoded when the dataset is opened (``--dataset-impl raw``)."""

from __future__ import annotations

import os

import numpy as np

from pyseq.data.binarizer import VocabularyBinarizer
from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_dataset import IndexedDataset
from pyseq.data.text_file import map_pieces, read_lines


class RawTextDataset(IndexedDataset):
    """The lines of a text file as tokens, with the text beside them, all in memory.

    Args:
        path: a UTF-8 text file, one item a line.
        dictionary: words that it does not have become ``<unk>``.
        append_eos: end each item with ``</s>``.
        reverse_order: last word first.

    Attributes:
        lines: the text.

    Raises:
        DataError: the file is missing or not UTF-8.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dictionary: Dictionary,
        append_eos: bool = True,
        reverse_order: bool = False,
    ) -> None:
        self.path, self.append_eos, self.reverse_order = os.fspath(path), append_eos, reverse_order
        self.lines = [line for lines in map_pieces(read_lines, self.path) for line in lines]
        encoded = VocabularyBinarizer(dictionary, append_eos=append_eos, reverse_order=reverse_order).binarize(
            self.lines
        )
        self.buffer, self.sizes = encoded.tokens, encoded.sizes.astype(np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes

    def get_original_text(self, index: int) -> str:
        """The line as it stands in the file."""
        return self.lines[index]

    @staticmethod
    def exists(path: str) -> bool:
        return os.path.isfile(path)
