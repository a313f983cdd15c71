"""The state of a beam search: the hypotheses that are being extended, and those that have ended.

R is the number of rows being decoded (sentences left times beam), L the length so far, S the source length.
Nothing here waits for the device but :meth:`Ended.hypotheses`, once, at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Hypothesis = dict[str, Any]


@dataclass
class Beams:
    """The hypotheses being extended, ``width`` rows for each sentence that is left.

    Attributes:
        tokens: R x L, the start symbol first.
        scores: R x (L - 1) cumulative log-probabilities; -inf for a row that stands for no hypothesis.
        attention: R x (L - 1) x S, or None.
        sentence: the sentence of each ``width`` rows, as its position in the batch.
        width: 1 before the first step, since all hypotheses of a sentence are then the same; the beam size afterwards.
    """

    tokens: Tensor
    scores: Tensor
    attention: Tensor | None
    sentence: Tensor
    width: int

    @classmethod
    def start(cls, bsz: int, symbol: int, src_len: int | None, device: torch.device) -> Beams:
        """One row for each sentence; ``src_len`` is None where no attention is kept."""
        attention = None if src_len is None else torch.zeros(bsz, 0, src_len, device=device)
        return cls(
            tokens=torch.full((bsz, 1), symbol, dtype=torch.long, device=device),
            scores=torch.zeros(bsz, 0, device=device),
            attention=attention,
            sentence=torch.arange(bsz, device=device),
            width=1,
        )

    @property
    def bsz(self) -> int:
        return self.sentence.numel()

    def per_sentence(self, rows: Tensor, beam: int) -> Tensor:
        """``rows`` (R x ...) as B x beam x ..., the single row of the first step repeated without a copy."""
        return rows.unflatten(0, (self.bsz, self.width)).expand(-1, beam, *rows.shape[1:])

    def first_row(self) -> Tensor:
        """The first row of each sentence, as B x 1."""
        return torch.arange(0, self.bsz * self.width, self.width, device=self.tokens.device).unsqueeze(1)

    def add_attention(self, attn: Tensor) -> None:
        """Keep the attention (R x S) with which the next token is predicted."""
        assert self.attention is not None
        self.attention = torch.cat([self.attention, attn.unsqueeze(1)], dim=1)

    def repeat_first(self, sentences: Tensor, *others: Tensor | None) -> None:
        """Make all hypotheses of the marked sentences (B, bool) copies of their first, in ``others`` (R x ...) too."""
        if self.width == 1:
            return
        each = torch.arange(self.tokens.size(0), device=self.tokens.device).view(self.bsz, self.width)
        source = torch.where(sentences.unsqueeze(1), each[:, :1], each).flatten()
        self.tokens, self.scores = self.tokens[source], self.scores[source]
        for rows in others:
            if rows is not None:
                rows.copy_(rows[source])

    def extend(self, scores: Tensor, tokens: Tensor, rows: Tensor, sentence: Tensor) -> Beams:
        """The beams of the next step.

        Args:
            scores, tokens: B' x beam, cumulative score and last token of each new hypothesis.
            rows: B' x beam, the row that it extends.
            sentence: the B' sentences that are left.
        """
        old = rows.flatten()
        return Beams(
            tokens=torch.cat([self.tokens[old], tokens.reshape(-1, 1)], dim=1),
            scores=torch.cat([self.scores[old], scores.reshape(-1, 1)], dim=1),
            attention=None if self.attention is None else self.attention[old],
            sentence=sentence,
            width=rows.size(1),
        )


class Ended:
    """The hypotheses that have ended: the first ``beam`` of each sentence, in the order in which they ended.

    Every step writes all its candidates, to places that depend on the data; the ones that are not to be kept go to a
    spare last row. So the number that ended is never asked for.
    """

    def __init__(
        self, bsz: int, beam: int, max_len: int, eos: int, pad: int, src_len: int | None, device: torch.device
    ) -> None:
        self.bsz, self.beam, self.eos = bsz, beam, eos
        self.spare = bsz * beam
        rows, width = self.spare + 1, max_len + 1
        self.tokens = torch.full((rows, width), pad, dtype=torch.long, device=device)
        self.positional = torch.zeros(rows, width, device=device)
        self.score = torch.full((rows,), -math.inf, device=device)
        self.length = torch.zeros(rows, dtype=torch.long, device=device)
        self.count = torch.zeros(bsz, dtype=torch.long, device=device)
        self.attention = None if src_len is None else torch.zeros(rows, width, src_len, device=device)

    def add(self, beams: Beams, ends: Tensor, rows: Tensor, totals: Tensor, score: Tensor) -> None:
        """Record the candidates that end.

        Args:
            beams: what they extend.
            ends: B x N, which of the candidates end.
            rows: B x N, the row of ``beams`` that each extends.
            totals: B x N, their cumulative log-probabilities.
            score: B x N, what hypotheses are compared by.
        """
        if ends.device.type == "cpu" and not ends.any():
            return  # at most steps nothing ends, and here it can be asked without waiting
        rank = self.count[beams.sentence].unsqueeze(1) + ends.cumsum(1) - 1
        kept = ends & (rank < self.beam)
        self.count.index_add_(0, beams.sentence, kept.sum(1))
        place = (beams.sentence.unsqueeze(1) * self.beam + rank).where(kept, self.spare).flatten()
        self.write(beams, place, rows.flatten(), totals.flatten(), score.flatten())

    def write(self, beams: Beams, place: Tensor, rows: Tensor, totals: Tensor, score: Tensor) -> None:
        """Record hypotheses [E] that end, at ``place``; the rest as for :meth:`add`."""
        length = beams.tokens.size(1)
        cumulative = torch.cat([beams.scores[rows], totals.unsqueeze(1)], dim=1)
        cumulative[:, 1:] -= cumulative[:, :-1].clone()
        self.positional[:, :length].index_copy_(0, place, cumulative)
        self.tokens[:, : length - 1].index_copy_(0, place, beams.tokens[rows, 1:])
        self.tokens[:, length - 1].index_fill_(0, place, self.eos)
        self.score.index_copy_(0, place, score)
        self.length.index_fill_(0, place, length)
        if self.attention is not None and beams.attention is not None:
            self.attention[:, :length].index_copy_(0, place, beams.attention[rows])

    def full(self, sentence: Tensor) -> Tensor:
        """Which of these sentences have all their hypotheses."""
        return self.count[sentence] >= self.beam

    def hypotheses(self) -> list[list[Hypothesis]]:
        """For each sentence its hypotheses, best score first, those that ended earlier first among equals.

        A hypothesis is a dict of ``tokens`` [T] (end of sentence included), ``score`` [], ``positional_scores`` [T],
        ``attention`` [S, T] (empty where it was not kept) and ``alignment`` (empty).
        """
        order = self.score[: self.spare].view(self.bsz, self.beam).sort(dim=1, descending=True, stable=True).indices
        first = torch.arange(0, self.spare, self.beam, device=order.device).unsqueeze(1)
        best = (order + first).flatten()
        tokens, positional = self.tokens[best].unbind(), self.positional[best].unbind()
        scores, lengths = self.score[best].unbind(), self.length[best].tolist()
        attention = None if self.attention is None else self.attention[best].unbind()
        nothing = torch.empty(0)
        return [
            [
                {
                    "tokens": tokens[i][: lengths[i]],
                    "score": scores[i],
                    "attention": nothing if attention is None else attention[i][: lengths[i]].t(),
                    "alignment": nothing,
                    "positional_scores": positional[i][: lengths[i]],
                }
                for i in range(s * self.beam, s * self.beam + count)
            ]
            for s, count in enumerate(self.count.tolist())
        ]
