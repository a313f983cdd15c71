from __future__ import annotations

import filecmp
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyseq.cli.preprocess import main
from pyseq.data import text_file
from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_dataset import MMapIndexedDataset
from pyseq.errors import ConfigError, DataError, UserError

LANGUAGES = ["--source-lang", "en", "--target-lang", "de"]
COMMAND = [sys.executable, "-c", "from pyseq.cli.preprocess import cli_main; cli_main()"]


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content, encoding="utf-8")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder with a training and a validation set, and nothing else."""
    folder = tmp_path / "text"
    folder.mkdir()
    write(folder, train_en="the cat\nthe dog\n\n", train_de="die Katze\nder Hund\nja\n")
    write(folder, valid_en="the mouse\n", valid_de="die Maus\n")
    return folder


def arguments(text: Path, *more: str) -> list[str]:
    destination = str(text.parent / "bin")
    return [*LANGUAGES, "--trainpref", f"{text}/train", "--destdir", destination, "--padding-factor", "1", *more]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sentences(prefix: Path, dictionary: Dictionary) -> list[str]:
    dataset = MMapIndexedDataset(prefix)
    assert all(dataset[i][-1] == dictionary.eos() for i in range(len(dataset)))
    return [dictionary.string(dataset[i]) for i in range(len(dataset))]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_files_are_those_of_fairseq(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(text_file, "LEAST_PIECE_BYTES", 1 << 13)
    monkeypatch.setattr(text_file, "PIECE_BYTES", 1 << 18)
    prefixes = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
    flags = [x for split, name in prefixes.items() for x in (f"--{split}pref", f"{reference}/text/{name}")]
    main([*LANGUAGES, *flags, "--joined-dictionary", "--workers", str(workers), "--destdir", str(tmp_path)])
    expected = names(reference / "data-bin")
    assert names(tmp_path) == sorted([*expected, "preprocess.log"])
    assert filecmp.cmpfiles(reference / "data-bin", tmp_path, expected, shallow=False) == (expected, [], [])


def test_as_a_command(text: Path) -> None:
    result = subprocess.run([*COMMAND, *arguments(text, "--no-progress-bar")], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert all(
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| INFO \| pyseq\.cli\.preprocess \| ", line) for line in lines
    )
    messages = [line.split(" | ", 3)[3] for line in lines]
    assert messages[0].startswith("Namespace(")
    assert messages[1:] == [
        "[en] Dictionary: 7 types",
        f"[en] {text}/train.en: 3 sents, 7 tokens, 0.0% replaced (by <unk>)",
        "[de] Dictionary: 9 types",
        f"[de] {text}/train.de: 3 sents, 8 tokens, 0.0% replaced (by <unk>)",
        f"Wrote preprocessed data to {text.parent}/bin",
    ]
    assert (text.parent / "bin" / "preprocess.log").read_text().splitlines() == lines


def test_a_bad_flag_as_a_command(text: Path) -> None:
    result = subprocess.run([*COMMAND, *arguments(text, "--trainprefix", "x")], capture_output=True, text=True)
    assert result.returncode == 1
    assert "unknown flag --trainprefix. Did you mean '--trainpref'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (text.parent / "bin").exists()


def test_preprocessing_does_without_torch() -> None:
    program = "import sys, pyseq.cli.preprocess; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_two_languages(text: Path) -> None:
    main(arguments(text, "--validpref", f"{text}/valid", "--testpref", f"{text}/train,{text}/valid"))
    folder = text.parent / "bin"
    splits = ["test", "test1", "train", "valid"]
    assert names(folder) == [
        "dict.de.txt",
        "dict.en.txt",
        "preprocess.log",
        *(f"{split}.en-de.{lang}.{end}" for split in splits for lang in ("de", "en") for end in ("bin", "idx")),
    ]
    assert (folder / "dict.en.txt").read_text() == "the 2\ncat 1\ndog 1\n"
    assert (folder / "dict.de.txt").read_text() == "Hund 1\nKatze 1\nder 1\ndie 1\nja 1\n"
    source = Dictionary.load(folder / "dict.en.txt")
    assert sentences(folder / "train.en-de.en", source) == ["the cat", "the dog", ""]
    assert sentences(folder / "valid.en-de.en", source) == sentences(folder / "test1.en-de.en", source) == ["the <unk>"]


def test_thresholds_and_limits(text: Path) -> None:
    main(arguments(text, "--thresholdsrc", "2", "--nwordstgt", "7", "--dict-only"))
    assert names(text.parent / "bin") == ["dict.de.txt", "dict.en.txt", "preprocess.log"]
    assert (text.parent / "bin" / "dict.en.txt").read_text() == "the 2\n"
    assert (text.parent / "bin" / "dict.de.txt").read_text() == "Hund 1\nKatze 1\nder 1\n"


def test_given_dictionaries(text: Path) -> None:
    write(text, dict_en="dog 5\nthe 4\n", dict_de="ja 1\n")
    main(arguments(text, "--srcdict", f"{text}/dict.en", "--tgtdict", f"{text}/dict.de"))
    folder = text.parent / "bin"
    assert (folder / "dict.en.txt").read_text() == "dog 5\nthe 4\n"
    dictionary = Dictionary.load(folder / "dict.de.txt")
    assert sentences(folder / "train.en-de.de", dictionary) == ["<unk> <unk>", "<unk> <unk>", "ja"]


def test_a_joined_dictionary_that_is_given(text: Path) -> None:
    write(text, dict_en="dog 5\n")
    main(arguments(text, "--joined-dictionary", "--tgtdict", f"{text}/dict.en"))
    for lang in ("en", "de"):
        assert (text.parent / "bin" / f"dict.{lang}.txt").read_text() == "dog 5\n"


@pytest.mark.parametrize(
    "flags, dataset, dictionary",
    [
        (["--trainpref", "train.en"], "train", "dict.txt"),
        (["--trainpref", "train", "-s", "en"], "train.en-None.en", "dict.en.txt"),
    ],
)
@pytest.mark.parametrize("impl", ["mmap", "raw"])
def test_one_language(text: Path, flags: list[str], dataset: str, dictionary: str, impl: str) -> None:
    destination = text.parent / "bin"
    flags = [flags[0], f"{text}/{flags[1]}", *flags[2:]]
    main(["--only-source", *flags, "--destdir", str(destination), "--dataset-impl", impl])
    files = [dataset] if impl == "raw" else [f"{dataset}.bin", f"{dataset}.idx"]
    assert names(destination) == sorted([*files, dictionary, "preprocess.log"])


def test_raw_datasets_are_the_text(text: Path) -> None:
    main(arguments(text, "--dataset-impl", "raw"))
    folder = text.parent / "bin"
    assert names(folder) == ["dict.de.txt", "dict.en.txt", "preprocess.log", "train.en-de.de", "train.en-de.en"]
    assert filecmp.cmp(folder / "train.en-de.de", text / "train.de", shallow=False)


def test_alignments(text: Path) -> None:
    write(text, train_align="0-0 1-1\n0-0 1-1\n\n")
    main(arguments(text, "--align-suffix", "align", "--alignfile", f"{text}/train.align"))
    folder = text.parent / "bin"
    dataset = MMapIndexedDataset(folder / "train.align.en-de")
    assert [item.tolist() for item in dataset] == [[0, 0, 1, 1], [0, 0, 1, 1], []]
    assert dataset.buffer.dtype.name == "uint32"
    assert (folder / "alignment.en-de.txt").read_text() == "the die\ncat Katze\ndog Hund\n"


def break_train_de(text: Path) -> None:
    write(text, train_de="die Katze\nder Hund\n")


def make_latin1(text: Path) -> None:
    (text / "valid.de").write_bytes("die Mäuse\n".encode("latin-1"))


BAD_INPUT = {
    "missing file": (lambda text: (text / "train.de").unlink(), [], r"--trainpref: .*train\.de: no such file"),
    "empty file": (lambda text: write(text, train_en=""), [], r"--trainpref: .*train\.en is empty"),
    "no words": (lambda text: write(text, train_en="\n\n\n"), [], r"there are no words in .*train\.en"),
    "lengths differ": (break_train_de, [], r"train\.en has 3 lines, .*train\.de has 2 lines"),
    "not UTF-8": (make_latin1, ["--validpref", "{text}/valid"], r"valid\.de:1: byte 0xe4 is not valid UTF-8"),
    "not UTF-8, raw": (
        make_latin1,
        ["--validpref", "{text}/valid", "--dataset-impl", "raw"],
        r"valid\.de:1: byte 0xe4 is not valid UTF-8",
    ),
    "second prefix missing": (
        lambda text: None,
        ["--validpref", "{text}/valid,{text}/dev"],
        r"--validpref: .*dev\.en: no such file",
    ),
    "broken dictionary": (
        lambda text: write(text, my_dict="the 1\ndog\n"),
        ["--srcdict", "{text}/my.dict"],
        r"my\.dict:2: expected '<symbol> <count>",
    ),
    "no alignments": (lambda text: None, ["--align-suffix", "align"], "no alignment file beside any"),
    "alignments differ": (
        lambda text: write(text, train_align="0-0\n"),
        ["--align-suffix", "align"],
        r"train\.align has 1 lines",
    ),
    "broken alignment": (
        lambda text: write(text, train_align="0-0\n0,0\n\n"),
        ["--align-suffix", "align"],
        r"train\.align:2: expected pairs",
    ),
}


@pytest.mark.parametrize("damage, flags, message", BAD_INPUT.values(), ids=list(BAD_INPUT))
def test_bad_input_is_told_and_leaves_nothing(text: Path, damage: object, flags: list[str], message: str) -> None:
    assert callable(damage)
    damage(text)
    with pytest.raises(DataError, match=message):
        main(arguments(text, *(flag.format(text=text) for flag in flags)))
    destination = text.parent / "bin"
    assert not destination.exists() or names(destination) == ["preprocess.log"]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--trainpref", "x"], "give --source-lang and --target-lang, or --only-source"),
        (LANGUAGES, "give --trainpref to build the source dictionary from, or --srcdict"),
        ([*LANGUAGES, "--trainpref", "x", "--workers", "0"], "--workers 0: at least 1"),
        ([*LANGUAGES, "--trainpref", "x", "--workers", "two"], "argument --workers: invalid int value"),
        ([*LANGUAGES, "--trainpref", "x", "--srcdict", "nothing"], "--srcdict nothing: no such file"),
        ([*LANGUAGES, "--trainpref", "x", "--dataset-impl", "lazy"], "lazy is read but not written: use mmap"),
        ([*LANGUAGES, "--trainpref", "x", "--dataset-impl", "map"], "invalid choice: 'map'"),
        ([*LANGUAGES, "--trainpref", "x", "--train", "y"], "unknown flag --train"),
        ([*LANGUAGES, "--trainpref", "x", "--bpe", "sentencepiece"], "--bpe has no effect on preprocess"),
        (["--only-source", "--trainpref", "x", "--align-suffix", "a"], "--align-suffix needs two languages"),
    ],
)
def test_bad_flags_are_told(tmp_path: Path, argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main([*argv, "--destdir", str(tmp_path / "bin")])
    assert names(tmp_path) == []


def test_an_existing_dictionary_is_not_overwritten(text: Path) -> None:
    folder = text.parent / "bin"
    folder.mkdir()
    write(folder, dict_de_txt="ja 1\n")
    with pytest.raises(ConfigError, match=r"bin/dict\.de\.txt exists already: use it with --tgtdict"):
        main(arguments(text))
    assert names(folder) == ["dict.de.txt"]
    main(arguments(text, "--tgtdict", str(folder / "dict.de.txt")))
    assert (folder / "dict.de.txt").read_text() == "ja 1\n"


def test_a_destination_that_is_a_file(text: Path) -> None:
    (text.parent / "bin").write_text("")
    with pytest.raises(UserError, match="cannot write .*bin: File exists"):
        main(arguments(text))


def test_a_full_disk_leaves_what_was_there(text: Path) -> None:
    main(arguments(text))
    folder = text.parent / "bin"
    before = {name: (folder / name).read_bytes() for name in names(folder) if name != "preprocess.log"}
    write(text, train_en="the dog\n" * 9000, train_de="der Hund\n" * 9000)
    dictionaries = ["--srcdict", str(folder / "dict.en.txt"), "--tgtdict", str(folder / "dict.de.txt")]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
    command = [*COMMAND[:2], limit + COMMAND[2], *arguments(text, *dictionaries)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert re.fullmatch(r"\S+: error: cannot write .*train\.en-de\.en\.bin: .* unchanged\.\n", result.stderr)
    assert {name: (folder / name).read_bytes() for name in names(folder) if name != "preprocess.log"} == before
