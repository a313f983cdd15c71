"""The demo's corpus is correct German and English, and no held-out number is in the training text."""

from __future__ import annotations

import importlib.util
import random
import re
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "number_words"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"number_words_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


corpus = load("make_corpus")

# Written by hand.
KNOWN = {
    0: ("null", "zero"),
    1: ("eins", "one"),
    11: ("elf", "eleven"),
    16: ("sechzehn", "sixteen"),
    17: ("siebzehn", "seventeen"),
    20: ("zwanzig", "twenty"),
    21: ("einundzwanzig", "twenty-one"),
    30: ("dreißig", "thirty"),
    66: ("sechsundsechzig", "sixty-six"),
    77: ("siebenundsiebzig", "seventy-seven"),
    99: ("neunundneunzig", "ninety-nine"),
    100: ("einhundert", "one hundred"),
    101: ("einhunderteins", "one hundred one"),
    112: ("einhundertzwölf", "one hundred twelve"),
    345: ("dreihundertfünfundvierzig", "three hundred forty-five"),
    1000: ("eintausend", "one thousand"),
    1001: ("eintausendeins", "one thousand one"),
    2021: ("zweitausendeinundzwanzig", "two thousand twenty-one"),
    21_000: ("einundzwanzigtausend", "twenty-one thousand"),
    101_000: ("einhunderteintausend", "one hundred one thousand"),
    321_005: ("dreihunderteinundzwanzigtausendfünf", "three hundred twenty-one thousand five"),
    1_000_000: ("eine Million", "one million"),
    1_000_001: ("eine Million eins", "one million one"),
    2_000_000: ("zwei Millionen", "two million"),
    21_060_030: ("einundzwanzig Millionen sechzigtausenddreißig", "twenty-one million sixty thousand thirty"),
    99_999_999: (
        "neunundneunzig Millionen neunhundertneunundneunzigtausendneunhundertneunundneunzig",
        "ninety-nine million nine hundred ninety-nine thousand nine hundred ninety-nine",
    ),
}  # fmt: skip

# The parsers below read words back with grammars of their own: regular expressions, no table shared with the corpus.
DE_DIGITS = "eins|zwei|drei|vier|fünf|sechs|sieben|acht|neun"
DE_BELOW_100 = {
    word: value
    for value, word in enumerate(
        f"{DE_DIGITS}|zehn|elf|zwölf|dreizehn|vierzehn|fünfzehn|sechzehn|siebzehn|achtzehn|neunzehn".split("|"), start=1
    )
}
DE_TENS = dict(
    zip(["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"], range(20, 100, 10))
)


def parse_german_below_1000(word: str, one: str) -> int:
    """``one`` is how a final 1 has to be spelt."""
    match = re.fullmatch(r"(?:(ein|zwei|drei|vier|fünf|sechs|sieben|acht|neun)hundert)?(.*)", word)
    assert match
    hundreds = 0 if match[1] is None else 1 if match[1] == "ein" else DE_BELOW_100[match[1]]
    rest = match[2]
    if rest == "":
        assert hundreds
        return 100 * hundreds
    if rest in ("ein", "eins", "eine"):
        assert rest == one, f"{word}: expected {one}"
        return 100 * hundreds + 1
    if rest in DE_BELOW_100:
        return 100 * hundreds + DE_BELOW_100[rest]
    unit, und, tens = rest.rpartition("und")
    assert bool(und) == bool(unit) and unit != "eins"
    return 100 * hundreds + DE_TENS[tens] + (0 if not unit else 1 if unit == "ein" else DE_BELOW_100[unit])


def parse_german(text: str) -> int:
    if text == "null":
        return 0
    match = re.fullmatch(r"(?:(eine) Million(?: |$)|(\S+) Millionen(?: |$))?(?:(\S+?)tausend)?(\S*)", text)
    assert match, text
    value = 0
    if match[1]:
        value += 1_000_000
    if match[2]:
        assert match[2] not in ("eine", "eins", "ein")
        value += 1_000_000 * parse_german_below_1000(match[2], one="(none: the corpus ends before 101 million)")
    if match[3]:
        value += 1000 * parse_german_below_1000(match[3], one="ein")
    if match[4]:
        value += parse_german_below_1000(match[4], one="eins")
    return value


EN_WORDS = {
    **dict(zip(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], range(1, 11))),
    **dict(
        zip(
            ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"],
            range(11, 20),
        )
    ),
    **dict(zip(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], range(20, 100, 10))),
}


def parse_english(text: str) -> int:
    if text == "zero":
        return 0
    total = group = 0
    sizes = []
    for word in text.split(" "):
        if word in ("million", "thousand"):
            size = 1000 if word == "thousand" else 1_000_000
            assert 0 < group < 1000 and all(size < s for s in sizes), text
            sizes.append(size)
            total, group = total + group * size, 0
        elif word == "hundred":
            assert 0 < group < 10, text
            group *= 100
        elif "-" in word:
            tens, unit = word.split("-")
            assert EN_WORDS[tens] % 10 == 0 and EN_WORDS[tens] >= 20 and EN_WORDS[unit] < 10 and group % 100 == 0, text
            group += EN_WORDS[tens] + EN_WORDS[unit]
        else:
            assert group % 100 == 0, text
            group += EN_WORDS[word]
    return total + group


