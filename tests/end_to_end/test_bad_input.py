"""Bad input, as a user of the commands meets it: one message on standard error, exit code 1, nothing damaged."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from pyseq.cli import eval_lm, generate, preprocess, score, train, validate
from pyseq.cli.run import run

COMMANDS = {"preprocess": preprocess, "train": train, "generate": generate, "score": score, "validate": validate,
            "eval-lm": eval_lm}  # fmt: skip


@pytest.fixture
def fails(monkeypatch, capfd):
    """Run a command that has to fail; returns what it said."""

    def call(command: str, *argv: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"pyseq-{command}", *map(str, argv)])
        with pytest.raises(SystemExit) as stop:
            run(COMMANDS[command].main)
        said = capfd.readouterr().err
        assert stop.value.code == 1, said
        message = said[said.index(f"pyseq-{command}: error: ") :]
        assert "Traceback" not in said
        return message

    return call


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    """A copy of the binarised data, to be damaged."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


@pytest.fixture
def argv(train_argv, data, tmp_path) -> list[str]:
    return [str(data), *train_argv[1:], "--save-dir", str(tmp_path / "save"), "--max-update", "1"]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


PAIR = ("--source-lang", "en", "--target-lang", "de")


def test_preprocess_missing_and_empty_files(fails, tmp_path):
    out = tmp_path / "out"
    assert "no such file" in fails("preprocess", *PAIR, "--trainpref", tmp_path / "x", "--destdir", out)
    (tmp_path / "x.en").write_text("a\n")
    (tmp_path / "x.de").write_text("")
    assert "x.de is empty" in fails("preprocess", *PAIR, "--trainpref", tmp_path / "x", "--destdir", out)
    assert not list(out.glob("*.bin"))


def test_preprocess_sides_of_different_length(fails, tmp_path):
    (tmp_path / "x.en").write_text("a\nb\n")
    (tmp_path / "x.de").write_text("A\n")
    message = fails("preprocess", *PAIR, "--trainpref", tmp_path / "x", "--destdir", tmp_path / "out")
    assert "x.en has 2 lines" in message and "x.de has 1 lines" in message


def test_a_training_sentence_over_the_limit_is_named(fails, argv):
    assert "max_tokens" in fails("train", *argv, "--max-tokens", "3").replace("--max-tokens", "max_tokens")


def test_a_validation_sentence_over_the_limit_is_named(fails, argv):
    message = fails("train", *argv, "--max-source-positions", "4", "--max-epoch", "1")
    assert "Size of sample #" in message and "--skip-invalid-size-inputs-valid-test" in message


@pytest.mark.parametrize("name", ["train.en-de.en.bin", "train.en-de.de.idx", "valid.en-de.en.idx"])
def test_truncated_data_is_named(fails, argv, data, name):
    path = data / name
    path.write_bytes(path.read_bytes()[:-5])
    assert name.rsplit(".", 1)[0] in fails("train", *argv)


def test_a_dictionary_with_a_broken_line_is_named(fails, argv, data):
    path = data / "dict.en.txt"
    lines = path.read_text().splitlines()
    lines[2] = "word"
    path.write_text("\n".join(lines) + "\n")
    message = fails("train", *argv)
    assert "dict.en.txt" in message and "3" in message


def test_another_dictionary_than_the_models(fails, argv, data, tmp_path):
    train.main(argv)
    (data / "dict.de.txt").write_text("A 1\nB 1\n")
    message = fails("generate", data, "--path", tmp_path / "save" / "checkpoint_last.pt", "--cpu")
    assert "do not fit" in message or "does not fit" in message


def test_a_checkpoint_of_another_architecture_and_one_cut_short(fails, argv, tmp_path):
    train.main(argv)
    last = tmp_path / "save" / "checkpoint_last.pt"
    before = files_in(tmp_path / "save")
    assert "fit" in fails("train", *argv, "--encoder-embed-dim", "32", "--decoder-embed-dim", "32")
    assert files_in(tmp_path / "save") == before
    last.write_bytes(before["checkpoint_last.pt"][:5000])
    before = files_in(tmp_path / "save")
    for command in ("train", "generate", "validate"):
        arguments = argv if command == "train" else [argv[0], "--path", last, "--cpu"]
        assert "checkpoint_last.pt is damaged" in fails(command, *arguments)
    assert files_in(tmp_path / "save") == before


def test_unknown_flags_of_every_command(fails, data):
    for command in COMMANDS:
        needed = {"train": [data, "--arch", "transformer"], "score": ["-r", "x"]}.get(command, [data])
        assert "unknown flag --no-such-flag" in fails(command, *needed, "--no-such-flag")


def test_a_missing_checkpoint_is_named(fails, data):
    assert "no checkpoint at nothere.pt" in fails("generate", data, "--path", "nothere.pt")
    assert "--path" in fails("generate", data)


def test_score_files_of_different_length(fails, tmp_path):
    (tmp_path / "a").write_text("a\nb\n")
    (tmp_path / "b").write_text("a\n")
    assert "2" in fails("score", "-s", tmp_path / "a", "-r", tmp_path / "b")
