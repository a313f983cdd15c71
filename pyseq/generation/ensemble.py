"""Several models that predict one next token together."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyseq.generation.normalization import is_plain_softmax, log_normalizer, plain_logits
from pyseq.models.incremental_decoder import IncrementalDecoder
from pyseq.models.model import BaseModel
from pyseq.ops import dispatch
from pyseq.ops.decoder_step import CORE_DTYPES
from pyseq.ops.linear_top_candidates import linear_top_candidates
from pyseq.ops.packed_linear import PackedLinear, identity

IncrementalState = dict[str, Any]


class NextToken(NamedTuple):
    """The next token of each of R prefixes: its log-probabilities are ``scores - log_normalizer``."""

    scores: Tensor  # R x V, fp32
    log_normalizer: Tensor | None  # R; None for 0
    attention: Tensor | None  # R x S, the mean over models; None if they return none


class Shortlist(NamedTuple):
    """The most probable next tokens of each of R prefixes."""

    lprobs: Tensor  # R x K, descending, fp32
    tokens: Tensor  # R x K


class EnsembleModel(nn.Module):
    """The mean of the models' probabilities, and a decoding interface that hides how many models there are.

    Models may be of any kind that decodes: encoder-decoders, language models without an encoder, decoders without
    incremental state (they get the whole prefix at every step).
    """

    def __init__(self, models: Sequence[Any]) -> None:
        super().__init__()
        self.models: Any = nn.ModuleList(models)
        self.models_size = len(models)
        self._output: tuple[tuple[tuple[int, int], ...], PackedLinear] | None = None
        self.incremental = all(isinstance(getattr(m, "decoder", None), IncrementalDecoder) for m in models)

    def has_encoder(self) -> bool:
        return hasattr(self.models[0], "encoder")

    def has_incremental_states(self) -> bool:
        return self.incremental

    def new_incremental_states(self) -> list[IncrementalState] | None:
        """An empty state for each model; None if one of them has to see the whole prefix at every step."""
        return [model.decoder.new_incremental_state() for model in self.models] if self.incremental else None

    def max_decoder_positions(self) -> int:
        """The fewest positions that any of the models can decode."""
        limits = [m.max_decoder_positions() for m in self.models if hasattr(m, "max_decoder_positions")]
        return int(min([*limits, sys.maxsize]))

    def set_beam_size(self, size: int) -> None:
        """Tell decoders how many rows in a row share a source sentence, so that they keep what they know of it once."""
        for model in self.models:
            decoder: Any = getattr(model, "decoder", None)
            if hasattr(decoder, "set_beam_size"):
                decoder.set_beam_size(size)

    def forward_encoder(self, net_input: dict[str, Tensor]) -> list[Any]:
        """What each model's encoder makes of the source; None for each if the models have no encoder."""
        if not self.has_encoder():
            return [None] * self.models_size
        return [model.encoder.forward_torchscript(net_input) for model in self.models]

    def forward_decoder(
        self,
        tokens: Tensor,
        encoder_outs: list[Any],
        incremental_states: list[IncrementalState] | None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """The next token's natural log-probabilities [R, V] in fp32, and the attention as in :meth:`next_token`."""
        scores, _, attn = self.next_token(tokens, encoder_outs, incremental_states, temperature)
        return scores, attn

    def next_token(
        self,
        tokens: Tensor,
        encoder_outs: list[Any],
        incremental_states: list[IncrementalState] | None,
        temperature: float = 1.0,
        normalize: bool = True,
    ) -> NextToken:
        """What the models say of the next token.

        Args:
            tokens: [R, L] prefixes, start symbol first.
            encoder_outs: what :meth:`forward_encoder` returned, one row for each of ``tokens``.
            incremental_states: one state for each model, from the steps before; None where the models have none.
            temperature: divisor of the logits.
            normalize: return log-probabilities; otherwise logits and their normaliser, where that saves time.
        """
        outputs = []
        for i, model in enumerate(self.models):
            state = None if incremental_states is None else incremental_states[i]
            logits, extra = self._decode(model, tokens, encoder_outs[i], state)
            logits = logits[:, -1:]
            outputs.append((logits if temperature == 1.0 else logits / temperature, extra))
        attn = mean_attention([last_attention(extra) for _, extra in outputs])
        plain = None if normalize or self.models_size > 1 else plain_logits(self.models[0], outputs[0])
        if plain is not None and plain.device.type == "cpu" and plain.dtype == torch.float32:
            return NextToken(plain[:, -1], log_normalizer(plain[:, -1]), attn)
        lprobs = [
            model.get_normalized_probs(output, log_probs=True, sample=None)[:, -1].float()
            for model, output in zip(self.models, outputs)
        ]
        return NextToken(log_mean_exp(lprobs), None, attn)

    def output_weights(self) -> PackedLinear | None:
        """The output layer, where :meth:`shortlist` can be used: one model that makes a step at a time, on the CPU."""
        model = self.models[0]
        if self.models_size > 1 or not self.incremental or not isinstance(model, BaseModel):
            return None
        output = model.linear_output()
        if output is None or output.weight.device.type != "cpu" or output.weight.dtype not in CORE_DTYPES:
            return None
        if dispatch.choose("linear_top_candidates", "cpu", torch.float32) == "torch" or not is_plain_softmax(model):
            return None
        made_from = identity(*output)
        if self._output is None or self._output[0] != made_from:
            self._output = made_from, PackedLinear.pack(*output)
        return self._output[1]

    def shortlist(
        self,
        tokens: Tensor,
        encoder_outs: list[Any],
        incremental_states: list[IncrementalState],
        weights: PackedLinear,
        count: int,
        adjustments: dict[int, float],
        filler: int,
    ) -> Shortlist:
        """The ``count`` most probable next tokens, without the logits of all.

        Args:
            tokens, encoder_outs, incremental_states: as for :meth:`next_token`.
            weights: what :meth:`output_weights` returned.
            adjustments: added to the log-probabilities of these tokens.
            filler: stands for a token where fewer than ``count`` have a log-probability above -inf.
        """
        state = incremental_states[0]
        out = self.models[0].decoder(tokens, encoder_out=encoder_outs[0], incremental_state=state, features_only=True)
        features = out[0][:, -1].float()
        values, found, log_sum_exp = linear_top_candidates(features, weights, count, adjustments, filler)
        lprobs = (values - log_sum_exp.unsqueeze(1)).nan_to_num_(nan=-math.inf, neginf=-math.inf)
        return Shortlist(lprobs, found)

    def _decode(
        self, model: Any, tokens: Tensor, encoder_out: Any, state: IncrementalState | None
    ) -> tuple[Tensor, Any]:
        """A model's logits and what else its decoder returns."""
        decode = getattr(model, "decoder", None)
        if decode is None:
            out = model(tokens)
        elif state is not None:
            out = decode(tokens, encoder_out=encoder_out, incremental_state=state)
        else:
            out = decode(tokens, encoder_out=encoder_out)
        return (out[0], out[1] if len(out) > 1 else None) if isinstance(out, (tuple, list)) else (out, None)

    def reorder_encoder_out(
        self, encoder_outs: list[Any], new_order: Tensor, states: list[IncrementalState] | None = None
    ) -> list[Any]:
        """The encoder outputs of the rows ``new_order``; None for a model whose decoder needs no more of it."""
        if not self.has_encoder():
            return encoder_outs
        unread = [False] * self.models_size
        if states is not None:
            unread = [not model.decoder.reads_encoder_out(state) for model, state in zip(self.models, states)]
        return [
            None if done else model.encoder.reorder_encoder_out(out, new_order)
            for model, out, done in zip(self.models, encoder_outs, unread)
        ]

    def reorder_incremental_state(self, incremental_states: list[IncrementalState] | None, new_order: Tensor) -> None:
        """Make row i of every state what row ``new_order[i]`` was."""
        if incremental_states is not None:
            for model, state in zip(self.models, incremental_states):
                model.decoder.reorder_incremental_state_scripting(state, new_order)


def log_mean_exp(lprobs: list[Tensor]) -> Tensor:
    """log of the mean of exp, elementwise over a list of tensors of one shape."""
    if len(lprobs) == 1:
        return lprobs[0]
    return functools.reduce(torch.logaddexp, lprobs) - math.log(len(lprobs))


def attention_of(extra: Any) -> Tensor | None:
    """The attention [B, T, S] in what a decoder returns besides its logits, or None."""
    attention = extra.get("attn") if isinstance(extra, dict) else extra
    if isinstance(attention, (list, tuple)):
        attention = attention[0] if attention else None
    return attention if isinstance(attention, Tensor) else None


def last_attention(extra: Any) -> Tensor | None:
    """The attention [B, S] of the last position."""
    attention = attention_of(extra)
    return None if attention is None else attention[:, -1]


def mean_attention(attentions: list[Tensor | None]) -> Tensor | None:
    """The mean over several models; those that return no attention count as 0."""
    found = [attention for attention in attentions if attention is not None]
    return torch.stack(found).sum(0) / len(attentions) if found else None


@contextlib.contextmanager
def asked_for(models: Iterable[Any], wanted: Mapping[str, bool]) -> Iterator[None]:
    """Set those of the decoders' attributes that are ``wanted``, where decoders have them.

    ``need_attn`` has those return their attention to the source that can go without it; ``cuda_graphs`` has those
    replay their steps that can.
    """
    decoders = [getattr(model, "decoder", None) for model in models]
    changed = [(d, name) for name, want in wanted.items() if want for d in decoders if getattr(d, name, None) is False]
    for decoder, name in changed:
        setattr(decoder, name, True)
    try:
        yield
    finally:
        for decoder, name in changed:
            setattr(decoder, name, False)
