"""Small models, and what they compute written down a second time: numpy, float64, one sentence at a time."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyseq import models
from pyseq.models import ARCHITECTURES, MODELS, build_model

PAD = 1


class Symbols:
    """As much of a dictionary as models look at."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Symbols) and self.size == other.size

    def __getitem__(self, index: int) -> str:
        return f"s{index}"

    def pad(self) -> int:
        return PAD


def make_task(source: int, target: int) -> Any:
    return SimpleNamespace(source_dictionary=Symbols(source), target_dictionary=Symbols(target))


@pytest.fixture
def registries() -> Iterator[Any]:
    """The registries, put back afterwards."""
    kept = dict(MODELS._entries), dict(ARCHITECTURES)
    yield models
    for registry, entries in zip((MODELS._entries, ARCHITECTURES), kept):
        registry.clear()
        registry.update(entries)


@pytest.fixture
def task_of() -> Callable[[int, int], Any]:
    return make_task


@pytest.fixture
def small_model() -> Callable[..., Any]:
    """Builds a float64 model of random weights from options, in evaluation mode."""

    def build(arch: str = "transformer_tiny", source: int = 19, target: int = 23, **options: Any) -> Any:
        torch.manual_seed(5)
        options = {"dropout": 0.0, "attention_dropout": 0.0} | options
        if arch == "transformer_tiny":
            options = {"encoder_embed_dim": 16, "encoder_ffn_embed_dim": 20} | options
        model = build_model(Namespace(arch=arch, **options), make_task(source, target))
        for name, p in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                nn.init.normal_(p, mean=0.2, std=0.5)
        return model.double().eval()

    return build


def pad_rows(rows: list[list[int]], left: bool) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[PAD] * (width - len(r)) + r if left else r + [PAD] * (width - len(r)) for r in rows])


@pytest.fixture
def padded() -> Callable[[list[list[int]], bool], Tensor]:
    return pad_rows


class Oracle:
    """The transformer of one sentence from a state dict (Vaswani et al., 2017), with loops over heads."""

    def __init__(self, model: nn.Module, cfg: Any) -> None:
        # The sinusoids are fp32 in the model, and tested elsewhere.
        tensors = dict(model.named_buffers()) | model.state_dict()
        self.w = {name: value.double().numpy() for name, value in tensors.items()}
        self.cfg = cfg

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        bias = self.w.get(f"{name}.bias", 0)
        return x @ self.w[f"{name}.weight"].T + bias

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attend(
        self, x: np.ndarray, y: np.ndarray, name: str, heads: int, causal: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        q, k, v = self.linear(x, f"{name}.q_proj"), self.linear(y, f"{name}.k_proj"), self.linear(y, f"{name}.v_proj")
        size = q.shape[1] // heads
        outs, weights = [], []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            if causal:
                scores[np.triu_indices_from(scores, 1)] = -np.inf
            e = np.exp(scores - scores.max(-1, keepdims=True))
            weights.append(e / e.sum(-1, keepdims=True))
            outs.append(weights[-1] @ v[:, part])
        return self.linear(np.concatenate(outs, 1), f"{name}.out_proj"), np.stack(weights)

    def block(self, x: np.ndarray, norm: str, pre: bool, fn: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return x + fn(self.norm(x, norm)) if pre else self.norm(x + fn(x), norm)

    def ffn(self, x: np.ndarray, layer: str) -> np.ndarray:
        h = self.linear(x, f"{layer}.fc1")
        if self.cfg.activation_fn == "gelu":
            h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        else:
            h = np.maximum(h, 0)
        return self.linear(h, f"{layer}.fc2")

    def embed(self, tokens: list[int], side: str) -> np.ndarray:
        x = self.w[f"{side}.embed_tokens.weight"][tokens]
        dim = getattr(self.cfg, f"{side}_embed_dim")
        if not self.cfg.no_scale_embedding:
            x = x * math.sqrt(dim)
        if f"{side}.project_in_dim.weight" in self.w:
            x = self.linear(x, f"{side}.project_in_dim")
        positions = np.arange(len(tokens)) + PAD + 1
        if f"{side}.embed_positions.weight" in self.w:
            x = x + self.w[f"{side}.embed_positions.weight"][positions]
        elif not self.cfg.no_token_positional_embeddings:
            x = x + self.w[f"{side}.embed_positions.weights"][positions]
        return self.norm(x, f"{side}.layernorm_embedding") if self.cfg.layernorm_embedding else x

    def encode(self, tokens: list[int]) -> np.ndarray:
        cfg, pre = self.cfg, self.cfg.encoder_normalize_before
        x = self.embed(tokens, "encoder")
        for i in range(cfg.encoder_layers):
            name = f"encoder.layers.{i}"

            def attend(y: np.ndarray, name: str = name) -> np.ndarray:
                return self.attend(y, y, f"{name}.self_attn", cfg.encoder_attention_heads, False)[0]

            x = self.block(x, f"{name}.self_attn_layer_norm", pre, attend)
            x = self.block(x, f"{name}.final_layer_norm", pre, lambda y, name=name: self.ffn(y, name))
        return self.norm(x, "encoder.layer_norm") if pre else x

    def decode(self, tokens: list[int], enc: np.ndarray | None) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits [T V], and the attention to the source [H T S] of each layer."""
        cfg, pre, heads = self.cfg, self.cfg.decoder_normalize_before, self.cfg.decoder_attention_heads
        x = self.embed(tokens, "decoder")
        weights: list[np.ndarray] = []
        for i in range(cfg.decoder_layers):
            name = f"decoder.layers.{i}"

            def attend(y: np.ndarray, name: str = name) -> np.ndarray:
                return self.attend(y, y, f"{name}.self_attn", heads, True)[0]

            def attend_source(y: np.ndarray, name: str = name) -> np.ndarray:
                assert enc is not None
                out, w = self.attend(y, enc, f"{name}.encoder_attn", heads, False)
                weights.append(w)
                return out

            x = self.block(x, f"{name}.self_attn_layer_norm", pre, attend)
            if enc is not None:
                x = self.block(x, f"{name}.encoder_attn_layer_norm", pre, attend_source)
            x = self.block(x, f"{name}.final_layer_norm", pre, lambda y, name=name: self.ffn(y, name))
        if "decoder.layer_norm.weight" in self.w:
            x = self.norm(x, "decoder.layer_norm")
        if "decoder.project_out_dim.weight" in self.w:
            x = self.linear(x, "decoder.project_out_dim")
        return self.linear(x, "decoder.output_projection"), weights


@pytest.fixture
def oracle() -> type[Oracle]:
    return Oracle
