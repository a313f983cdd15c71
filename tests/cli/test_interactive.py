"""pyseq-interactive: text in, text out, in the order of the input."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyseq.cli import generate, interactive
from pyseq.cli.plugins import load_plugins
from pyseq.config.config import config_from_args
from pyseq.config.parser import get_training_parser, parse_args_and_arch
from pyseq.data.encoders import TOKENIZERS
from pyseq.errors import ConfigError, DataError, UserError
from pyseq.tasks import setup_task
from pyseq.training.checkpoint_file import save_checkpoint_file


class SpelledOut:
    """Plain text without spaces, in capitals; tokens are its letters."""

    def __init__(self, cfg: object) -> None:
        pass

    def encode(self, x: str) -> str:
        return " ".join(x.lower())

    def decode(self, x: str) -> str:
        return x.replace(" ", "")


@pytest.fixture
def checkpoint(train_argv: list[str], tmp_path: Path) -> str:
    """A model with random weights."""
    load_plugins()
    if "spelled_out" not in TOKENIZERS:
        TOKENIZERS.register("spelled_out")(SpelledOut)
    cfg = config_from_args(parse_args_and_arch(get_training_parser(), train_argv))
    torch.manual_seed(1)
    model = setup_task(cfg.task).build_model(cfg.model)
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(3)
    path = tmp_path / "model.pt"
    save_checkpoint_file({"args": None, "cfg": cfg.to_dict(), "model": model.state_dict()}, path)
    return str(path)


@pytest.fixture
def translate(checkpoint: str, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs the command and returns its output without the log."""

    def run(*argv: str) -> list[str]:
        common = ["--path", checkpoint, "--cpu", "--max-len-b", "12", "--beam", "3"]
        interactive.main([str(tiny_data), *common, *argv])
        return [line for line in capsys.readouterr().out.splitlines() if " | " not in line]

    return run


def hypotheses(lines: list[str]) -> list[tuple[int, str]]:
    """Id and text of each H- line."""
    matches = [re.fullmatch(r"H-(\d+)\t\S+\t(.*)", line) for line in lines]
    return [(int(match[1]), match[2]) for match in matches if match]


@pytest.mark.parametrize("batching", [[], ["--buffer-size", "7", "--batch-size", "4"],
                                      ["--buffer-size", "100", "--max-tokens", "60"]])  # fmt: skip
def test_the_order_of_the_input_whatever_the_batches(batching, translate, tiny_text, checkpoint, tiny_data, capsys):
    lines = translate("--input", str(tiny_text / "test.en"), *batching)
    sources = (tiny_text / "test.en").read_text().splitlines()
    assert [line for line in lines if line.startswith("S-")] == [f"S-{i}\t{text}" for i, text in enumerate(sources)]
    assert "".join(line[0] for line in lines) == "SWHDP" * len(sources)
    assert all(re.fullmatch(r"W-\d+\t\d+\.\d{3}\tseconds", line) for line in lines if line.startswith("W-"))
    generate.main([str(tiny_data), "--path", checkpoint, "--cpu", "--max-len-b", "12", "--beam", "3"])
    generated = hypotheses(capsys.readouterr().out.splitlines())
    assert hypotheses(lines) == sorted(generated)


def test_standard_input_and_nbest(translate, monkeypatch):
    """An empty line and unknown words are translated like any other line."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("a b c\n\n  what is this  \n"))
    lines = translate("--nbest", "2", "--print-alignment")
    assert [line for line in lines if line.startswith("S-")] == ["S-0\ta b c", "S-1\t", "S-2\t<unk> <unk> <unk>"]
    assert [i for i, _ in hypotheses(lines)] == [0, 0, 1, 1, 2, 2]
    assert "".join(line[0] for line in lines) == "SWHDPAHDPA" * 3


def test_tokenizer_goes_in_and_comes_out(translate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ABC\n"))
    lines = translate("--tokenizer", "spelled_out")
    assert lines[0] == "S-0\ta b c"
    ((_, text),) = hypotheses(lines)
    assert [line.split("\t")[2] for line in lines if line.startswith("D-")] == [text.replace(" ", "")]
    assert " " in text


def test_unknown_source_words_are_copied(translate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("erste zweite\n"))
    ((_, plain),) = hypotheses(translate("--unkpen", "-30"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("erste zweite\n"))
    ((_, copied),) = hypotheses(translate("--unkpen", "-30", "--replace-unk"))
    assert "<unk>" in plain
    for before, after in zip(plain.split(), copied.split(), strict=True):
        assert after in ("erste", "zweite") if before == "<unk>" else after == before


def test_what_cannot_work_is_told_in_one_message(translate, tiny_data, tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("grün\n".encode("latin-1"))
    long = tmp_path / "long.txt"
    long.write_text("a " * 2000)
    cases: list[tuple[list[str], type[UserError], str]] = [
        (["--batch-size", "4"], ConfigError, "--buffer-size"),
        (["--input", str(tmp_path / "none.txt")], DataError, "none.txt"),
        (["--input", str(latin)], DataError, "UTF-8"),
        (["--input", str(long)], DataError, "2001|long"),
        (["--score-reference"], ConfigError, "pyseq-generate"),
        (["--input", str(long), "--tokenizer", "mose"], ConfigError, "moses"),
    ]
    for argv, error, message in cases:
        with pytest.raises(error, match=message):
            translate(*argv)
