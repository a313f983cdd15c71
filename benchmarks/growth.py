"""How a run grows with its corpus: start, speed and memory from ten thousand to ten million sentence pairs.

    python -m benchmarks.growth [--sentences 10000 100000 1000000 10000000] [--rounds 3] [--json FILE]

The corpora are synthetic and written straight as .bin and .idx: sentence lengths are log-normal around 16 tokens, a
target is as long as its source give or take a third, tokens are uint16. Ten million pairs take about 900 MB in
``--folder``. A run is a process of its own, with a very small model, and the sizes take turns. Measured are

- opening: the index files read and checked, samples ordered, cut into batches, the batches of the first epoch shuffled;
- real target tokens a second, and the share of the time spent waiting for data;
- memory that belongs to the process (RssAnon: not the pages of the mapped file) before opening, and after;
- resuming: the place in the epoch put into a state, and an iterator that goes on from it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, EOS = 8000, 2
PIECE = 1_000_000  # sentences written at a time
MEDIAN_LENGTH, SPREAD, LONGEST = 16, 0.5, 250
MODEL = shlex.split(
    "--source-lang en --target-lang de --arch transformer_tiny --encoder-layers 1 --decoder-layers 1 "
    "--share-all-embeddings --criterion cross_entropy --optimizer adam --lr 1e-3 --max-tokens 4096 --cpu --seed 1 "
    "--no-save --disable-validation --log-format none"
)
WARM_UP = 10


def write_corpus(folder: Path, sentences: int) -> None:
    """``train.en-de.{en,de}`` and dictionaries. The same number of sentences gives the same corpus."""
    from pyseq.data.dictionary import Dictionary
    from pyseq.data.indexed_builder import MMapDatasetBuilder

    folder.mkdir(parents=True)
    dictionary = Dictionary()
    for word in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(f"w{word}")
    draw = np.random.RandomState(sentences)
    names = [f"{folder}/train.en-de.{lang}" for lang in ("en", "de")]
    with (
        MMapDatasetBuilder(f"{names[0]}.bin", np.uint16) as source,
        MMapDatasetBuilder(f"{names[1]}.bin", np.uint16) as target,
    ):
        for begin in range(0, sentences, PIECE):
            count = min(PIECE, sentences - begin)
            lengths = np.exp(draw.normal(np.log(MEDIAN_LENGTH), SPREAD, count))
            add_sentences(source, draw, lengths)
            add_sentences(target, draw, lengths * draw.uniform(0.67, 1.33, count))
        for name, builder in zip(names, (source, target)):
            builder.finalize(f"{name}.idx")
    for lang in ("en", "de"):
        dictionary.save(f"{folder}/dict.{lang}.txt")


def add_sentences(builder: Any, draw: np.random.RandomState, lengths: Any) -> None:
    sizes = np.clip(lengths, 2, LONGEST).astype(np.int32)
    tokens = draw.randint(4, VOCABULARY, sizes.sum()).astype(np.uint16)
    tokens[np.cumsum(sizes) - 1] = EOS
    builder.add_items(tokens, sizes)


def own_memory() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def child(argv: list[str]) -> None:
    """One run in this process; print one JSON object."""
    from pyseq import metrics, utils
    from pyseq.cli.plugins import load_plugins
    from pyseq.cli.train import build
    from pyseq.config.config import config_from_args
    from pyseq.config.parser import get_training_parser, parse_args_and_arch
    from pyseq.training.epochs import Epochs
    from pyseq.training.loop import train
    from pyseq.training.monitor import Monitor
    from pyseq.training.saving import Saver

    load_plugins()
    cfg = config_from_args(parse_args_and_arch(get_training_parser(), argv))
    utils.set_all_seeds(1)
    metrics.reset()
    trainer = build(cfg)
    before, start = own_memory(), time.perf_counter()
    epochs = Epochs(cfg, trainer.task, trainer.model)
    epochs.iterator.next_epoch_itr()
    opening, memory = time.perf_counter() - start, own_memory()
    with Monitor(trainer, epochs, Saver(cfg.checkpoint)) as monitor:
        marks = record(monitor)
        train(trainer, epochs, monitor)
    start = time.perf_counter()
    epochs.load_state_dict({**epochs.state_dict(), "epoch": 1, "iterations_in_epoch": WARM_UP})
    next(epochs.iterator.next_epoch_itr())
    resuming = time.perf_counter() - start
    first, last = marks[WARM_UP - 1], marks[-1]
    seconds = last["time"] - first["time"]
    print(json.dumps({
        "opening": opening,
        "tokens_per_second": sum(mark["tokens"] for mark in marks[WARM_UP:]) / seconds,
        "data_wait": (last["waited"] - first["waited"]) / seconds,
        "memory_before": before,
        "memory": memory,
        "bytes_per_sentence": (memory - before) / len(trainer.task.dataset("train")),
        "resuming": resuming,
    }))  # fmt: skip


def record(monitor: Any) -> list[dict[str, float]]:
    """After each update: the time, its target tokens, and the time waited for data so far."""
    marks: list[dict[str, float]] = []
    after_update, log_update = monitor.after_update, monitor.trainer._log_update
    tokens = 0

    def with_tokens(update: Any, norm: Any) -> None:
        nonlocal tokens
        tokens = sum(int(log["ntokens"]) for log in update.logging_outputs)
        log_update(update, norm)

    def at_end(epoch: Any) -> None:
        after_update(epoch)
        marks.append({"time": time.perf_counter(), "tokens": tokens, "waited": epoch.updates.wait_seconds})

    monitor.trainer._log_update, monitor.after_update = with_tokens, at_end
    return marks


def measure(data: Path, updates: int, extra: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        argv = [str(data), *MODEL, "--save-dir", folder, "--max-update", str(updates), *extra]
        command = [sys.executable, "-m", "benchmarks.growth", "--child", *argv]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(result.stderr[-2000:])
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description="Start, speed and memory by the size of the corpus.")
    parser.add_argument("--sentences", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--updates", type=int, default=50, help=f"of each run; the first {WARM_UP} are not counted")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each size")
    parser.add_argument("--folder", type=Path, help="where the corpora are written, and removed again")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    args, extra = parser.parse_known_args()
    runs: dict[int, list[dict[str, float]]] = {sentences: [] for sentences in args.sentences}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for sentences in runs:
            print(f"  writing {sentences:,} sentences", file=sys.stderr)
            write_corpus(Path(folder) / str(sentences), sentences)
        for number in range(args.rounds):
            for sentences, samples in runs.items():
                samples.append(measure(Path(folder) / str(sentences), args.updates, extra))
                print(f"  round {number + 1}, {sentences:,} sentences: {samples[-1]}", file=sys.stderr)
    print("| sentences | opening s | tokens/s | data wait % | memory MB | bytes a sentence | resuming s |")
    print("|" + "---|" * 7)
    for sentences, samples in runs.items():
        m = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
        print(f"| {sentences:,} | {m['opening']:.2f} | {m['tokens_per_second']:.0f} | {100 * m['data_wait']:.1f} | "
              f"{m['memory'] / 1e6:.0f} | {m['bytes_per_sentence']:.1f} | {m['resuming']:.2f} |")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"updates": args.updates, "argv": extra, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
