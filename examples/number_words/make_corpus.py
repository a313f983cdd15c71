"""Number words in German and English, as a parallel corpus: train/valid/test .de and .en.

    python make_corpus.py FOLDER

German counts the unit before the ten (einundzwanzig: one-and-twenty) and writes everything below a million in one word
(dreihunderteinundzwanzigtausendfünf). English is American: hyphens, no "and" (three hundred twenty-one thousand five).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

LARGEST = 99_999_999

DE_SMALL = [
    *("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf"),
    *("dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn"),
]
DE_TENS = ["", "", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]
EN_SMALL = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
EN_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def check(number: int) -> None:
    if not 0 <= number <= LARGEST:
        raise ValueError(f"{number} is not in 0 ... {LARGEST:,}")


def german(number: int) -> str:
    """``number`` in words. Raises ValueError outside of 0 ... 99,999,999."""
    check(number)
    millions, rest = divmod(number, 1_000_000)
    words = []
    if millions:
        words.append("eine Million" if millions == 1 else f"{german_below_1000(millions)} Millionen")
    thousands, units = divmod(rest, 1000)
    word = f"{german_below_1000(thousands, last_one='ein')}tausend" if thousands else ""
    if units:
        word += german_below_1000(units)
    if word:
        words.append(word)
    return " ".join(words) or DE_SMALL[0]


def german_below_1000(number: int, last_one: str = "eins") -> str:
    """``number``, from 1 to 999. ``last_one`` is the form of a final 1: eins, but eintausend."""
    hundreds, rest = divmod(number, 100)
    word = f"{german_unit(hundreds)}hundert" if hundreds else ""
    if rest == 1:
        return word + last_one
    if rest < 20:
        return word + (DE_SMALL[rest] if rest else "")
    tens, unit = divmod(rest, 10)
    return word + (f"{german_unit(unit)}und" if unit else "") + DE_TENS[tens]


def german_unit(unit: int) -> str:
    """A digit in front of something: einhundert, einundzwanzig."""
    return "ein" if unit == 1 else DE_SMALL[unit]


def english(number: int) -> str:
    """``number`` in words. Raises ValueError outside of 0 ... 99,999,999."""
    check(number)
    words = []
    for size, name in ((1_000_000, "million"), (1000, "thousand"), (1, "")):
        group, number = divmod(number, size)
        if group:
            words += [english_below_1000(group), name]
    return " ".join(filter(None, words)) or EN_SMALL[0]


def english_below_1000(number: int) -> str:
    """``number``, from 1 to 999."""
    hundreds, rest = divmod(number, 100)
    words = [EN_SMALL[hundreds], "hundred"] if hundreds else []
    tens, unit = divmod(rest, 10)
    if rest >= 20:
        words.append(EN_TENS[tens] + (f"-{EN_SMALL[unit]}" if unit else ""))
    elif rest:
        words.append(EN_SMALL[rest])
    return " ".join(words)


def sample_number(rng: random.Random) -> int:
    """A number from 100 up: every length is as likely as any other, and so are round numbers and full ones."""
    digits = rng.randint(3, len(str(LARGEST)))
    share_of_zeros = rng.choice((0.0, 0.25, 0.6))
    rest = (0 if rng.random() < share_of_zeros else rng.randint(0, 9) for _ in range(digits - 1))
    return int("".join(map(str, [rng.randint(1, 9), *rest])))


def splits(train: int, valid: int, test: int, seed: int) -> dict[str, list[int]]:
    """Disjoint sets of distinct numbers. All those below 100 are for training: they are the words themselves."""
    rng = random.Random(seed)
    numbers: dict[int, None] = {}
    while len(numbers) < train - 100 + valid + test:
        numbers[sample_number(rng)] = None
    shuffled = list(numbers)
    rng.shuffle(shuffled)
    held_out = valid + test
    training = [*range(100), *shuffled[held_out:]]
    rng.shuffle(training)
    return {"train": training, "valid": shuffled[:valid], "test": shuffled[valid:held_out]}


def pairs(numbers: list[int]) -> Iterator[tuple[str, str]]:
    for number in numbers:
        yield german(number), english(number)


def write_corpus(folder: Path, train: int, valid: int, test: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in splits(train, valid, test, seed).items():
        with (
            open(folder / f"{name}.de", "w", encoding="utf-8") as de,
            open(folder / f"{name}.en", "w", encoding="utf-8") as en,
        ):
            for german_words, english_words in pairs(numbers):
                print(german_words, file=de)
                print(english_words, file=en)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write number words in German and English as a parallel corpus.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=20_000, help="number of training pairs (default: %(default)s)")
    parser.add_argument("--valid", type=int, default=500, help="number of validation pairs (default: %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="number of test pairs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_corpus(args.folder, args.train, args.valid, args.test, args.seed)


if __name__ == "__main__":
    main()
