"""The host data path on one core: binarising, batching, collation, token blocks; compiled, and the same in numpy.

The corpus is invented: sentence lengths are log-normal around 20 tokens (those of news translation data), tokens are
uint16 in a memory map, and samples are visited sorted by length, so that a batch gathers rows from all over the file.
Counted are real tokens, not padding. numpy gets a part of the corpus.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from pyseq.data import batching, collation, token_blocks
from pyseq.data.binarizer import VocabularyBinarizer
from pyseq.data.dictionary import Dictionary

from .. import corpora
from ..harness import Case, Outcome, Side, Unavailable, Work

SENTENCES, QUICK_SENTENCES = 500_000, 2_000
MAX_TOKENS, MULTIPLE, PAD, EOS, BLOCK = 4096, 8, 1, 2, 512
WORDS = 30_000
PART = 20  # one of so many batches: for numpy, and for tensors made one by one


@dataclass(frozen=True)
class Corpus:
    """Sentences in a memory map, and the batches they are visited in."""

    tokens: Any
    starts: Any
    sizes: Any
    batches: list[Any]

    @property
    def num_tokens(self) -> int:
        return int(sum(self.sizes[batch].sum() for batch in self.batches))

    def part(self) -> Corpus:
        return Corpus(self.tokens, self.starts, self.sizes, self.batches[::PART])

    def first(self) -> Corpus:
        return Corpus(self.tokens, self.starts, self.sizes, self.batches[:3])


def make_corpus(folder: Path, sentences: int) -> Corpus:
    random = np.random.default_rng(1)
    sizes = np.clip(random.lognormal(3.0, 0.6, sentences), 2, 200).astype(np.int64)
    random.integers(4, WORDS, sizes.sum(), dtype=np.uint16).tofile(folder / "tokens.bin")
    tokens = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
    order = np.argsort(sizes, kind="stable")
    batches = batching.batch_by_size(order, sizes[order], MAX_TOKENS, None, MULTIPLE)
    return Corpus(tokens, np.cumsum(sizes) - sizes, sizes, batches)


@contextlib.contextmanager
def numpy_only() -> Iterator[None]:
    """The data path without the compiled core."""
    with contextlib.ExitStack() as stack:
        for module in (batching, collation, token_blocks):
            stack.enter_context(mock.patch.object(module, "native", None))
        yield


@dataclass(frozen=True)
class Task:
    """What is measured: work on a corpus, what it gives as one tensor, and how much it is."""

    run: Callable[[Corpus], Any]
    outcome: Callable[[Any], Tensor]
    amount: Callable[[Corpus], float]
    unit: str


def batch(corpus: Corpus) -> Any:
    order = np.concatenate(corpus.batches)
    return batching.batch_by_size(order, corpus.sizes[order], MAX_TOKENS, None, MULTIPLE)


def rows(corpus: Corpus) -> Any:
    """Source (padded on the left) and decoder input (last token first), straight from the memory map."""
    found = None
    for chosen in corpus.batches:
        starts, sizes = corpus.starts[chosen], corpus.sizes[chosen]
        found = (
            collation.collate_rows(corpus.tokens, starts, sizes, PAD, EOS, left_pad=True),
            collation.collate_rows(corpus.tokens, starts, sizes, PAD, EOS, move_eos_to_beginning=True),
        )
    return found


def blocks(mode: str) -> Callable[[Corpus], Any]:
    def run(corpus: Corpus) -> Any:
        sizes = np.ascontiguousarray(corpus.sizes[: sum(map(len, corpus.batches))])
        return token_blocks.token_blocks(sizes, mode, BLOCK)

    return run


def _flat(value: Any) -> Tensor:
    """Every number in arrays, tensors, and lists of them."""
    if isinstance(value, (list, tuple)):
        return torch.cat([_flat(one) for one in value])
    return torch.as_tensor(np.asarray(value)).reshape(-1).double()


def sentences(corpus: Corpus) -> float:
    return float(sum(map(len, corpus.batches)))


TASKS = {
    "batch": Task(batch, _flat, sentences, "sentences"),
    "collate-rows": Task(rows, _flat, lambda corpus: 2 * corpus.num_tokens, "tokens"),
    "blocks-none": Task(blocks("none"), _flat, sentences, "sentences"),
    "blocks-complete": Task(blocks("complete"), _flat, sentences, "sentences"),
}


def need_core() -> None:
    if batching.native is None:
        raise Unavailable("the compiled core is not built: pip install -e . --no-build-isolation")


def of_task(task: Task) -> Callable[[torch.device, bool], Work]:
    def build(device: torch.device, quick: bool) -> Work:
        need_core()
        corpus = make_corpus(corpora.new_scratch_folder(), QUICK_SENTENCES if quick else SENTENCES)
        part, few = corpus.part(), corpus.first()

        def in_numpy(chosen: Corpus) -> Any:
            with numpy_only():
                return task.run(chosen)

        def outcome(run: Callable[[Corpus], Any]) -> Outcome:
            return {"result": task.outcome(run(few))}

        sides = [
            Side("pyseq", lambda: task.run(corpus), outcome=lambda: outcome(task.run), amount=task.amount(corpus)),
            Side("numpy", lambda: in_numpy(part), outcome=lambda: outcome(in_numpy), amount=task.amount(part)),
        ]
        return Work({"sentences": int(sentences(corpus))}, sides, bound=0.0, unit=task.unit, cold=False)

    return build


def tensors(device: torch.device, quick: bool) -> Work:
    """Collation of a LongTensor a sample, as a plug-in's dataset has them; making these is not counted."""
    need_core()
    corpus = make_corpus(corpora.new_scratch_folder(), QUICK_SENTENCES if quick else SENTENCES).part()
    tokens = torch.from_numpy(corpus.tokens.astype(np.int64))
    batches = [[tokens[corpus.starts[i] : corpus.starts[i] + corpus.sizes[i]] for i in b] for b in corpus.batches]

    def run() -> Any:
        return [collation.collate_tokens(batch, PAD, EOS) for batch in batches]

    def in_numpy() -> Any:
        with numpy_only():
            return run()

    def padded() -> Any:
        return [torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=PAD) for batch in batches]

    sides = [
        Side(name, one, outcome=lambda one=one: {"result": _flat(one())}, amount=corpus.num_tokens)  # type: ignore[misc]
        for name, one in (("pyseq", run), ("numpy", in_numpy), ("pad_sequence", padded))
    ]
    return Work({"sentences": int(sentences(corpus))}, sides, bound=0.0, unit="tokens", cold=False)


