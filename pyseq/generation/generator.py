"""Beam search over a batch of sentences, and the same loop for every other search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyseq.data.dictionary import Dictionary
from pyseq.errors import ConfigError, UserError
from pyseq.generation.beams import Beams, Ended, Hypothesis
from pyseq.generation.decoding import Decoding
from pyseq.generation.ensemble import EnsembleModel, NextToken, Shortlist, asked_for
from pyseq.generation.going_on import GoingOn
from pyseq.generation.ngram_blocking import block_repeated_ngrams
from pyseq.generation.search import BeamSearch, Search
from pyseq.ops.beam_step import BeamStep, beam_step
from pyseq.ops.packed_linear import PackedLinear


@dataclass
class Batch:
    """What generation reads of a sample: B sentences of at most S source tokens."""

    net_input: dict[str, Tensor]
    src_lengths: Tensor  # B
    ids: Tensor  # B
    prefix_tokens: Tensor | None  # B x P
    src_len: int
    max_len: int

    @property
    def bsz(self) -> int:
        return self.src_lengths.numel()


class Candidates(NamedTuple):
    """The best extensions of each sentence's hypotheses, best first, [B, N] each."""

    scores: Tensor  # cumulative
    tokens: Tensor
    rows: Tensor  # of the hypothesis that is extended

    def pick(self, index: Tensor) -> Candidates:
        """The candidates at these positions [B, K]."""
        return Candidates(*(field.gather(1, index) for field in self))

    def of(self, sentences: Tensor) -> Candidates:
        """The candidates of these sentences (positions in the current batch)."""
        return Candidates(*(field[sentences] for field in self))


