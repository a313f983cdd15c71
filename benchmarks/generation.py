"""Generation speed: ``python -m benchmarks.generation --reference DIR``.

DIR is the reference folder, whose test set is translated with its checkpoint (or with ``--path FILE``) at beam 5. Every
run is a process of its own that runs pyseq-generate; the figure is the sentences a second that it reports, start-up not
counted. Cases are interleaved and repeated; medians are printed, and whether all cases give the same hypotheses.
``--json FILE`` keeps every sample.

CTranslate2 takes part where it is installed and ``--ctranslate2 DIR`` names a converted model: its converter reads
checkpoints with fairseq itself.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from . import machine

OPTIONS = shlex.split("--beam 5 --remove-bpe --max-tokens 4096 --cpu --no-progress-bar")
SPEED = re.compile(r"Translated ([\d,]+) sentences .*\(([\d.]+) sentences/s")
# Environment and options of each case: as it comes, one batch at a time, one core, every operation in plain torch.
CASES: dict[str, tuple[dict[str, str], list[str]]] = {
    "default": ({}, []),
    "one worker": ({}, ["--num-generation-workers", "1"]),
    "one thread": ({"OMP_NUM_THREADS": "1"}, ["--num-generation-workers", "1"]),
    "torch": ({"PYSEQ_BACKEND": "torch"}, []),
    "torch, one worker": ({"PYSEQ_BACKEND": "torch"}, ["--num-generation-workers", "1"]),
}
CTRANSLATE2 = "CTranslate2"


def pyseq_case(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One run of pyseq-generate: sentences a second, CPU seconds with start-up, and a digest of the hypotheses."""
    environment, options = CASES[name]
    path = args.path or args.reference / "checkpoints" / "update372.pt"
    command = [sys.executable, "-m", "pyseq.cli.generate", str(args.reference / "data-bin"), "--path", str(path)]
    command += [*OPTIONS, *options, *shlex.split(args.options)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = SPEED.search(run.stdout + run.stderr)
    if run.returncode or said is None:
        raise SystemExit(f"{name}: {shlex.join(command)} failed:\n{run.stdout[-500:]}{run.stderr[-2000:]}")
    hypotheses = sorted(line.split("\t")[::2] for line in run.stdout.splitlines() if line.startswith("H-"))
    return {
        "sentences_per_second": float(said[2]),
        "sentences": int(said[1].replace(",", "")),
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "hypotheses": hashlib.sha256(json.dumps(hypotheses).encode()).hexdigest()[:16],
    }


def why_no_peer(args: argparse.Namespace) -> str | None:
    """Why CTranslate2 takes no part, if it does not."""
    if importlib.util.find_spec("ctranslate2") is None:
        return "ctranslate2 is not installed"
    return None if args.ctranslate2 else "no --ctranslate2 DIR with a converted model"


def peer_case(args: argparse.Namespace) -> dict[str, Any]:
    """One pass of CTranslate2 over the same sentences in fp32, a worker of one thread for each core."""
    ctranslate2 = importlib.import_module("ctranslate2")
    text = (args.reference / "text" / "test_2016_flickr.en").read_text(encoding="utf-8")
    sources = [line.split() for line in text.splitlines()]
    workers = len(os.sched_getaffinity(0))
    translator = ctranslate2.Translator(
        str(args.ctranslate2), device="cpu", compute_type="float32", inter_threads=workers, intra_threads=1
    )
    translator.translate_batch(sources[:8], beam_size=5)
    begin = time.perf_counter()
    translator.translate_batch(sources, beam_size=5, max_batch_size=4096, batch_type="tokens")
    return {"sentences_per_second": len(sources) / (time.perf_counter() - begin), "sentences": len(sources)}


def table(samples: dict[str, list[dict[str, Any]]]) -> str:
    """Medians by case, and pair by pair how many times as fast as the last of pyseq's cases that ran."""
    names = [name for name in samples if name != CTRANSLATE2]
    base = [sample["sentences_per_second"] for sample in samples[names[-1]]]
    lines = [f"{'case':<20}{'sentences/s':>12}{'x ' + names[-1]:>22}{'CPU s':>9}  hypotheses"]
    for name, found in samples.items():
        speeds = [sample["sentences_per_second"] for sample in found]
        ratio = statistics.median(speed / other for speed, other in zip(speeds, base))
        cpu = [sample["cpu_seconds"] for sample in found if "cpu_seconds" in sample]
        spent = f"{statistics.median(cpu):.1f}" if cpu else "-"
        digests = ", ".join(sorted({sample.get("hypotheses", "-") for sample in found}))
        lines.append(f"{name:<20}{statistics.median(speeds):>12.1f}{ratio:>22.2f}{spent:>9}  {digests}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="the reference folder")
    parser.add_argument("--path", type=Path, help="another checkpoint for the same dictionaries")
    parser.add_argument("--options", default="", help="more options of pyseq-generate, as one argument")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="these cases alone")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case")
    parser.add_argument("--ctranslate2", type=Path, metavar="DIR", help="a model converted for CTranslate2")
    parser.add_argument("--json", type=Path, help="where every sample is kept")
    args = parser.parse_args(argv)
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in args.only}
    missing = why_no_peer(args)
    if missing is None:
        samples[CTRANSLATE2] = []
    for turn in range(args.repeats):
        for name, found in samples.items():
            found.append(peer_case(args) if name == CTRANSLATE2 else pyseq_case(name, args))
            speed = found[-1]["sentences_per_second"]
            print(f"[{turn + 1}/{args.repeats}] {name}: {speed:.1f} sentences/s", file=sys.stderr, flush=True)
    print(table(samples))
    if missing is not None:
        print(f"{CTRANSLATE2}: not run: {missing}")
    if args.json:
        result = {**machine.describe(torch.device("cpu")), "options": args.options, "samples": samples}
        args.json.write_text(json.dumps(result | {"skipped": {CTRANSLATE2: missing}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
