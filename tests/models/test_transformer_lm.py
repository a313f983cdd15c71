from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from pyseq.errors import ConfigError
from pyseq.models import ARCHITECTURES, MODELS, build_model
from pyseq.models.transformer_lm import TransformerLanguageModelConfig
from pyseq.modules.transformer_config import TransformerConfig

ROWS = [[2, 5, 6, 7, 8], [2, 9], [2, 10, 11, 12]]

# dim, inner dim, layers, heads, dropout, attention dropout, activation, learned positions, tied
SIZES = {
    "big": (1024, 4096, 12, 16, 0.1, 0.0, "relu", False, False),
    "gpt": (768, 3072, 12, 12, 0.1, 0.1, "gelu", False, False),
    "gpt2_tiny": (64, 64, 2, 1, 0.1, 0.1, "gelu", False, False),
    "gpt2_small": (1024, 4096, 24, 16, 0.1, 0.1, "gelu", False, False),
    "gpt2_medium": (1280, 5120, 36, 20, 0.1, 0.1, "gelu", False, False),
    "gpt2_big": (1600, 6400, 48, 25, 0.1, 0.1, "gelu", False, False),
    "gpt2_big_wide": (2048, 8192, 24, 32, 0.1, 0.1, "gelu", False, False),
    "gpt2_bigger": (2048, 8192, 48, 32, 0.1, 0.1, "gelu", False, False),
    "gpt3_small": (768, 3072, 12, 12, 0.0, 0.0, "gelu", True, True),
    "gpt3_medium": (1024, 4096, 24, 16, 0.0, 0.0, "gelu", True, True),
    "gpt3_large": (1536, 6144, 24, 16, 0.0, 0.0, "gelu", True, True),
    "gpt3_xl": (2048, 8192, 24, 32, 0.0, 0.0, "gelu", True, True),
    "gpt3_2_7": (2560, 10240, 32, 32, 0.0, 0.0, "gelu", True, True),
    "gpt3_6_7": (4096, 16384, 32, 32, 0.0, 0.0, "gelu", True, True),
    "gpt3_13": (5120, 20480, 40, 40, 0.0, 0.0, "gelu", True, True),
    "gpt3_175": (12288, 49152, 96, 96, 0.0, 0.0, "gelu", True, True),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str, task_of) -> None:
    args = Namespace(arch=f"transformer_lm_{name}", tokens_per_sample=128)
    with torch.device("meta"):
        model = build_model(args, task_of(100, 100))
    d, f, layers, heads, dropout, attention_dropout, activation, learned, tied = SIZES[name]
    cfg = model.decoder.cfg
    assert (cfg.dropout, cfg.attention_dropout, cfg.activation_fn) == (dropout, attention_dropout, activation)
    assert cfg.decoder_normalize_before and model.decoder.layers[0].self_attn.num_heads == heads
    per_layer = 4 * (d * d + d) + 2 * d * f + d + f + 2 * 2 * d
    tables = (1 if tied else 2) * 100 * d + ((128 + 2) * d if learned else 0)
    assert sum(p.numel() for p in model.parameters()) == layers * per_layer + tables + 2 * d


def test_wiki103_and_gbw_wait_for_adaptive_embeddings(task_of) -> None:
    assert not {"transformer_lm_wiki103", "transformer_lm_gbw"} & ARCHITECTURES.keys()
    for option in ("adaptive_input", "adaptive_softmax_cutoff", "character_embeddings", "base_layers"):
        args = TransformerLanguageModelConfig(_name="transformer_lm")
        setattr(args, option, True)
        with pytest.raises(ConfigError, match=f"{option}: .* not available"):
            build_model(args, task_of(9, 9))


def test_the_architecture_without_a_name_of_its_own_is_post_norm(small_model) -> None:
    assert not small_model("transformer_lm").decoder.layers[0].normalize_before
    assert small_model("transformer_lm_gpt2_tiny").decoder.layers[0].normalize_before


def test_input_and_output_sizes(small_model) -> None:
    """The unnamed architecture keeps 512 for both, whatever the layers have; named ones follow the layers."""
    names = small_model("transformer_lm", decoder_embed_dim=32).state_dict()
    assert names["decoder.project_in_dim.weight"].shape == (32, 512)
    assert names["decoder.project_out_dim.weight"].shape == (512, 32)
    names = small_model("transformer_lm_gpt2_tiny", decoder_embed_dim=32).state_dict()
    assert not any("project_in" in n or "project_out" in n for n in names)
    assert (
        small_model("transformer_lm_gpt3_small", decoder_embed_dim=24, decoder_layers=1)
        .decoder.layers[0]
        .fc1.out_features
        == 96
    )


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_decoder_final_norm": True, "layernorm_embedding": True},
        {"decoder_learned_pos": True, "share_decoder_input_output_embed": True, "no_scale_embedding": True},
    ],
)
def test_logits_of_a_padded_batch(small_model, oracle, padded, options, left) -> None:
    model = small_model("transformer_lm_gpt2_tiny", target=19, decoder_attention_heads=4, **options)
    logits, extra = model(padded(ROWS, left), src_lengths=torch.tensor([5, 2, 4]))
    assert extra["attn"] == [None]
    numpy_model = oracle(model, model.decoder.cfg)
    for ours, row in zip(logits, ROWS):
        theirs, _ = numpy_model.decode(row, None)
        here = ours[-len(row) :] if left else ours[: len(row)]
        torch.testing.assert_close(here.detach(), torch.from_numpy(theirs), rtol=0, atol=1e-11)


def test_steps_equal_the_whole_prefix(small_model) -> None:
    model = small_model("transformer_lm_gpt3_small", decoder_embed_dim=24, decoder_layers=2, target=19)
    tokens = torch.randint(4, 19, (3, 7))
    full, _ = model(tokens)
    state: dict = {}
    for t in range(7):
        step, _ = model.decoder(tokens[:, : t + 1], incremental_state=state)
        torch.testing.assert_close(step[:, 0], full[:, t], rtol=0, atol=1e-10)


def test_positions_default_to_the_sample_length(task_of) -> None:
    def limit(**options) -> int:
        with torch.device("meta"):
            return build_model(Namespace(arch="transformer_lm_gpt2_tiny", **options), task_of(9, 9)).max_positions()

    assert limit(tokens_per_sample=77) == 77
    assert limit(tokens_per_sample=77, max_target_positions=99) == 99
    assert limit() == 1024


def test_a_config_node_builds_the_same_model_as_a_namespace(task_of) -> None:
    given = {"decoder_embed_dim": 32, "decoder_ffn_embed_dim": 48, "decoder_layers": 1, "decoder_attention_heads": 2}
    args = Namespace(arch="transformer_lm_gpt", **given)
    ARCHITECTURES["transformer_lm_gpt"].fill_in(args)
    node = TransformerLanguageModelConfig.from_namespace(args)
    node._name = "transformer_lm_gpt"
    states = []
    for cfg in (args, node, {"_name": "transformer_lm_gpt", **given}):
        torch.manual_seed(0)
        states.append(build_model(cfg, task_of(9, 9)).state_dict())
    for other in states[1:]:
        assert list(states[0]) == list(other) and all(torch.equal(states[0][k], other[k]) for k in other)


def test_options_read_by_the_decoder_are_options_of_the_model() -> None:
    lm = {name for name in TransformerLanguageModelConfig.__dataclass_fields__ if name.startswith("decoder_")}
    assert lm == {n for n in TransformerConfig.__dataclass_fields__ if n.startswith("decoder_")} - {
        "decoder_embed_path"
    }
    assert MODELS.entry("transformer_lm").group is TransformerLanguageModelConfig
