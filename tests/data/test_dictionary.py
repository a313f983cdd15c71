from __future__ import annotations

import io
import pickle
import string as letters
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseq.data import text_file
from pyseq.data.dictionary import Dictionary, TruncatedDictionary
from pyseq.errors import ConfigError, DataError

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
# Anything but line ends and lone surrogates, which a UTF-8 text file cannot hold.
symbols = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]))


def dictionary_of(**counts: int) -> Dictionary:
    dictionary = Dictionary()
    for word, count in counts.items():
        dictionary.add_symbol(word, count)
    return dictionary


def test_special_symbols_have_fixed_ids() -> None:
    dictionary = Dictionary(extra_special_symbols=["<mask>"])
    assert dictionary.symbols == [*SPECIAL, "<mask>"]
    assert (dictionary.bos(), dictionary.pad(), dictionary.eos(), dictionary.unk()) == (0, 1, 2, 3)
    assert dictionary.nspecial == 5
    assert len(Dictionary(add_special_symbols=False)) == 0


def test_lookup() -> None:
    dictionary = dictionary_of(a=2, b=1)
    assert dictionary.index("b") == 5
    assert dictionary.index("c") == dictionary.unk()
    assert dictionary[5] == dictionary[torch.tensor(5)] == "b"
    assert dictionary[6] == "<unk>"
    assert "a" in dictionary and "c" not in dictionary
    assert dictionary.get_count(4) == 2


def test_equality_is_that_of_ids() -> None:
    assert dictionary_of(a=1, b=1) == dictionary_of(a=5, b=2)
    assert dictionary_of(a=1, b=1) != dictionary_of(b=1, a=1)
    assert pickle.loads(pickle.dumps(dictionary_of(a=1))) == dictionary_of(a=1)


def test_update_adds_counts() -> None:
    dictionary = dictionary_of(a=1, b=2)
    dictionary.update(dictionary_of(b=3, c=4))
    assert dictionary.symbols[4:] == ["a", "b", "c"]
    assert dictionary.count[4:] == [1, 5, 4]


def test_finalize_sorts_by_count_then_code_point() -> None:
    dictionary = dictionary_of(z=2, b=2, ä=2, B=2, often=9, rare=1)
    dictionary.finalize(padding_factor=1)
    assert dictionary.symbols == [*SPECIAL, "often", "B", "b", "z", "ä", "rare"]
    assert [dictionary.index(symbol) for symbol in dictionary.symbols] == list(range(len(dictionary)))


@pytest.mark.parametrize(
    "threshold, nwords, padding, words",
    [
        (-1, -1, 1, ["a", "b", "c"]),
        (2, -1, 1, ["a", "b"]),
        (-1, 6, 1, ["a", "b"]),  # nwords counts the four special symbols
        (-1, 3, 1, []),
        (-1, -1, 8, ["a", "b", "c", "madeupword0000"]),
        (4, -1, 8, ["madeupword0000", "madeupword0001", "madeupword0002", "madeupword0003"]),
    ],
)
def test_finalize_limits(threshold: int, nwords: int, padding: int, words: list[str]) -> None:
    dictionary = dictionary_of(a=3, b=2, c=1)
    dictionary.finalize(threshold, nwords, padding)
    assert dictionary.symbols[4:] == words


@given(st.dictionaries(symbols, st.integers(1, 5)), st.integers(0, 4), st.integers(-1, 12))
def test_finalize_keeps_the_most_frequent(counts: dict[str, int], threshold: int, nwords: int) -> None:
    counts = {word: count for word, count in counts.items() if word not in SPECIAL}
    dictionary = Dictionary()
    for word, count in counts.items():
        dictionary.add_symbol(word, count)
    dictionary.finalize(threshold, nwords, padding_factor=1)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    limit = max(nwords - 4, 0) if nwords > 0 else len(ranked)
    assert dictionary.symbols[4:] == [word for word in ranked[:limit] if counts[word] >= threshold]


def test_encode_line() -> None:
    dictionary = dictionary_of(a=1, b=1)
    seen: list[tuple[str, int]] = []
    ids = dictionary.encode_line(" a\tb \u3000x\n", add_if_not_exist=False, consumer=lambda *pair: seen.append(pair))
    assert ids.dtype == torch.int32
    assert ids.tolist() == [4, 5, 3, 2]
    assert seen == [("a", 4), ("b", 5), ("x", 3)]
    assert dictionary.encode_line("a b", append_eos=False, reverse_order=True).tolist() == [5, 4]
    assert dictionary.encode_line("ab", line_tokenizer=list, add_if_not_exist=False).tolist() == [4, 5, 2]
    assert dictionary.encode_line("new a").tolist() == [6, 4, 2]
    assert dictionary.count[4:] == [3, 2, 1]
    assert dictionary.encode_line("", append_eos=False).shape == (0,)


def test_string_drops_what_is_not_text() -> None:
    dictionary = dictionary_of(a=1, b=1)
    ids = [0, 4, 3, 5, 2]
    for form in (ids, torch.tensor(ids), np.array(ids), [torch.tensor(i) for i in ids]):
        assert dictionary.string(form) == "a <unk> b"
    assert dictionary.string(torch.tensor([ids, ids])) == "a <unk> b\na <unk> b"
    assert dictionary.string(torch.tensor(5)) == "b"
    assert dictionary.string([]) == ""
    assert dictionary.string(ids, escape_unk=True) == "a <<unk>> b"
    assert dictionary.string(ids, unk_string="?") == "a ? b"
    assert dictionary.string(ids, include_eos=True, separator="_") == "a_<unk>_b_</s>"
    assert dictionary.string(ids, extra_symbols_to_ignore=[5]) == "a <unk>"
    assert dictionary.string([4, 99]) == "a <unk>"


