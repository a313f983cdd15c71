"""A translation model of pyseq's in the form that CTranslate2 reads.

CTranslate2's own converter builds the model with fairseq; this one takes pyseq's modules, which have the same names.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .harness import Unavailable

ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "gelu_accurate": "GELUTanh", "gelu_fast": "GELUTanh", "swish": "SWISH"}
# Options of transformers that it has no place for.
UNKNOWN = (
    "no_token_positional_embeddings", "no_cross_attention", "cross_self_attention",
    "scale_attn", "scale_fc", "scale_heads", "scale_resids",
)  # fmt: skip


def convert(model: Any, task: Any, folder: Path) -> None:
    """Write an encoder-decoder transformer and its dictionaries to ``folder``, which must not exist.

    Raises:
        Unavailable: it has no place for something in the model.
        ImportError: it is not installed.
    """
    check(model)
    spec = specification(model)
    spec.register_source_vocabulary(task.source_dictionary.symbols)
    spec.register_target_vocabulary(task.target_dictionary.symbols)
    spec.config.add_source_eos = True
    spec.config.decoder_start_token = task.target_dictionary.eos_word
    spec.validate()
    spec.optimize()  # one copy of tables that are shared
    folder.mkdir()
    spec.save(str(folder))


def check(model: Any) -> None:
    """Raises Unavailable, for all of it at once, for what it has no place for."""
    from pyseq.models.transformer import TransformerModel

    if not isinstance(model, TransformerModel):
        raise Unavailable(f"CTranslate2 has no {type(model).__name__}")
    options, decoder = model.decoder.cfg, model.decoder
    asked = [name for name in UNKNOWN if getattr(options, name)]
    if decoder.project_in_dim is not None or decoder.project_out_dim is not None:
        asked.append("embeddings of another size than the layers")
    if options.activation_fn not in ACTIVATIONS:
        asked.append(options.activation_fn)
    if asked:
        raise Unavailable(f"CTranslate2 has no {', no '.join(asked)}")


@torch.no_grad()
def specification(model: Any) -> Any:
    """The weights, without the dictionaries."""
    specs = importlib.import_module("ctranslate2.specs")
    transformer, common = specs.transformer_spec, specs.common_spec
    options, encoder, decoder = model.decoder.cfg, model.encoder, model.decoder
    shared: dict[str, Any] = {
        "activation": common.Activation[ACTIVATIONS[options.activation_fn]],
        "layernorm_embedding": options.layernorm_embedding,
    }
    spec = transformer.TransformerSpec(
        transformer.TransformerEncoderSpec(
            len(encoder.layers), options.encoder_attention_heads, pre_norm=options.encoder_normalize_before, **shared
        ),
        transformer.TransformerDecoderSpec(
            len(decoder.layers), options.decoder_attention_heads, pre_norm=options.decoder_normalize_before,
            no_final_norm=options.no_decoder_final_norm, **shared,
        ),
    )  # fmt: skip
    fill_stack(spec.encoder, encoder, spec.encoder.embeddings[0])
    fill_stack(spec.decoder, decoder, spec.decoder.embeddings)
    fill_linear(spec.decoder.projection, decoder.output_projection)
    return spec


def fill_stack(spec: Any, stack: Any, embeddings: Any) -> None:
    """Encoder or decoder."""
    embeddings.weight = array(stack.embed_tokens.weight)
    spec.scale_embeddings = float(stack.embed_scale)
    positions = stack.embed_positions
    table = positions.weight if isinstance(positions, nn.Embedding) else positions.weights
    spec.position_encodings.encodings = array(table[positions.padding_idx + 1 :])  # there, the first position is row 0
    if stack.layernorm_embedding is not None:
        fill_norm(spec.layernorm_embedding, stack.layernorm_embedding)
    for layer_spec, layer in zip(spec.layer, stack.layers):
        fill_layer(layer_spec, layer)
    if stack.layer_norm is not None:
        fill_norm(spec.layer_norm, stack.layer_norm)


def fill_layer(spec: Any, layer: Any) -> None:
    attention = layer.self_attn
    fill_linear(spec.self_attention.linear[0], attention.q_proj, attention.k_proj, attention.v_proj)
    fill_linear(spec.self_attention.linear[1], attention.out_proj)
    fill_norm(spec.self_attention.layer_norm, layer.self_attn_layer_norm)
    if hasattr(spec, "attention"):
        attention = layer.encoder_attn
        fill_linear(spec.attention.linear[0], attention.q_proj)
        fill_linear(spec.attention.linear[1], attention.k_proj, attention.v_proj)
        fill_linear(spec.attention.linear[2], attention.out_proj)
        fill_norm(spec.attention.layer_norm, layer.encoder_attn_layer_norm)
    fill_linear(spec.ffn.linear_0, layer.fc1)
    fill_linear(spec.ffn.linear_1, layer.fc2)
    fill_norm(spec.ffn.layer_norm, layer.final_layer_norm)


def fill_linear(spec: Any, *layers: nn.Linear) -> None:
    """One product for layers that read the same input."""
    spec.weight = array(torch.cat([*(layer.weight for layer in layers)]))
    if layers[0].bias is not None:
        spec.bias = array(torch.cat([*(layer.bias for layer in layers)]))


def fill_norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = array(norm.weight), array(norm.bias)


def array(tensor: torch.Tensor) -> Any:
    return tensor.detach().float().numpy()
