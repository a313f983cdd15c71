"""The vocabulary: a mapping between symbols and consecutive ids, kept in a ``dict.txt``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter
from typing import IO, TYPE_CHECKING, Any, TypeVar

from pyseq.data.atomic_file import replacing
from pyseq.data.native import native
from pyseq.data.post_process import post_process
from pyseq.data.text_file import Progress, decode, lines_of, map_pieces, read_bytes, read_text, tokenize_line
from pyseq.errors import DataError

if TYPE_CHECKING:
    import torch

D = TypeVar("D", bound="Dictionary")
Tokenize = Callable[[str], list[str]]

OVERWRITE = "#fairseq:overwrite"


class Dictionary:
    """Symbols and their ids: first ``<s> <pad> </s> <unk>``, then the extra special symbols, then the words.

    Attributes:
        symbols: symbol of each id.
        count: how often each symbol occurred.
        indices: id of each symbol.
        nspecial: how many special symbols come first; they are not written to the file.
    """

    bos_index: int
    pad_index: int
    eos_index: int
    unk_index: int

    def __init__(
        self,
        *,
        bos: str = "<s>",
        pad: str = "<pad>",
        eos: str = "</s>",
        unk: str = "<unk>",
        extra_special_symbols: Iterable[str] | None = None,
        add_special_symbols: bool = True,
    ) -> None:
        self.bos_word, self.unk_word, self.pad_word, self.eos_word = bos, unk, pad, eos
        self.symbols: list[str] = []
        self.count: list[int] = []
        self.indices: dict[str, int] = {}
        if add_special_symbols:
            self.bos_index = self.add_symbol(bos)
            self.pad_index = self.add_symbol(pad)
            self.eos_index = self.add_symbol(eos)
            self.unk_index = self.add_symbol(unk)
            for symbol in extra_special_symbols or ():
                self.add_symbol(symbol)
        self.nspecial = len(self.symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dictionary) and self.indices == other.indices

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, idx: int) -> str:
        """The symbol of an id; the unknown word for ids beyond the end."""
        idx = int(idx)
        return self.symbols[idx] if idx < len(self.symbols) else self.unk_word

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self.indices

    def index(self, symbol: str) -> int:
        """The id of a symbol; that of the unknown word if the dictionary does not have it."""
        idx = self.indices.get(symbol)
        return self.unk_index if idx is None else idx

    def get_count(self, idx: int) -> int:
        return self.count[idx]

    def bos(self) -> int:
        return self.bos_index

    def pad(self) -> int:
        return self.pad_index

    def eos(self) -> int:
        return self.eos_index

    def unk(self) -> int:
        return self.unk_index

    def unk_string(self, escape: bool = False) -> str:
        """The unknown word, as ``<<unk>>`` if ``escape``: in a reference it must not equal an unknown of ours."""
        return f"<{self.unk_word}>" if escape else self.unk_word

    def add_symbol(self, word: str, n: int = 1, overwrite: bool = False) -> int:
        """Count ``word`` ``n`` times, adding it if it is new (or if ``overwrite``, which gives it a new id).

        Returns:
            Its id.
        """
        idx = self.indices.get(word)
        if idx is not None and not overwrite:
            self.count[idx] += n
            return idx
        idx = len(self.symbols)
        self.indices[word] = idx
        self.symbols.append(word)
        self.count.append(n)
        return idx

    def update(self, new_dict: Dictionary) -> None:
        """Add the symbols and counts of another dictionary."""
        for word in new_dict.symbols:
            self.add_symbol(word, new_dict.count[new_dict.indices[word]])

    def finalize(self, threshold: int = -1, nwords: int = -1, padding_factor: int = 8) -> None:
        """Sort the words by count, most frequent first (ties by code point), and drop what is not wanted.

        Args:
            threshold: words that occur less often are dropped.
            nwords: the most symbols to keep, special ones included; at most 0 keeps all.
            padding_factor: see :meth:`pad_to_multiple_`.
        """
        most = (nwords if nwords > 0 else len(self)) - self.nspecial
        counts = dict(sorted(zip(self.symbols[self.nspecial :], self.count[self.nspecial :], strict=True)))
        # sorted() keeps the order of equal elements also in reverse, so equal counts stay in code point order.
        words = sorted(counts.items(), key=itemgetter(1), reverse=True)[: max(most, 0)]
        kept = [(word, count) for word, count in words if count >= threshold]
        self.symbols = self.symbols[: self.nspecial] + [word for word, _ in kept]
        self.count = self.count[: self.nspecial] + [count for _, count in kept]
        self.indices = {word: idx for idx, word in enumerate(self.symbols)}
        self.pad_to_multiple_(padding_factor)

    def pad_to_multiple_(self, padding_factor: int) -> None:
        """Append ``madeupword0000``, ... until the size is a multiple of ``padding_factor`` (matrix units like 8)."""
        number = 0
        while padding_factor > 1 and len(self.symbols) % padding_factor != 0:
            self.add_symbol(f"madeupword{number:04d}", n=0)
            number += 1

    def encode_line(
        self,
        line: str,
        line_tokenizer: Tokenize = tokenize_line,
        add_if_not_exist: bool = True,
        consumer: Callable[[str, int], object] | None = None,
        append_eos: bool = True,
        reverse_order: bool = False,
    ) -> torch.IntTensor:
        """The ids of the words of a line.

        Args:
            line_tokenizer: splits the line into words.
            add_if_not_exist: add and count the words; otherwise unknown ones become ``<unk>``.
            consumer: called with each word and its id.
            append_eos: end with the id of ``</s>``.
            reverse_order: last word first (``</s>`` still at the end).

        Returns:
            IntTensor (int32) of length words [+ 1].
        """
        import torch

        words = line_tokenizer(line)
        if reverse_order:
            words = words[::-1]
        ids = list(map(self.add_symbol if add_if_not_exist else self.index, words))
        if consumer is not None:
            for word, idx in zip(words, ids, strict=True):
                consumer(word, idx)
        if append_eos:
            ids.append(self.eos_index)
        return torch.tensor(ids, dtype=torch.int32)  # type: ignore[return-value]

    def string(
        self,
        tensor: Any,
        bpe_symbol: str | None = None,
        escape_unk: bool = False,
        extra_symbols_to_ignore: Iterable[int] | None = None,
        unk_string: str | None = None,
        include_eos: bool = False,
        separator: str = " ",
    ) -> str:
        """The text of a sequence of ids, without ``<s>`` and ``</s>``.

        Args:
            tensor: ids (tensor, array or list); rows of a 2-d tensor become lines.
            bpe_symbol: join subwords, see :func:`pyseq.data.post_process.post_process`.
            escape_unk: write ``<<unk>>`` for unknown words.
            extra_symbols_to_ignore: ids to leave out.
            unk_string: what to write for unknown words instead.
            include_eos: keep ``</s>``.
            separator: what stands between symbols.
        """
        ignored = set(extra_symbols_to_ignore or ())
        if not include_eos:
            ignored.add(self.eos_index)
        if hasattr(self, "bos_index"):
            ignored.add(self.bos_index)
        unknown = self.unk_string(escape_unk) if unk_string is None else unk_string

        def text(ids: list[int]) -> str:
            words = [unknown if i == self.unk_index else self[i] for i in ids if i not in ignored]
            return post_process(separator.join(words), bpe_symbol)

        values: Any = tensor.tolist() if hasattr(tensor, "tolist") else [int(idx) for idx in tensor]
        if isinstance(values, int):
            values = [values]
        if values and isinstance(values[0], list):
            return "\n".join(text(row) for row in values)
        return text(values)

    def dummy_sentence(self, length: int) -> torch.Tensor:
        """A sentence of random words: LongTensor ``(length,)`` that ends with ``</s>``."""
        import torch

        ids = torch.empty(length).uniform_(self.nspecial + 1, len(self)).long()
        ids[-1] = self.eos_index
        return ids

    @classmethod
    def load(cls: type[D], f: str | os.PathLike[str] | IO[str]) -> D:
        """Read a ``dict.txt``. Raises DataError, see :meth:`add_from_file`."""
        dictionary = cls()
        dictionary.add_from_file(f)
        return dictionary

    def add_from_file(self, f: str | os.PathLike[str] | IO[str]) -> None:
        """Add the symbols of a ``dict.txt``: lines ``symbol count``, where the symbol may contain spaces.

        A line ``symbol count #fairseq:overwrite`` gives a symbol that is there already a new id.

        Raises:
            DataError: the file is missing or not UTF-8, or a line is not of this form or repeats a symbol.
        """
        if not isinstance(f, (str, os.PathLike)):
            self._add_lines(f.readlines(), getattr(f, "name", "dictionary"))
            return
        path = os.fspath(f)
        if not os.path.isfile(path):
            raise DataError(f"{path}: no such dictionary")
        lines = [line for piece in map_pieces(read_text, path) for line in lines_of(piece)]
        self._add_lines(lines, path)

    def _add_lines(self, lines: list[str], where: object) -> None:
        for number, line in enumerate(lines, start=1):
            symbol, space, count = line.rstrip().rpartition(" ")
            overwrite = count == OVERWRITE
            if overwrite:
                symbol, space, count = symbol.rpartition(" ")
            if not space or not is_integer(count):
                raise DataError(f"{where}:{number}: expected '<symbol> <count> [{OVERWRITE}]', found {line.rstrip()!r}")
            if symbol in self.indices and not overwrite:
                raise DataError(
                    f"{where}:{number}: {symbol!r} is in the dictionary already. Remove the line, or end it with "
                    f"{OVERWRITE} if the later one is to be used."
                )
            self.add_symbol(symbol, n=int(count), overwrite=overwrite)

    def save(self, f: str | os.PathLike[str] | IO[str]) -> None:
        """Write a ``dict.txt``: one line ``symbol count`` for each symbol that is not special, in order of id.

        Raises:
            DataError: the file cannot be written; a file that was there before is kept.
        """
        if isinstance(f, (str, os.PathLike)):
            path = os.fspath(f)
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with replacing(path) as file:
                self.save(file)
            return
        words = zip(self.symbols[self.nspecial :], self.count[self.nspecial :], strict=True)
        f.writelines(f"{symbol} {count}\n" for symbol, count in words)

    @staticmethod
    def add_file_to_dictionary(
        filename: str,
        dict: Dictionary,
        tokenize: Tokenize = tokenize_line,
        num_workers: int = 1,
        progress: Progress | None = None,
    ) -> None:
        """Count the words of a text file into ``dict``, and ``</s>`` once for each line.

        Args:
            tokenize: splits a line into words.
            num_workers: processes to use; the result does not depend on it.
            progress: called with the number of bytes done since the last call.

        Raises:
            DataError: the file is missing or not UTF-8.
        """
        counts: Counter[str] = Counter()
        task = partial(count_words, tokenize=tokenize, eos=dict.eos_word)
        for part in map_pieces(task, filename, num_workers, progress):
            counts.update(part)
        for word, count in sorted(counts.items()):
            dict.add_symbol(word, count)


class TruncatedDictionary(Dictionary):
    """The first ``length`` symbols of another dictionary, whose symbols and counts it shares; the rest is unknown."""

    def __init__(self, wrapped_dict: Dictionary, length: int) -> None:
        self.__dict__.update(wrapped_dict.__dict__)
        self.wrapped_dict = wrapped_dict
        self.length = min(len(wrapped_dict), length)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, idx: int) -> str:
        return self.wrapped_dict[idx] if idx < self.length else self.unk_word

    def index(self, symbol: str) -> int:
        idx = self.wrapped_dict.index(symbol)
        return idx if idx < self.length else self.unk_index


def count_words(path: str, start: int, end: int, tokenize: Tokenize, eos: str) -> Counter[str]:
    """Words of one piece of a text file, and ``eos`` once for each line."""
    if tokenize is tokenize_line and native is not None:
        data = read_bytes(path, start, end)
        decode(data)  # raises where it is not UTF-8, which the compiled core does not look for
        found, lines = native.count_words(data)
    else:
        text = lines_of(read_text(path, start, end))
        found, lines = Counter(word for line in text for word in tokenize(line)), len(text)
    counts = Counter(found)
    counts[eos] += lines
    return counts


def is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True