def some_numbers() -> list[int]:
    rng = random.Random(3)
    edges = [k * 10**e + d for k in (1, 2, 11, 21, 99) for e in range(8) for d in (-1, 0, 1)]
    many = [*range(2100), *edges, *(corpus.sample_number(rng) for _ in range(20_000)), corpus.LARGEST]
    return [n for n in many if 0 <= n <= corpus.LARGEST]


@pytest.mark.parametrize("number", KNOWN)
def test_known_words(number: int) -> None:
    assert (corpus.german(number), corpus.english(number)) == KNOWN[number]


@pytest.mark.parametrize("number", KNOWN)
def test_the_parsers_themselves(number: int) -> None:
    german, english = KNOWN[number]
    assert parse_german(german) == parse_english(english) == number


def test_words_read_back_as_the_number() -> None:
    for number in some_numbers():
        assert parse_german(corpus.german(number)) == number
        assert parse_english(corpus.english(number)) == number


def test_out_of_range() -> None:
    for number in (-1, corpus.LARGEST + 1):
        for words in (corpus.german, corpus.english):
            with pytest.raises(ValueError, match="not in 0"):
                words(number)


def test_splits_are_disjoint_and_deterministic_and_cover_every_length() -> None:
    splits = corpus.splits(train=6000, valid=200, test=400, seed=1)
    assert splits == corpus.splits(train=6000, valid=200, test=400, seed=1)
    assert {name: len(numbers) for name, numbers in splits.items()} == {"train": 6000, "valid": 200, "test": 400}
    together = [number for numbers in splits.values() for number in numbers]
    assert len(set(together)) == len(together) == 6600
    assert set(range(100)) <= set(splits["train"])
    for numbers in splits.values():
        lengths = [len(str(n)) for n in numbers]
        assert all(lengths.count(digits) >= len(numbers) / 20 for digits in range(4, 9)) and 3 in lengths
        assert any(n % 1000 == 0 for n in numbers) and any("0" not in str(n) for n in numbers)


def test_files_hold_the_same_number_on_every_line(tmp_path: Path) -> None:
    corpus.write_corpus(tmp_path, train=600, valid=20, test=30, seed=2)
    seen: dict[int, str] = {}
    for split, size in (("train", 600), ("valid", 20), ("test", 30)):
        german = (tmp_path / f"{split}.de").read_text(encoding="utf-8").splitlines()
        english = (tmp_path / f"{split}.en").read_text(encoding="utf-8").splitlines()
        assert len(german) == len(english) == size
        for de, en in zip(german, english):
            number = parse_german(de)
            assert number == parse_english(en) and number not in seen, f"{number} is in {split} and {seen.get(number)}"
            seen[number] = split


def test_every_subword_of_held_out_text_is_in_the_training_text(tmp_path: Path) -> None:
    pytest.importorskip("subword_nmt")
    bpe = load("learn_bpe")
    corpus.write_corpus(tmp_path / "corpus", train=1500, valid=50, test=100, seed=1)
    bpe.learn(tmp_path / "corpus", tmp_path / "bpe" / "codes", merges=80)
    bpe.apply(tmp_path / "corpus", tmp_path / "bpe", tmp_path / "bpe" / "codes")
    for language in ("de", "en"):
        train, test = (
            (tmp_path / "bpe" / f"{split}.{language}").read_text(encoding="utf-8") for split in ("train", "test")
        )
        assert set(test.split()) <= set(train.split())
        assert test.replace("@@ ", "") == (tmp_path / "corpus" / f"test.{language}").read_text(encoding="utf-8")
        assert "@@ " in test


def test_results_file_is_read_in_the_order_of_the_test_set(tmp_path: Path) -> None:
    (tmp_path / "generate-test.txt").write_text(
        "S-1\teins\nT-1\tone\nH-1\t-0.5\tone\nD-1\t-0.5\tone\nP-1\t-0.1 -0.2\n"
        "S-0\tzwei\nT-0\ttwo\nH-0\t-0.7\ttoo\nD-0\t-0.7\ttoo\nP-0\t-0.1\nGenerate test with beam=5: BLEU4 = 1\n"
    )
    assert load("demo").read_generated(tmp_path / "generate-test.txt") == (
        ["zwei", "eins"],
        ["two", "one"],
        ["too", "one"],
    )


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "metrics.jsonl").write_text(
        '{"tag": "train_inner", "epoch": 1, "num_updates": 10, "loss": 3.5, "lr": 0.1, "gnorm": 2.0}\n'
        '{"tag": "valid", "epoch": 1, "num_updates": 10, "loss": 3.2}\n'
    )
    load("plot_curves").plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
