"""A step of a beam search: of the best next tokens of each hypothesis those that end a hypothesis and those that go on.

The candidates of a sentence are the best extensions of its hypotheses. One that is the end of sentence ends its
hypothesis, if it is among the ``beam`` best; the best ``beam`` of the others are the hypotheses of the next step. A
sentence is done when ``beam`` of its hypotheses have ended, or nothing that goes on has a probability.

Sizes: S sentences, at least one, are left of a batch of B, with R = S * width hypotheses, those of a sentence next to
each other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyseq.ops import dispatch

dispatch.register_operation("beam_step", cpp=frozenset({torch.float32}))


class BeamStep(NamedTuple):
    """What a step starts from."""

    lprobs: Tensor  # R x K of the best next tokens of each hypothesis, descending, fp32 on the CPU; nan counts as -inf
    tokens: Tensor  # R x K, int64
    totals: Tensor | None  # R, of the hypotheses so far; None at the first step: all sentences go on then, or none
    sentence: Tensor  # S, int64: which of the batch
    ended: Tensor  # B, int64: how many hypotheses of each sentence have ended; those of this step are added
    beam: int
    eos: int
    most: int  # candidates of a sentence that are looked at: ``beam`` or more, and no more than it has


class NextBeams(NamedTuple):
    """What follows a step, of the S' sentences that go on and the E hypotheses that have ended."""

    totals: Tensor  # S' x beam, sums of log-probabilities; -inf where a row stands for no hypothesis
    tokens: Tensor  # S' x beam
    rows: Tensor  # S' x beam: which of the R hypotheses they extend
    sentences: Tensor  # S': which of the S
    place: Tensor  # E: sentence of the batch * beam + how many of it had ended before
    ended_rows: Tensor  # E: which of the R they extend
    ended_totals: Tensor  # E


def beam_step(step: BeamStep) -> NextBeams:
    """One step. Raises ValueError where sizes do not fit."""
    lprobs, tokens, totals, sentence, ended, beam, eos, most = step
    if dispatch.choose("beam_step", lprobs.device.type, lprobs.dtype) == "torch":
        return reference(step)
    sentences, (rows, count) = sentence.numel(), lprobs.shape
    results = (
        torch.empty(sentences, beam),
        torch.empty(sentences, beam, dtype=torch.int64),
        torch.empty(sentences, beam, dtype=torch.int64),
        torch.empty(sentences, dtype=torch.int64),
        torch.empty(sentences * beam, dtype=torch.int64),
        torch.empty(sentences * beam, dtype=torch.int64),
        torch.empty(sentences * beam),
    )
    inputs = [t.contiguous() for t in (lprobs, tokens, sentence)]
    before = None if totals is None else totals.contiguous()
    going, ending = dispatch.required_core().beam_step(
        sentences,
        rows // max(sentences, 1),
        beam,
        count,
        most,
        eos,
        before is None,
        inputs[0].data_ptr(),
        inputs[1].data_ptr(),
        0 if before is None else before.data_ptr(),
        inputs[2].data_ptr(),
        ended.data_ptr(),
        ended.numel(),
        *(t.data_ptr() for t in results),
    )
    return NextBeams(*(t[:going] for t in results[:4]), *(t[:ending] for t in results[4:]))


def reference(step: BeamStep) -> NextBeams:
    """The same in plain torch, a sentence at a time."""
    lprobs, tokens, totals, sentence, ended, beam, eos, most = step
    rows, count = lprobs.shape
    width = rows // sentence.numel()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    done: list[tuple[int, Tensor, Tensor]] = []
    goes_on = []
    for i, number in enumerate(sentence.tolist()):
        own = slice(i * width, (i + 1) * width)
        scores = lprobs[own].nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        scores = (scores if totals is None else scores + totals[own].unsqueeze(1)).flatten()
        best, order = (t[:most] for t in scores.sort(descending=True, stable=True))
        token, row = tokens[own].flatten()[order], order // count + i * width
        ends = token.eq(eos) & best.ne(-math.inf)
        for c in ends[:beam].nonzero().flatten().tolist():
            if ended[number] < beam:
                done.append((number * beam + int(ended[number]), row[c], best[c]))
                ended[number] += 1
        chosen = ends.long().sort(stable=True).indices[:beam]
        best = best.masked_fill(ends, -math.inf)[chosen]
        found.append((best, token[chosen], row[chosen]))
        goes_on.append(int(ended[number]) < beam and bool(best.ne(-math.inf).any()))
    if totals is None and any(goes_on):
        goes_on = [True] * len(goes_on)
    going = torch.tensor([i for i, goes in enumerate(goes_on) if goes], dtype=torch.int64)
    next_totals, next_tokens, next_rows = (torch.stack(part)[going] for part in zip(*found))
    places = torch.tensor([place for place, _, _ in done], dtype=torch.int64)
    ended_rows = torch.tensor([int(row) for _, row, _ in done], dtype=torch.int64)
    ended_totals = torch.tensor([float(total) for _, _, total in done])
    return NextBeams(next_totals, next_tokens, next_rows, going, places, ended_rows, ended_totals)