def binarise(device: torch.device, quick: bool) -> Work:
    """A text file to token ids; a dictionary lookup in Python is the peer."""
    need_core()
    random = np.random.default_rng(1)
    dictionary = Dictionary()
    for number in range(WORDS):
        dictionary.add_symbol(f"w{number}")
    count = QUICK_SENTENCES if quick else SENTENCES // 10
    lengths = np.clip(random.lognormal(3.0, 0.6, count), 2, 200).astype(np.int64)
    ids = np.floor(WORDS ** random.random(lengths.sum())).astype(np.int64) - 1
    text = corpora.new_scratch_folder() / "text"
    lines = np.split(ids, np.cumsum(lengths)[:-1])
    text.write_text("".join(" ".join(f"w{i}" for i in line) + "\n" for line in lines))
    binarizer = VocabularyBinarizer(dictionary)

    def ours() -> Any:
        return binarizer.binarize_piece(str(text), 0, text.stat().st_size).tokens

    def in_python() -> Any:
        found = []
        with text.open(encoding="utf-8") as file:
            for line in file:
                found += [dictionary.indices.get(word, dictionary.unk_index) for word in line.split()]
                found.append(dictionary.eos_index)
        return np.array(found, dtype=np.int32)

    tokens = float(lengths.sum() + count)
    sides = [
        Side("pyseq", ours, outcome=lambda: {"tokens": _flat(ours())}, amount=tokens),
        Side("dict.get in Python", in_python, outcome=lambda: {"tokens": _flat(in_python())}, amount=tokens),
    ]
    return Work({"lines": count, "words": WORDS}, sides, bound=0.0, unit="tokens", cold=False)


CASES = [
    Case("data/binarise", binarise, ("cpu",)),
    Case("data/collate-tensors", tensors, ("cpu",)),
    *(Case(f"data/{name}", of_task(task), ("cpu",)) for name, task in TASKS.items()),
]
