from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyseq.errors import DataError
from pyseq.modules import Embedding, load_embedding

SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "haus", "boot"]


@pytest.fixture
def table() -> torch.nn.Embedding:
    return Embedding(len(SYMBOLS), 3, padding_idx=1)


def test_initialisation() -> None:
    torch.manual_seed(0)
    weight = Embedding(1000, 64, padding_idx=1).weight
    assert torch.all(weight[1] == 0)
    assert abs(weight.std() * 8 - 1) < 0.02 and abs(weight.mean()) < 0.002


@pytest.mark.parametrize("header", ["", "3 3\n"])
def test_rows_of_known_symbols_are_filled(table: torch.nn.Embedding, tmp_path: Path, header: str) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(header + "boot 1 2 3\nauto 4 5 6\n</s> -1 0 1e-1 \n", encoding="utf-8")
    before = table.weight.detach().clone()
    assert load_embedding(str(path), SYMBOLS, table) == 2  # type: ignore[arg-type]
    assert table.weight[5].tolist() == [1, 2, 3]
    torch.testing.assert_close(table.weight[2], torch.tensor([-1, 0, 0.1]))
    untouched = [0, 1, 3, 4]
    assert torch.equal(table.weight[untouched], before[untouched])


@pytest.mark.parametrize(
    "text, message",
    [
        ("boot 1 2 3\nauto 1 x 3\n", ":2: expected a symbol and 3 numbers"),
        ("boot 1 2 3\nauto 1 2\n", ":2: 2 numbers, but 3 on the lines before"),
        ("boot 1 2 3 4\n", "vectors of dimension 4, the model's embeddings have 3"),
        (None, "cannot read the embeddings .*: No such file"),
    ],
)
def test_broken_files(table: torch.nn.Embedding, tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "vectors.txt"
    if text is not None:
        path.write_text(text)
    before = table.weight.detach().clone()
    with pytest.raises(DataError, match=message):
        load_embedding(str(path), SYMBOLS, table)  # type: ignore[arg-type]
    assert torch.equal(table.weight, before)
