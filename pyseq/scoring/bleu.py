"""BLEU on token ids."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyseq.config import ConfigGroup
from pyseq.errors import ConfigError
from pyseq.scoring import Scorer, register_scorer

MAX_ORDER = 4
NEVER_MATCHES = -999


@dataclass
class BleuConfig(ConfigGroup):
    pad: int = field(default=1, metadata={"help": "id of padding, for BLEU"})
    eos: int = field(default=2, metadata={"help": "id of the end of a sentence, for BLEU"})
    unk: int = field(default=3, metadata={"help": "id of the unknown token, for BLEU"})


@register_scorer("bleu", dataclass=BleuConfig)
class BleuScorer(Scorer):
    """Corpus BLEU (Papineni et al., 2002) with one reference::

        BLEU = 100 min(1, e^(1 - r / s)) exp(mean of log p_1, ..., log p_order)

    with r and s the lengths of all references and of all predictions, and p_n the share of predicted n-grams that are
    in the reference, each at most as often as there. An unknown token in the reference matches nothing.

    Padding before a sentence and padding and ends of sentence after it are not counted, but one token always stays:
    a prediction that is nothing but an end of sentence has length 1, as in fairseq.
    """

    def __init__(self, cfg: BleuConfig) -> None:
        super().__init__(cfg)
        self._ids = {"<pad>": cfg.pad, "</s>": cfg.eos, "<unk>": cfg.unk}
        self._next_id = max(self._ids.values()) + 1
        self.reset()

    @classmethod
    def build_scoring(cls, cfg: BleuConfig, tgt_dict: Any = None) -> BleuScorer:
        if tgt_dict is None:
            return cls(cfg)
        return cls(BleuConfig(cfg._name, pad=tgt_dict.pad(), eos=tgt_dict.eos(), unk=tgt_dict.unk()))

    def reset(self, one_init: bool = False) -> None:
        """Forget all sentences. ``one_init`` counts one match beforehand in every order but the first.

        That smoothing (Lin and Och, 2004) keeps the BLEU of one sentence above zero when no 4-gram of it matches.
        """
        start = [0] + [int(one_init)] * (MAX_ORDER - 1)
        self.matches, self.counts = list(start), list(start)
        self.ref_len = self.pred_len = 0

    def add(self, ref: Any, pred: Any) -> None:
        """Add one sentence.

        Args:
            ref: token ids of the reference, 1-dim: a tensor, an array or a sequence of ints.
            pred: token ids of the prediction, likewise.
        """
        ref_ids = [NEVER_MATCHES if i == self.cfg.unk else i for i in self._trim(ref)]
        pred_ids = self._trim(pred)
        self.ref_len += len(ref_ids)
        self.pred_len += len(pred_ids)
        for n in range(1, MAX_ORDER + 1):
            self.counts[n - 1] += max(len(pred_ids) - n + 1, 0)
        for n in range(1, MAX_ORDER + 1):
            found = clipped_matches(ref_ids, pred_ids, n)
            if found == 0:  # then no longer n-gram matches either
                break
            self.matches[n - 1] += found

    def add_string(self, ref: str, pred: str) -> None:
        """Add one sentence as text, tokens separated by white space. ``<unk>`` is the unknown token."""
        self.add(self._encode(ref), self._encode(pred))

    def _encode(self, text: str) -> list[int]:
        ids = []
        for word in text.split():
            if word not in self._ids:
                self._ids[word] = self._next_id
                self._next_id += 1
            ids.append(self._ids[word])
        return [*ids, self.cfg.eos]

    def _trim(self, tokens: Any) -> list[int]:
        ids: list[int] = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
        first = 0
        while first < len(ids) and ids[first] == self.cfg.pad:
            first += 1
        last = len(ids)
        while last > first + 1 and ids[last - 1] in (self.cfg.eos, self.cfg.pad):
            last -= 1
        return ids[first:last]

    def precision(self) -> list[float]:
        """p_1 to p_4, in [0, 1]; 0 where nothing was predicted."""
        return [m / c if c > 0 else 0.0 for m, c in zip(self.matches, self.counts)]

    def brevity(self) -> float:
        """The brevity penalty, in [0, 1]."""
        return min(1.0, math.exp(1 - self.ref_len / self.pred_len)) if self.pred_len > 0 else 0.0

    def score(self, order: int = MAX_ORDER) -> float:
        """BLEU from 1-grams to ``order``-grams, in [0, 100]."""
        precision = self.precision()[: checked_order(order)]
        if min(precision) == 0:
            return 0.0
        return self.brevity() * math.exp(sum(map(math.log, precision)) / order) * 100

    def result_string(self, order: int = MAX_ORDER) -> str:
        """``BLEU4 = 25.60, 58.2/31.5/19.4/12.4 (BP=1.000, ratio=1.010, syslen=N, reflen=M)``."""
        precisions = "/".join(f"{p * 100:2.1f}" for p in self.precision()[: checked_order(order)])
        ratio = self.pred_len / self.ref_len if self.ref_len > 0 else 0.0
        return (
            f"BLEU{order} = {self.score(order):2.2f}, {precisions} (BP={self.brevity():.3f}, ratio={ratio:.3f}, "
            f"syslen={self.pred_len}, reflen={self.ref_len})"
        )


def clipped_matches(ref: Sequence[int], pred: Sequence[int], n: int) -> int:
    """How many n-grams of ``pred`` are in ``ref``, each counted at most as often as it occurs there."""
    available = Counter(ngrams(ref, n))
    return sum(min(count, available[gram]) for gram, count in Counter(ngrams(pred, n)).items() if gram in available)


def ngrams(tokens: Sequence[int], n: int) -> Iterable[tuple[int, ...]]:
    return zip(*(tokens[i:] for i in range(n)))


def checked_order(order: int) -> int:
    if not 1 <= order <= MAX_ORDER:
        raise ConfigError(f"BLEU of order {order}: the order is between 1 and {MAX_ORDER}")
    return order