class SequenceGenerator(nn.Module):
    """Generates with one model or an ensemble.

    A sentence is finished when ``beam_size`` hypotheses have ended; hypotheses that end count only while they are among
    the ``beam_size`` best candidates of their step. Finished sentences leave the batch.

    Args:
        models: an ensemble, or the models to make one of.
        tgt_dict: target dictionary.
        beam_size: hypotheses for each sentence; at most V - 1.
        max_len_a, max_len_b: hypotheses have at most ``a * source length + b`` tokens before the end of sentence, where
            the source length is that of the longest sentence in the batch.
        max_len: positions that the output may take, end of sentence included; 0: as many as the decoder can have.
        min_len: fewest tokens before the end of sentence (not applied while prefix tokens are forced).
        normalize_scores: compare hypotheses by score per token.
        len_penalty: exponent of the length in that: below 1 favours short, above 1 long hypotheses.
        unk_penalty: taken off the log-probability of <unk>.
        temperature: divisor of the logits.
        match_source_len: allow the longest source's length at most, and no hypothesis longer than its own source.
        no_repeat_ngram_size: no n-gram of this size twice in a hypothesis; 0: no limit.
        search_strategy: how candidates are chosen; default: beam search.
        eos: token that ends a hypothesis; default: the dictionary's.
        symbols_to_strip_from_output: ids that text output leaves out; eos is always among them.
        lm_model: language model whose weighted log-probabilities are added at every step.
        lm_weight: its weight.
        tokens_to_suppress: symbols that are never generated.
        need_attention: return the attention of each hypothesis to the source.
        cuda_graphs: on a GPU, replay the steps of decoders that can have them recorded.

    Raises:
        ConfigError: a value that cannot be.
    """

    def __init__(
        self,
        models: EnsembleModel | Sequence[nn.Module],
        tgt_dict: Dictionary,
        beam_size: int = 1,
        max_len_a: float = 0,
        max_len_b: int = 200,
        max_len: int = 0,
        min_len: int = 1,
        normalize_scores: bool = True,
        len_penalty: float = 1.0,
        unk_penalty: float = 0.0,
        temperature: float = 1.0,
        match_source_len: bool = False,
        no_repeat_ngram_size: int = 0,
        search_strategy: Search | None = None,
        eos: int | None = None,
        symbols_to_strip_from_output: set[int] | None = None,
        lm_model: nn.Module | None = None,
        lm_weight: float = 1.0,
        tokens_to_suppress: Sequence[str] = (),
        need_attention: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        if beam_size < 1:
            raise ConfigError(f"--beam is {beam_size}; it must be at least 1")
        if temperature <= 0:
            raise ConfigError(f"--temperature is {temperature}; it must be greater than 0")
        self.model = models if isinstance(models, EnsembleModel) else EnsembleModel(models)
        self.lm_model = None if lm_model is None else EnsembleModel([lm_model])
        self.lm_weight = lm_weight
        self.tgt_dict = tgt_dict
        self.pad, self.unk = tgt_dict.pad(), tgt_dict.unk()
        self.eos = tgt_dict.eos() if eos is None else eos
        self.symbols_to_strip_from_output = (symbols_to_strip_from_output or set()) | {self.eos}
        self.vocab_size = len(tgt_dict)
        self.beam_size = min(beam_size, self.vocab_size - 1)
        self.max_len_a, self.max_len_b, self.min_len = max_len_a, max_len_b, min_len
        self.max_len = max_len or self.model.max_decoder_positions()
        self.normalize_scores, self.len_penalty = normalize_scores, len_penalty
        self.unk_penalty, self.temperature = unk_penalty, temperature
        self.match_source_len = match_source_len
        self.no_repeat_ngram_size = no_repeat_ngram_size
        self.search = search_strategy or BeamSearch(tgt_dict)
        self.suppressed = [self._known(symbol) for symbol in tokens_to_suppress]
        self.need_attention = need_attention
        self.cuda_graphs = cuda_graphs
        self.eval()

    def _known(self, symbol: str) -> int:
        index = self.tgt_dict.index(symbol)
        if index == self.unk:
            raise ConfigError(f"tokens to suppress: '{symbol}' is not in the dictionary")
        return index

    def prepare(self) -> None:
        """Do now what the first batch would do for all batches."""
        with torch.no_grad():
            self.model.new_incremental_states()
            self._output_weights()

    def forward(
        self, sample: dict[str, Any], prefix_tokens: Tensor | None = None, bos_token: int | None = None
    ) -> list[list[Hypothesis]]:
        """As :meth:`generate`."""
        return self.generate(None, sample, prefix_tokens=prefix_tokens, bos_token=bos_token)

    @torch.no_grad()
    def generate(self, models: Any, sample: dict[str, Any], **kwargs: Any) -> list[list[Hypothesis]]:
        """Generate for a batch.

        Args:
            models: ignored; the generator's own models are used.
            sample: a batch with ``net_input.src_tokens`` [B, S], perhaps ``net_input.src_lengths`` [B] and ``id`` [B].
            prefix_tokens: [B, P] tokens that the output begins with, padded on the right where they differ in length.
            constraints: for a search that supports them.
            bos_token: the start symbol; default: end of sentence.

        Returns:
            For each sentence its hypotheses, best score first: dicts of ``tokens`` [T] with the end of sentence,
            ``score`` [], ``positional_scores`` [T] (natural logarithms), ``attention`` [S, T] and ``alignment`` (both
            empty unless asked for).

        Raises:
            ConfigError: ``min_len`` exceeds what the length limits allow, the search does not support constraints, or
                there is no GPU for CUDA graphs.
            UserError: the model gives no token of a sentence a finite probability.
        """
        return self._generate(sample, **kwargs)

    def _generate(
        self,
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        bos_token: int | None = None,
    ) -> list[list[Hypothesis]]:
        batch = self._read(sample, prefix_tokens)
        self._begin_search(constraints)
        device, src_len = batch.src_lengths.device, batch.src_len if self.need_attention else None
        if self.cuda_graphs and device.type != "cuda":
            raise ConfigError(f"--cuda-graphs needs a GPU, and this batch is on the {device.type}: leave it out")
        beams = Beams.start(batch.bsz, self.eos if bos_token is None else bos_token, src_len, device)
        ended = Ended(batch.bsz, self.beam_size, batch.max_len, self.eos, self.pad, src_len, device)
        going_on = GoingOn(batch.bsz, device)
        # Decoders must know whether their attention is asked for when they begin.
        with (
            asked_for(self.model.models, {"need_attn": self.need_attention, "cuda_graphs": self.cuda_graphs}),
            Decoding(self.model, batch.net_input, self.lm_model, self.lm_weight) as decoding,
        ):
            output = self._output_weights()
            plain = type(self.search) is BeamSearch and not self.match_source_len
            for step in range(batch.max_len + 1):
                count = None if output is None else self._shortlist(step, batch)
                candidates: Candidates | None
                if output is None or count is None:
                    token = decoding.step(beams.tokens, self.temperature)
                    self._keep_attention(token, beams)
                    self._restrict(token, step, beams, batch)
                    candidates = self._candidates(step, token, beams, batch)
                else:
                    best = decoding.shortlist(beams.tokens, output, count, self._adjustments(step), self.pad)
                    candidates = None if plain else self._best_candidates(step, best, beams)
                if candidates is None:
                    continuing, sentences = self._step_beams(step, best, beams, ended)
                else:
                    ends = candidates.tokens.eq(self.eos) & candidates.scores.ne(-math.inf)
                    self._end(step, candidates, ends, beams, ended, batch)
                    if step == batch.max_len:
                        break
                    continuing, sentences = self._continue(step, candidates, ends, beams, ended, going_on)
                if sentences.numel() == 0:
                    break
                decoding.reorder(continuing.rows.flatten(), self.beam_size, sentences.numel() < beams.bsz)
                beams = beams.extend(*continuing, beams.sentence[sentences])
        return self._complete(ended, batch)

    def _output_weights(self) -> PackedLinear | None:
        """The output layer, if a few of each hypothesis's tokens may be enough at some steps."""
        needs_all = (
            self.lm_model is not None
            or self.temperature != 1.0
            or self.need_attention
            or self.no_repeat_ngram_size > 0
            or self.search.needs_src_lengths
        )
        return None if needs_all else self.model.output_weights()

    def _shortlist(self, step: int, batch: Batch) -> int | None:
        """How many tokens of each hypothesis are enough at this step; None: all are needed."""
        prefix = batch.prefix_tokens
        if step == batch.max_len or (prefix is not None and step < prefix.size(1)):
            return None
        return self.search.shortlist(step, self.beam_size)

    def _adjustments(self, step: int) -> dict[int, float]:
        """What :meth:`_restrict` adds to log-probabilities where there is no prefix."""
        adjustments = dict.fromkeys([self.pad, *self.suppressed], -math.inf)
        if step < self.min_len:
            adjustments[self.eos] = -math.inf
        if self.unk_penalty:
            adjustments[self.unk] = adjustments.get(self.unk, 0.0) - self.unk_penalty
        return adjustments

    def _step_beams(self, step: int, best: Shortlist, beams: Beams, ended: Ended) -> tuple[Candidates, Tensor]:
        """What :meth:`_best_candidates`, :meth:`_end` and :meth:`_continue` do with a plain beam search, at once."""
        assert isinstance(self.search, BeamSearch)
        most = self.search.candidates(step, self.beam_size)
        totals = beams.scores[:, -1] if step > 0 else None
        found = beam_step(BeamStep(*best, totals, beams.sentence, ended.count, self.beam_size, self.eos, most))
        if found.place.numel() > 0:
            score = found.ended_totals
            if self.normalize_scores:
                score = score / (step + 1) ** self.len_penalty
            ended.write(beams, found.place, found.ended_rows, found.ended_totals, score)
        return Candidates(found.totals, found.tokens, found.rows), found.sentences

    def _best_candidates(self, step: int, best: Shortlist, beams: Beams) -> Candidates:
        fields = (beams.per_sentence(rows, self.beam_size) for rows in (*best, beams.scores))
        scores, tokens, hypothesis = self.search.step_shortlist(step, *fields)
        return Candidates(scores, tokens, beams.first_row() + hypothesis.clamp(max=beams.width - 1))

    def _read(self, sample: dict[str, Any], prefix_tokens: Tensor | None) -> Batch:
        net_input = sample["net_input"]
        src_tokens = net_input["src_tokens"]
        src_lengths = net_input.get("src_lengths")
        if src_lengths is None:
            src_lengths = (src_tokens.ne(self.eos) & src_tokens.ne(self.pad)).long().sum(dim=1)
        bsz, src_len = src_tokens.shape[:2]
        ids = sample.get("id")
        ids = ids.to(src_tokens.device) if isinstance(ids, Tensor) else torch.arange(bsz, device=src_tokens.device)
        if self.match_source_len:
            max_len = int(src_lengths.max())
        else:
            max_len = min(int(self.max_len_a * src_len + self.max_len_b), self.max_len - 1)
        if self.min_len > max_len:
            raise ConfigError(
                f"--min-len {self.min_len} is more than the {max_len} tokens that --max-len-a {self.max_len_a}, "
                f"--max-len-b {self.max_len_b} and the decoder's {self.max_len} positions allow"
            )
        return Batch(net_input, src_lengths, ids, prefix_tokens, src_len, max_len)

    def _begin_search(self, constraints: Tensor | None) -> None:
        if constraints is not None and not self.search.supports_constraints:
            raise ConfigError(f"{type(self.search).__name__} does not support constraints")
        self.search.init_constraints(constraints, self.beam_size)

    def _keep_attention(self, token: NextToken, beams: Beams) -> None:
        if not self.need_attention:
            return
        if token.attention is None:
            raise ConfigError(
                "the model returns no attention: --print-alignment and --replace-unk cannot be used with it"
            )
        beams.add_attention(token.attention)

    def _restrict(self, token: NextToken, step: int, beams: Beams, batch: Batch) -> None:
        """Take out what may not come next, in place."""
        lprobs = token.scores  # perhaps not normalised
        lprobs[:, self.pad] = -math.inf
        if self.unk_penalty:
            lprobs[:, self.unk] -= self.unk_penalty
        if step == batch.max_len:
            lprobs[:, : self.eos] = -math.inf
            lprobs[:, self.eos + 1 :] = -math.inf
        prefix = batch.prefix_tokens
        if prefix is not None and step < min(prefix.size(1), batch.max_len):
            self._force(token, prefix[beams.sentence, step], beams)
            return
        if step < self.min_len:
            lprobs[:, self.eos] = -math.inf
        if self.suppressed:
            lprobs[:, self.suppressed] = -math.inf
        if self.no_repeat_ngram_size > 0:
            block_repeated_ngrams(beams.tokens, lprobs, self.no_repeat_ngram_size, self.pad, self.eos)

    def _force(self, token: NextToken, prefix: Tensor, beams: Beams) -> None:
        """Leave only the prefix's token (``prefix``: B) to the sentences that have one; padding stands for none."""
        # A prefix that ends the sentence ends all its hypotheses, which must then be the same.
        beams.repeat_first(prefix.eq(self.eos), token.scores, token.log_normalizer)
        forced = prefix.repeat_interleave(beams.width).unsqueeze(1)
        score = token.scores.gather(1, forced)
        token.scores.masked_fill_(forced.ne(self.pad), -math.inf).scatter_(1, forced, score)

    def _candidates(self, step: int, token: NextToken, beams: Beams, batch: Batch) -> Candidates:
        if self.search.needs_src_lengths:
            self.search.set_src_lengths(batch.src_lengths[beams.sentence])
        if token.log_normalizer is None:
            token.scores.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        next_scores, scores = (beams.per_sentence(rows, self.beam_size) for rows in (token.scores, beams.scores))
        others = beams.per_sentence(beams.tokens, self.beam_size).flatten(0, 1), batch.ids[beams.sentence]
        if token.log_normalizer is None:
            found = self.search.step(step, next_scores, scores, *others)
        else:
            log_normalizer = beams.per_sentence(token.log_normalizer, self.beam_size)
            found = self.search.step_unnormalized(step, next_scores, log_normalizer, scores, *others)
        best, tokens, hypothesis = found
        return Candidates(best, tokens, beams.first_row() + hypothesis.clamp(max=beams.width - 1))

    def _end(self, step: int, candidates: Candidates, ends: Tensor, beams: Beams, ended: Ended, batch: Batch) -> None:
        """Record the hypotheses that end among the best ``beam_size`` candidates."""
        top = slice(0, self.beam_size)
        score = candidates.scores[:, top]
        if self.normalize_scores:
            score = score / (step + 1) ** self.len_penalty
        if self.match_source_len:
            too_long = batch.src_lengths[beams.sentence].lt(step).unsqueeze(1)
            score = score.masked_fill(too_long, -math.inf)
        ended.add(beams, ends[:, top], candidates.rows[:, top], candidates.scores[:, top], score)

    def _continue(
        self, step: int, candidates: Candidates, ends: Tensor, beams: Beams, ended: Ended, going_on: GoingOn
    ) -> tuple[Candidates, Tensor]:
        """The best ``beam_size`` candidates that do not end, of the sentences to keep, and which those are."""
        rank = torch.arange(ends.size(1), device=ends.device)
        chosen = (ends * ends.size(1) + rank).topk(self.beam_size, largest=False).indices
        picked = candidates.pick(chosen)
        # Where a tiny vocabulary leaves too few, rows without a hypothesis fill the beam.
        picked = picked._replace(scores=picked.scores.masked_fill(ends.gather(1, chosen), -math.inf))
        goes_on = ~(ended.full(beams.sentence) | picked.scores.eq(-math.inf).all(dim=1))
        if step == 0 and (going_on.lag > 0 or goes_on.any()):
            # Decoders that keep one copy of the source for each sentence are told of the beam after this step only.
            goes_on = torch.ones_like(goes_on)
        sentences = going_on.among(goes_on)
        if sentences.numel() < beams.bsz:
            self.search.prune_sentences(sentences)
            picked, chosen = picked.of(sentences), chosen[sentences]
        self.search.update_constraints(chosen)
        return picked, sentences

    def _complete(self, ended: Ended, batch: Batch) -> list[list[Hypothesis]]:
        hypotheses = ended.hypotheses()
        missing = [sample_id for sample_id, found in zip(batch.ids.tolist(), hypotheses) if not found]
        if missing:
            raise UserError(
                f"no hypothesis for the sentences with the ids {missing[:10]}: the model gives no token a finite "
                "probability. Are the checkpoint's weights finite?"
            )
        return hypotheses
