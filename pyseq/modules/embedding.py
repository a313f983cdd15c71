"""Token embeddings: initialisation, and vectors trained elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyseq.errors import DataError

if TYPE_CHECKING:
    from pyseq.data.dictionary import Dictionary


def Embedding(num_embeddings: int, embedding_dim: int, padding_idx: int | None) -> nn.Embedding:
    """A table of N(0, 1 / embedding_dim) vectors, zero at ``padding_idx``."""
    table = nn.Embedding(num_embeddings, embedding_dim, padding_idx=padding_idx)
    nn.init.normal_(table.weight, mean=0, std=embedding_dim**-0.5)
    if padding_idx is not None:
        nn.init.zeros_(table.weight[padding_idx])
    return table


def read_embedding(path: str) -> dict[str, Tensor]:
    """Vectors from a text file in the format of word2vec, fastText and GloVe: a symbol and its numbers on each line.

    A first line of two numbers (count and dimension) is skipped.

    Raises:
        DataError: no such file, or a line that does not hold a symbol and as many numbers as the first.
    """
    vectors: dict[str, Tensor] = {}
    dim = None
    try:
        text = Path(path).open(encoding="utf-8", newline="\n")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"cannot read the embeddings {path}: {error.strerror}") from None
    with text:
        for number, line in enumerate(text, start=1):
            symbol, *values = line.rstrip().split(" ")
            if number == 1 and len(values) == 1:
                continue
            dim = len(values) if dim is None else dim
            try:
                vectors[symbol] = torch.tensor([float(value) for value in values])
            except ValueError:
                raise DataError(f"{path}:{number}: expected a symbol and {dim} numbers") from None
            if len(values) != dim:
                raise DataError(f"{path}:{number}: {len(values)} numbers, but {dim} on the lines before")
    return vectors


def load_embedding(path: str, dictionary: Dictionary, table: nn.Embedding) -> int:
    """Copy the vectors of ``path`` into the rows of the symbols that ``dictionary`` has.

    Returns:
        The number of rows filled; the others keep their initial values.

    Raises:
        DataError: the file cannot be read, or its vectors have another dimension than the table.
    """
    vectors = read_embedding(path)
    found = [(index, vectors[dictionary[index]]) for index in range(len(dictionary)) if dictionary[index] in vectors]
    if found and found[0][1].numel() != table.embedding_dim:
        raise DataError(
            f"{path} has vectors of dimension {found[0][1].numel()}, the model's embeddings have {table.embedding_dim}"
        )
    with torch.no_grad():
        for index, vector in found:
            table.weight[index] = vector
    return len(found)
