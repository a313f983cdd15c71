"""Tiny models whose scores are known for every prefix."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyseq.data.dictionary import Dictionary
from pyseq.models import build_model
from pyseq.models.decoder import Decoder
from pyseq.models.encoder import Encoder
from pyseq.models.incremental_decoder import IncrementalDecoder
from pyseq.models.model import EncoderDecoderModel, LanguageModel
from support.generation import VOCAB

SIZE = 8


class SumEncoder(Encoder):
    """A sentence as the sum of its words' vectors, so that padding does not matter."""

    def __init__(self, dictionary: Dictionary, generator: torch.Generator) -> None:
        super().__init__(dictionary)
        self.vectors = nn.Parameter(torch.randn(len(dictionary), SIZE, generator=generator))

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **kwargs: Any) -> Tensor:
        words = src_tokens.ne(self.dictionary.pad()).unsqueeze(-1)
        return (self.vectors[src_tokens] * words).sum(dim=1)  # B x C

    def reorder_encoder_out(self, encoder_out: Tensor, new_order: Tensor) -> Tensor:
        return encoder_out[new_order]


class PrefixDecoder(Decoder):
    """Logits that are a random function of the source and of every token so far, in its place."""

    def __init__(self, dictionary: Dictionary, generator: torch.Generator, sharpness: float) -> None:
        super().__init__(dictionary)
        self.vectors = nn.Parameter(torch.randn(len(dictionary), SIZE, generator=generator))
        self.mix = nn.Parameter(torch.randn(SIZE, SIZE, generator=generator) / SIZE**0.5)
        self.out = nn.Parameter(torch.randn(len(dictionary), SIZE, generator=generator) * sharpness)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        return torch.tanh(state @ self.mix + self.vectors[tokens])

    def logits(self, state: Tensor) -> Tensor:
        return state @ self.out.t()

    def forward(self, prev_output_tokens: Tensor, encoder_out: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        bsz = prev_output_tokens.size(0)
        state = self.vectors.new_zeros(bsz, SIZE) if encoder_out is None else encoder_out
        states = []
        for tokens in prev_output_tokens.unbind(1):
            state = self.advance(state, tokens)
            states.append(state)
        return self.logits(torch.stack(states, dim=1)), {"attn": [None]}

    def max_positions(self) -> int:
        return 1024


class RecurrentDecoder(PrefixDecoder, IncrementalDecoder):
    """The same function, computed a token at a time from a state that follows the search's reordering."""

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        if incremental_state is None:
            return PrefixDecoder.forward(self, prev_output_tokens, encoder_out)
        state = self.get_incremental_state(incremental_state, "state")
        if state is None:
            bsz = prev_output_tokens.size(0)
            state = self.vectors.new_zeros(bsz, SIZE) if encoder_out is None else encoder_out
        state = self.advance(state, prev_output_tokens[:, -1])
        self.set_incremental_state(incremental_state, "state", state)
        return self.logits(state).unsqueeze(1), {"attn": [None]}

    def reorder_incremental_state(self, incremental_state: dict[str, Any], new_order: Tensor) -> None:
        state = self.get_incremental_state(incremental_state, "state")
        self.set_incremental_state(incremental_state, "state", state[new_order])


@pytest.fixture(scope="session")
def make_dictionary() -> Callable[[int], Dictionary]:
    """Dictionaries of a given size, the four special symbols included."""

    def make(size: int) -> Dictionary:
        dictionary = Dictionary()
        for number in range(size - len(dictionary)):
            dictionary.add_symbol(f"w{number}")
        return dictionary

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Models with random weights: ``make_model(dictionary, seed, incremental=True, source=True, sharpness=1.0)``."""

    def make(
        dictionary: Dictionary, seed: int = 0, incremental: bool = True, source: bool = True, sharpness: float = 1.0
    ) -> Any:
        generator = torch.Generator().manual_seed(seed)
        encoder = SumEncoder(dictionary, generator)
        decoder = (RecurrentDecoder if incremental else PrefixDecoder)(dictionary, generator, sharpness)
        return EncoderDecoderModel(encoder, decoder) if source else LanguageModel(decoder)

    return make


@pytest.fixture(scope="session")
def make_transformer(make_dictionary: Callable[[int], Dictionary]) -> Callable[..., Any]:
    """Small transformers with weights large enough for sharp, varied predictions."""

    def make(seed: int = 0, arch: str = "transformer_tiny", **options: Any) -> Any:
        dictionary = make_dictionary(VOCAB)
        task = argparse.Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
        torch.manual_seed(seed)
        model = build_model(argparse.Namespace(arch=arch, tokens_per_sample=64, **options), task).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)  # biases and norms too
            model.decoder.output_projection.weight.mul_(3)
            model.decoder.output_projection.weight[dictionary.eos()].mul_(2)
        return model

    return make


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., dict[str, Any]]:
    """A batch of random sentences, padded on the left: ``make_sample(dictionary, lengths, seed)``."""

    def make(dictionary: Dictionary, lengths: list[int], seed: int = 0) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        width = max(lengths)
        src_tokens = torch.full((len(lengths), width), dictionary.pad())
        for row, length in zip(src_tokens, lengths):
            words = torch.randint(dictionary.nspecial, len(dictionary), (length - 1,), generator=generator)
            row[width - length :] = torch.cat([words, torch.tensor([dictionary.eos()])])
        net_input = {"src_tokens": src_tokens, "src_lengths": torch.tensor(lengths)}
        return {"id": torch.arange(len(lengths)), "nsentences": len(lengths), "net_input": net_input}

    return make
