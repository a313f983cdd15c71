"""Hypotheses as text: the lines that pyseq-generate and pyseq-interactive print for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from pyseq.data.dictionary import Dictionary
from pyseq.data.post_process import post_process
from pyseq.errors import DataError
from pyseq.generation.alignment import hard_alignment
from pyseq.generation.beams import Hypothesis

LN2 = math.log(2)
COPY_SOURCE = "@@ "  # the value of --replace-unk when it stands alone


@dataclass
class HypothesisText:
    """Turns hypotheses into text.

    Attributes:
        tgt_dict: target dictionary.
        bpe_symbol: the subword segmentation to undo, see :func:`pyseq.data.post_process.post_process`.
        ignore: ids to leave out.
        decode: makes plain text of tokenised, segmented text.
        replacements: if not None, <unk> becomes what this has for the source word that it attends to most, or that
            word itself.
        print_alignment, print_step: also print the alignment, the number of steps.
    """

    tgt_dict: Dictionary
    bpe_symbol: str | None = None
    ignore: Iterable[int] = ()
    decode: Callable[[str], str] = str
    replacements: dict[str, str] | None = None
    print_alignment: bool = False
    print_step: bool = False
    unknown: int = field(init=False)

    def __post_init__(self) -> None:
        self.unknown = self.tgt_dict.unk()

    def string(self, hypothesis: Hypothesis, src_tokens: Tensor, src_words: list[str]) -> str:
        """The hypothesis with its subwords joined.

        Args:
            src_tokens: [S] the source, padding included, as the model saw it.
            src_words: the source as it was written, a word for each token that is neither padding nor end of sentence.
        """
        tokens = hypothesis["tokens"]
        if self.replacements is None or not bool(tokens.eq(self.unknown).any()):
            return self.tgt_dict.string(tokens, self.bpe_symbol, extra_symbols_to_ignore=self.ignore)
        pad, eos = self.tgt_dict.pad(), self.tgt_dict.eos()
        pairs = hard_alignment(hypothesis["attention"].t().cpu(), src_tokens.cpu(), tokens.cpu(), pad, eos)
        source_of = {target: src_words[source] for source, target in pairs if source < len(src_words)}
        left_out = {*self.ignore, eos, self.tgt_dict.bos()}
        words = [
            self.replacement(source_of.get(i)) if token == self.unknown else self.tgt_dict[token]
            for i, token in enumerate(tokens.tolist())
            if token not in left_out
        ]
        return post_process(" ".join(words), self.bpe_symbol)

    def replacement(self, source_word: str | None) -> str:
        if source_word is None or self.replacements is None:
            return self.tgt_dict.unk_string()
        return self.replacements.get(source_word, source_word)

    def lines(self, sample_id: int, hypothesis: Hypothesis, text: str, decoded: str) -> Iterator[str]:
        """What is printed of a hypothesis; scores are logarithms to base 2.

        Args:
            text: what :meth:`string` returned.
            decoded: the same as plain text.
        """
        score = (hypothesis["score"] / LN2).item()
        yield f"H-{sample_id}\t{score}\t{text}"
        yield f"D-{sample_id}\t{score}\t{decoded}"
        positional = (hypothesis["positional_scores"] / LN2).tolist()
        yield f"P-{sample_id}\t" + " ".join(f"{bits:.4f}" for bits in positional)
        if self.print_alignment:
            yield f"A-{sample_id}\t" + " ".join(map(aligned, hypothesis["alignment"] or ()))
        if self.print_step:
            yield f"I-{sample_id}\t{hypothesis.get('steps', len(hypothesis['tokens']))}"


def aligned(entry: tuple[int, int] | list[str]) -> str:
    """A pair of positions as ``3-4``, or a row of weights as ``0.1,0.9``."""
    return "-".join(map(str, entry)) if isinstance(entry, tuple) else ",".join(entry)


def load_replacements(replace_unk: str | None) -> dict[str, str] | None:
    """What ``--replace-unk`` says: None, no dictionary (the source word itself is taken), or a file of word pairs.

    Raises:
        DataError: the file is missing, or a line is not a source word and a target word.
    """
    if replace_unk is None:
        return None
    if replace_unk in ("", COPY_SOURCE):
        return {}
    pairs = {}
    try:
        with open(replace_unk, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                words = line.split()
                if len(words) < 2:
                    raise DataError(f"{replace_unk}:{number}: expected a source word and a target word, got {line!r}")
                pairs[words[0]] = words[1]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--replace-unk: cannot read {replace_unk}: {error}") from None
    return pairs
