"""Raw Multi30k to subwords: Moses normalisation and tokenisation, lower case, a joint BPE of 10,000 merges.

    python prepare.py CORPUS FOLDER

CORPUS has train, val and test_2016_flickr, each .en and .de, plain or .gz. FOLDER gets train, valid and test in those
languages, and ``codes``.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from pathlib import Path

from sacremoses import MosesPunctNormalizer, MosesTokenizer
from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe

SPLITS = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
LANGUAGES = ("en", "de")


def read_lines(corpus: Path, name: str) -> list[str]:
    """The lines of ``name``, or of ``name.gz``."""
    plain, packed = corpus / name, corpus / f"{name}.gz"
    if plain.exists():
        return plain.read_text(encoding="utf-8").splitlines()
    if packed.exists():
        with gzip.open(packed, "rt", encoding="utf-8") as file:
            return file.read().splitlines()
    sys.exit(f"{corpus} has neither {name} nor {name}.gz: get the raw text of task 1 from github.com/multi30k/dataset")


def tokenized(lines: list[str], language: str) -> list[str]:
    normalizer, tokenizer = MosesPunctNormalizer(language), MosesTokenizer(language)
    return [tokenizer.tokenize(normalizer.normalize(line), escape=False, return_str=True).lower() for line in lines]


def prepare(corpus: Path, folder: Path, merges: int) -> None:
    text = {
        (split, language): tokenized(read_lines(corpus, f"{name}.{language}"), language)
        for split, name in SPLITS.items()
        for language in LANGUAGES
    }
    for split in SPLITS:
        if len(text[split, "en"]) != len(text[split, "de"]):
            sys.exit(f"{corpus}: {SPLITS[split]}.en and {SPLITS[split]}.de differ in their number of lines")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "codes", "w", encoding="utf-8") as file:
        learn_bpe([line for language in LANGUAGES for line in text["train", language]], file, merges)
    with open(folder / "codes", encoding="utf-8") as file:
        bpe = BPE(file)
    for (split, language), lines in text.items():
        segmented = "".join(f"{bpe.process_line(line)}\n" for line in lines)
        (folder / f"{split}.{language}").write_text(segmented, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokenise Multi30k and split it into subwords.")
    parser.add_argument("corpus", type=Path, help="folder with train, val and test_2016_flickr, .en and .de (or .gz)")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--merges", type=int, default=10_000, help="BPE merges (default: %(default)s)")
    args = parser.parse_args()
    prepare(args.corpus, args.folder, args.merges)


if __name__ == "__main__":
    main()
