from __future__ import annotations

import io
import math
import subprocess
import sys

import pytest
from sacrebleu import corpus_bleu

from pyseq.cli.score import main
from pyseq.errors import ConfigError, DataError

REFS = ["the cat sat on the mat .", "it is raining .", "a b c d e f"]
SYS = ["the cat sat on a mat .", "It is raining .", "a b c d x"]


@pytest.fixture
def files(tmp_path):
    for name, sentences in (("ref", REFS), ("sys", SYS)):
        (tmp_path / name).write_text("".join(f"{s}\n" for s in sentences), encoding="utf-8")
    return tmp_path


def printed(capsys, *argv):
    main([str(a) for a in argv])
    return capsys.readouterr().out


def test_bleu_of_two_files(files, capsys):
    theirs = corpus_bleu(SYS, [REFS], tokenize="none", force=True)
    precisions = "/".join(f"{p:.1f}" for p in theirs.precisions)
    lengths = f"(BP={theirs.bp:.3f}, ratio={16 / 17:.3f}, syslen=16, reflen=17)"
    expected = f"BLEU4 = {theirs.score:.2f}, {precisions} {lengths}\n"
    assert printed(capsys, "-s", files / "sys", "-r", files / "ref") == expected


def test_translations_from_standard_input(files, capsys, monkeypatch):
    expected = printed(capsys, "--sys", files / "sys", "--ref", files / "ref")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(SYS)))
    assert printed(capsys, "--ref", files / "ref") == expected


def test_order_and_case(files, capsys):
    argv = ["-s", files / "sys", "-r", files / "ref", "-o", "1"]
    brevity = math.exp(1 - 17 / 16)
    assert printed(capsys, *argv).startswith(f"BLEU1 = {100 * 13 / 16 * brevity:.2f}, 81.2 (")
    assert printed(capsys, *argv, "--ignore-case").startswith(f"BLEU1 = {100 * 14 / 16 * brevity:.2f}, 87.5 (")


def test_every_sentence_by_itself(files, capsys):
    lines = printed(capsys, "-s", files / "sys", "-r", files / "ref", "--sentence-bleu").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["0", "1", "2"]
    # One match beforehand in orders 2 to 4: 4 of 5 words, 3 + 1 of 4 + 1 pairs, 2 + 1 of 3 + 1, 1 + 1 of 2 + 1.
    score = 100 * math.exp(1 - 6 / 5) * (4 / 5 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert lines[2] == f"2\tBLEU4 = {score:.2f}, 80.0/80.0/75.0/66.7 (BP=0.819, ratio=0.833, syslen=5, reflen=6)"


def test_sacrebleu(files, capsys):
    argv = ["-s", files / "sys", "-r", files / "ref", "--sacrebleu"]
    assert printed(capsys, *argv) == corpus_bleu(SYS, [REFS]).format() + "\n"
    assert printed(capsys, *argv, "--ignore-case") == corpus_bleu(SYS, [REFS], lowercase=True).format() + "\n"


def test_unknown_words_of_the_reference_match_nothing(tmp_path, capsys):
    (tmp_path / "text").write_text("a <unk> c\n")
    assert "66.7/0.0/0.0/0.0" in printed(capsys, "-s", tmp_path / "text", "-r", tmp_path / "text")


def test_a_missing_file(files):
    with pytest.raises(DataError, match=f"cannot read {files}/none: No such file"):
        main(["-s", f"{files}/sys", "-r", f"{files}/none"])


@pytest.mark.parametrize("option", ["--ignore-case", "--sacrebleu", "--sentence-bleu"])
def test_files_of_different_length(files, option):
    (files / "short").write_text("one\n")
    with pytest.raises(DataError, match="short has 1 lines and .*ref has 3"):
        main(["-s", f"{files}/short", "-r", f"{files}/ref", option])


def test_empty_files(tmp_path):
    (tmp_path / "empty").write_text("")
    with pytest.raises(DataError, match="are empty"):
        main(["-s", f"{tmp_path}/empty", "-r", f"{tmp_path}/empty"])


def test_a_file_that_is_not_text(files):
    (files / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="bytes is not UTF-8 text"):
        main(["-s", f"{files}/bytes", "-r", f"{files}/ref"])


@pytest.mark.parametrize(
    "extra, message",
    [(["-o", "5"], "--order"), (["--sacrebleu", "--sentence-bleu"], "not allowed with"), (["--rf", "x"], "--rf")],
)
def test_a_wrong_command_line(files, extra, message):
    with pytest.raises(ConfigError, match=message):
        main(["-s", f"{files}/sys", "-r", f"{files}/ref", *extra])


def test_the_command_starts_without_torch(files):
    program = (
        "import sys\n"
        "from pyseq.cli.score import cli_main\n"
        f"sys.argv = ['pyseq-score', '-s', {str(files / 'sys')!r}, '-r', {str(files / 'none')!r}]\n"
        "try: cli_main()\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("pyseq-score: error: cannot read ") and done.stderr.count("\n") == 1
