"""From nothing to translations: number words from German to English, through the installed commands.

    make demo        or        python examples/number_words/demo.py [--bin .venv/bin] [--out demo]

Makes the corpus, learns BPE, then runs pyseq-preprocess, pyseq-train, pyseq-generate and pyseq-score. Prints BLEU and
the share of sentences that are right to the letter, of 1,000 numbers that are not in the training text.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.path.relpath(Path(__file__).parent))
EXPECTED_EXACT_MATCH = 98.0
SAMPLES = 10


class Demo:
    """The steps of the demo.

    Args:
        out: folder for everything that is made.
        bin: folder of the installed commands, or None to find them on the PATH.
    """

    def __init__(self, out: Path, bin: Path | None) -> None:
        self.out, self.bin = out, bin
        self.corpus, self.bpe, self.data, self.checkpoints = (
            out / name for name in ("corpus", "bpe", "data-bin", "checkpoints")
        )

    def make_corpus(self) -> None:
        self.script("make_corpus.py", self.corpus)
        self.script("learn_bpe.py", self.corpus, self.bpe)

    def preprocess(self) -> None:
        prefixes = [part for split in ("train", "valid", "test") for part in (f"--{split}pref", self.bpe / split)]
        options = ["--joined-dictionary", "--destdir", self.data]
        self.command("pyseq-preprocess", "-s", "de", "-t", "en", *prefixes, *options)

    def train(self) -> None:
        self.command("pyseq-train", self.data, "--config", HERE / "train.yaml", "--save-dir", self.checkpoints)
        self.script("plot_curves.py", self.checkpoints / "metrics.jsonl", self.out / "curves.png")

    def generate(self) -> None:
        best = self.checkpoints / "checkpoint_best.pt"
        # The search ends with its fifth finished hypothesis if the beam is 5. This model is so sure that the others are
        # all far-fetched, and now and then five of them, shorter by a token, are finished before the right one.
        options = ["--beam", 1, "--max-tokens", 4096, "--remove-bpe", "--results-path", self.out]
        self.command("pyseq-generate", self.data, "-s", "de", "-t", "en", "--path", best, *options)

    def score(self) -> float:
        """Print what came out; returns the percentage of sentences that are right to the letter."""
        sources, references, outputs = read_generated(self.out / "generate-test.txt")
        for name, lines in (("test.ref", references), ("test.out", outputs)):
            (self.out / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.command("pyseq-score", "--sys", self.out / "test.out", "--ref", self.out / "test.ref")
        right = [output == reference for output, reference in zip(outputs, references)]
        print(f"\n{SAMPLES} numbers that are not in the training text, and what the model made of them:")
        for i in sorted(random.Random(0).sample(range(len(right)), SAMPLES)):
            print(f"  {sources[i]}\n    {outputs[i]}" + ("" if right[i] else f"   (should be: {references[i]})"))
        return 100 * sum(right) / len(right)

    def interactive(self) -> list[str]:
        """The command that translates what is typed."""
        name = str(self.bin / "pyseq-interactive") if self.bin else "pyseq-interactive"
        model = ["--path", str(self.checkpoints / "checkpoint_best.pt"), "--beam", "1"]
        bpe = ["--bpe", "subword_nmt", "--bpe-codes", str(self.bpe / "codes"), "--remove-bpe"]
        return [name, str(self.data), "-s", "de", "-t", "en", *model, *bpe]

    def command(self, name: str, *args: object) -> None:
        """Run a console command of pyseq; its output goes where ours goes."""
        found = shutil.which(name, path=str(self.bin) if self.bin else None)
        if found is None:
            where = f"in {self.bin}" if self.bin else "on the PATH"
            sys.exit(f"there is no {name} {where}: run make demo, or pip install '.[demo]'")
        run([name, *map(str, args)], executable=found)

    def script(self, name: str, *args: object) -> None:
        run(["python", str(HERE / name), *map(str, args)], executable=sys.executable)


def run(command: list[str], executable: str) -> None:
    print(f"$ {shlex.join(command)}", flush=True)
    code = subprocess.run([executable, *command[1:]]).returncode
    if code != 0:
        sys.exit(f"{command[0]} failed with exit code {code}")


def read_generated(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Sources, references and outputs in pyseq-generate's results file, in the order of the test set."""
    columns: dict[str, dict[int, str]] = {"S": {}, "T": {}, "D": {}}
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, dash, rest = line.partition("-")
        if kind in columns and dash:
            number, *fields = rest.split("\t")
            columns[kind][int(number)] = fields[-1]
    order = sorted(columns["T"])
    sources, references, outputs = ([columns[kind][i] for i in order] for kind in "STD")
    return sources, references, outputs


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small translation model and look at what it does.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for what is made; emptied first")
    parser.add_argument("--bin", type=Path, help="folder of the pyseq-* commands (default: found on the PATH)")
    args = parser.parse_args()
    if args.out.exists() and not (args.out / "corpus").is_dir():
        sys.exit(f"{args.out} exists and was not made by this demo: choose another --out")
    shutil.rmtree(args.out, ignore_errors=True)
    demo, begin = Demo(args.out, args.bin), time.monotonic()
    for number, step in enumerate((demo.make_corpus, demo.preprocess, demo.train, demo.generate), start=1):
        print(f"\n== {number}/5 {step.__name__.replace('_', ' ')} ({time.monotonic() - begin:.0f} s)", flush=True)
        step()
    print(f"\n== 5/5 score ({time.monotonic() - begin:.0f} s)", flush=True)
    accuracy = demo.score()
    print(f"\nExact match on held-out numbers: {accuracy:.1f} %")
    print(f"Training curves: {args.out / 'curves.png'}")
    print(f"Your own numbers: echo zweiundvierzig | {shlex.join(demo.interactive())}")
    print(f"All in {time.monotonic() - begin:.0f} seconds.")
    if accuracy < EXPECTED_EXACT_MATCH:
        sys.exit(f"That is below the {EXPECTED_EXACT_MATCH:g} % that this recipe reaches: something is wrong.")


if __name__ == "__main__":
    main()
