"""CTranslate2 on pyseq's data and checkpoint: ``python -m benchmarks.ctranslate2_child COMPUTE_TYPE [options]``.

The options are those of pyseq-generate. As many workers of one thread as torch has threads here. Prints the best
hypothesis of each sentence as pyseq-generate does; its figures are of the translating alone, with the model loaded and
the sentences at hand.
"""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from . import ctranslate2_model
from .harness import Unavailable
from .processes import tell


def build(argv: list[str]) -> tuple[Any, Any, Any]:
    """pyseq's options, its task with the sentences loaded, and its model."""
    from pyseq.cli.evaluation import load_models
    from pyseq.cli.options import read_options
    from pyseq.config.parser import get_generation_parser
    from pyseq.tasks import setup_task

    options = read_options(get_generation_parser, argv)
    assert options is not None
    cfg, _ = options
    task = setup_task(cfg.task)
    (model,), saved = load_models(cfg, task, torch.device("cpu"))
    task.load_dataset(cfg.dataset.gen_subset, task_cfg=saved.task)
    return cfg, task, model


def sources(cfg: Any, task: Any) -> list[list[str]]:
    """The sentences as symbols, without the ends, which it adds itself."""
    data, dictionary = task.dataset(cfg.dataset.gen_subset).src, task.source_dictionary
    return [[dictionary[token] for token in data[number][:-1]] for number in range(len(data))]


def search(cfg: Any) -> dict[str, Any]:
    """The options of the search. Raises Unavailable for a length that depends on the source's."""
    generation = cfg.generation
    if generation.max_len_a:
        raise Unavailable("CTranslate2 has no --max-len-a")
    return {
        "beam_size": generation.beam,
        "length_penalty": generation.lenpen,
        "max_input_length": 0,
        "min_decoding_length": generation.min_len,
        "max_decoding_length": generation.max_len_b + 1,  # the end of sentence counts there
        "max_batch_size": cfg.dataset.max_tokens,
        "batch_type": "tokens",  # it sorts by length
        "return_scores": True,
    }


def load(model: Any, task: Any, compute_type: str) -> Any:
    ctranslate2 = importlib.import_module("ctranslate2")
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "model"
        ctranslate2_model.convert(model, task, converted)
        return ctranslate2.Translator(
            str(converted), "cpu", compute_type=compute_type, inter_threads=torch.get_num_threads(), intra_threads=1
        )


def line(number: int, found: Any, bpe_symbol: str | None) -> str:
    from pyseq.data.post_process import post_process

    text = post_process(" ".join(found.hypotheses[0]), bpe_symbol)
    return f"H-{number}\t{found.scores[0] / math.log(2)}\t{text}"


def main(argv: list[str]) -> None:
    compute_type, *options = argv
    cfg, task, model = build(options)
    sentences, how = sources(cfg, task), search(cfg)
    translator = load(model, task, compute_type)
    begin = time.perf_counter()
    results = translator.translate_batch(sentences, **how)
    seconds = time.perf_counter() - begin
    for number, found in enumerate(results):
        print(line(number, found, cfg.common_eval.post_process))
    tell({"seconds": seconds, "amount": len(sentences)})


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Unavailable as why:
        sys.exit(f"error: {why}")
