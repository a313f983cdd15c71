"""Learn a joint BPE segmentation of a parallel corpus with subword-nmt, and apply it to every split.

    python learn_bpe.py CORPUS FOLDER

CORPUS has train/valid/test .de and .en; FOLDER gets the same files segmented, and the merges in ``codes``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path

from subword_nmt.apply_bpe import BPE
from subword_nmt.learn_bpe import learn_bpe


def learn(corpus: Path, codes: Path, merges: int) -> None:
    """Learn ``merges`` merges from the training text of both languages together."""
    lines = [line for language in ("de", "en") for line in read_lines(corpus / f"train.{language}")]
    codes.parent.mkdir(parents=True, exist_ok=True)
    # subword-nmt draws a progress bar of its own, which a few seconds do not need.
    with open(codes, "w", encoding="utf-8") as file, contextlib.redirect_stderr(io.StringIO()):
        learn_bpe(lines, file, merges)


def apply(corpus: Path, folder: Path, codes: Path) -> None:
    with open(codes, encoding="utf-8") as file:
        bpe = BPE(file)
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            segmented = (bpe.process_line(line) for line in read_lines(corpus / f"{split}.{language}"))
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in segmented), encoding="utf-8")


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn a joint BPE segmentation and apply it.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--merges", type=int, default=200, help="number of merges (default: %(default)s)")
    args = parser.parse_args()
    learn(args.corpus, args.folder / "codes", args.merges)
    apply(args.corpus, args.folder, args.folder / "codes")


if __name__ == "__main__":
    main()