def test_string_joins_subwords() -> None:
    dictionary = Dictionary()
    ids = [dictionary.add_symbol(word) for word in ("lo@@", "west", "x@@")]
    assert dictionary.string(ids, "@@ ") == "lowest x"
    with pytest.raises(ConfigError, match="Did you mean 'subword_nmt'"):
        dictionary.string(ids, "subword-nmt")


def test_file_format() -> None:
    dictionary = Dictionary(extra_special_symbols=["<mask>"])
    dictionary.add_symbol("the", 10)
    dictionary.add_symbol("two words", 2)
    file = io.StringIO()
    dictionary.save(file)
    assert file.getvalue() == "the 10\ntwo words 2\n"


@given(st.dictionaries(symbols, st.integers(0, 10**12)))
@settings(max_examples=50)
def test_a_saved_dictionary_loads_again(tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int]) -> None:
    path = str(tmp_path_factory.mktemp("dict") / "new folder" / "dict.txt")
    dictionary = Dictionary()
    for word in counts.keys() - set(SPECIAL):
        dictionary.add_symbol(word, counts[word])
    dictionary.save(path)
    loaded = Dictionary.load(path)
    assert (loaded.symbols, loaded.indices) == (dictionary.symbols, dictionary.indices)
    assert loaded.count[4:] == dictionary.count[4:]


def test_overwrite_flag_gives_a_new_id(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_text("a 1\n<unk> 3 #fairseq:overwrite\nb 2\na 7 #fairseq:overwrite\n")
    dictionary = Dictionary.load(path)
    assert dictionary.symbols[4:] == ["a", "<unk>", "b", "a"]
    assert dictionary.index("a") == 7
    assert dictionary.index("<unk>") == 5


@pytest.mark.parametrize(
    "content, message",
    [
        ("a 1\nb\n", ":2: expected '<symbol> <count>"),
        ("a 1\n\nb 2\n", ":2: expected"),
        ("a one\n", ":1: expected"),
        ("a #fairseq:overwrite\n", ":1: expected"),
        ("5 \n", ":1: expected"),
        ("a 1\nb 1\na 2\n", ":3: 'a' is in the dictionary already"),
        ("<pad> 2\n", ":1: '<pad>' is in the dictionary already"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "dict.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=f"{path}{message}"):
        Dictionary.load(path)


def test_files_that_are_no_dictionary(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing.txt: no such dictionary"):
        Dictionary.load(tmp_path / "nothing.txt")
    (tmp_path / "latin1.txt").write_bytes("a 1\nä 2\n".encode("latin-1"))
    with pytest.raises(DataError, match="latin1.txt:2: byte 0xe4 is not valid UTF-8"):
        Dictionary.load(str(tmp_path / "latin1.txt"))


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    dictionary_of(a=1).save(path)
    damaged = dictionary_of(b=1)
    damaged.add_symbol("\ud800", 1)  # cannot be written as UTF-8
    with pytest.raises(UnicodeEncodeError):
        damaged.save(path)
    assert path.read_text() == "a 1\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("workers", [1, 3])
def test_counting_does_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(text_file, "LEAST_PIECE_BYTES", 7)
    lines = ["a b\u3000a", "", "b c <unk> ü", "a\r\n</s>"] * 5
    (tmp_path / "text").write_bytes("\n".join(lines).encode())
    dictionary = Dictionary()
    Dictionary.add_file_to_dictionary(str(tmp_path / "text"), dictionary, num_workers=workers)
    expected = Counter(word for line in lines for word in line.split())
    assert dictionary.symbols[4:] == ["a", "b", "c", "ü"]
    assert dictionary.count[4:] == [15, 10, 5, 5]
    assert dictionary.count[dictionary.eos()] == 1 + 25 + expected["</s>"]  # 25 lines: one in four has a \r\n inside
    assert dictionary.count[dictionary.unk()] == 1 + 5


def test_counting_with_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abba\nb\n")
    dictionary = Dictionary()
    Dictionary.add_file_to_dictionary(str(tmp_path / "text"), dictionary, tokenize=list)
    assert dict(zip(dictionary.symbols, dictionary.count))["b"] == 3


def test_dummy_sentence_is_made_of_words() -> None:
    dictionary = dictionary_of(**dict.fromkeys(letters.ascii_letters, 1))
    sentence = dictionary.dummy_sentence(100)
    assert sentence.dtype == torch.int64
    assert sentence[-1] == dictionary.eos()
    assert (sentence[:-1] > dictionary.nspecial).all() and (sentence < len(dictionary)).all()


def test_truncated_dictionary() -> None:
    wrapped = dictionary_of(a=1, b=1, c=1)
    truncated = TruncatedDictionary(wrapped, 6)
    assert isinstance(truncated, Dictionary)
    assert len(truncated) == 6
    assert [truncated[i] for i in (4, 5, 6)] == ["a", "b", "<unk>"]
    assert truncated.index("b") == 5
    assert truncated.index("c") == truncated.unk()
    assert len(TruncatedDictionary(wrapped, 100)) == len(wrapped) == 7
    assert len(pickle.loads(pickle.dumps(truncated))) == 6
