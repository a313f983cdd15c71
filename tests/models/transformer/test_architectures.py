"""Sizes as published, and the rule that what is given wins."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from pyseq.models import ARCHITECTURES, build_model
from pyseq.models.transformer import (
    base_architecture,
    transformer_iwslt_de_en,
    transformer_vaswani_wmt_en_de_big,
    transformer_vaswani_wmt_en_fr_big,
    transformer_wmt_en_de_big_t2t,
)

# dim, inner dim, layers, heads, dropout, attention dropout, activation dropout, pre-norm
SIZES = {
    "transformer": (512, 2048, 6, 8, 0.1, 0.0, 0.0, False),
    "transformer_tiny": (64, 64, 2, 2, 0.1, 0.0, 0.0, False),
    "transformer_iwslt_de_en": (512, 1024, 6, 4, 0.1, 0.0, 0.0, False),
    "transformer_wmt_en_de": (512, 2048, 6, 8, 0.1, 0.0, 0.0, False),
    "transformer_vaswani_wmt_en_de_big": (1024, 4096, 6, 16, 0.3, 0.0, 0.0, False),
    "transformer_vaswani_wmt_en_fr_big": (1024, 4096, 6, 16, 0.1, 0.0, 0.0, False),
    "transformer_wmt_en_de_big": (1024, 4096, 6, 16, 0.3, 0.1, 0.0, False),
    "transformer_wmt_en_de_big_t2t": (1024, 4096, 6, 16, 0.3, 0.1, 0.1, True),
}


def test_there_are_these_architectures() -> None:
    assert {name for name, a in ARCHITECTURES.items() if a.model_name == "transformer"} >= SIZES.keys()


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str, task_of) -> None:
    args = Namespace(arch=name)
    ARCHITECTURES[name].fill_in(args)
    for side in ("encoder", "decoder"):
        options = ("embed_dim", "ffn_embed_dim", "layers", "attention_heads")
        assert tuple(getattr(args, f"{side}_{option}") for option in options) == SIZES[name][:4]
        assert getattr(args, f"{side}_normalize_before") == SIZES[name][7]
    assert (args.dropout, args.attention_dropout, args.activation_dropout) == SIZES[name][4:7]
    assert args.decoder_input_dim == args.decoder_output_dim == args.decoder_embed_dim

    d, f, layers = SIZES[name][:3]
    with torch.device("meta"):
        model = build_model(args, task_of(100, 90))
    attention, norm, ffn = 4 * (d * d + d), 2 * d, 2 * d * f + d + f
    per_layer = (attention + ffn + 2 * norm) + (2 * attention + ffn + 3 * norm)
    final_norms = 2 * norm if SIZES[name][7] else 0
    assert sum(p.numel() for p in model.parameters()) == layers * per_layer + (100 + 90 + 90) * d + final_norms


def test_what_is_given_wins_and_the_rest_follows() -> None:
    args = Namespace(encoder_embed_dim=128, dropout=0.0)
    transformer_iwslt_de_en(args)
    assert (args.encoder_embed_dim, args.decoder_embed_dim, args.dropout) == (128, 512, 0.0)
    args = Namespace(encoder_embed_dim=128)
    base_architecture(args)
    assert (args.decoder_embed_dim, args.decoder_input_dim, args.decoder_ffn_embed_dim) == (128, 128, 2048)
    before = vars(args).copy()
    base_architecture(args)
    assert vars(args) == before


def test_rows_over_rows() -> None:
    assert transformer_vaswani_wmt_en_fr_big.parent is transformer_vaswani_wmt_en_de_big
    mine = transformer_wmt_en_de_big_t2t.row(encoder_layers=12, decoder_layers=lambda args: args.encoder_layers // 2)
    args = Namespace()
    mine(args)
    assert (args.encoder_layers, args.decoder_layers, args.encoder_embed_dim) == (12, 6, 1024)
    assert args.encoder_normalize_before and args.activation_dropout == 0.1
    args = Namespace(encoder_layers=4)
    mine(args)
    assert args.decoder_layers == 2


def test_the_namespace_of_fairseq_is_filled_in_the_same(reference) -> None:
    """Every model option that fairseq's architecture left in a checkpoint has the value that ours gives it."""
    with torch.serialization.safe_globals([Namespace]):
        theirs = vars(torch.load(reference / "checkpoints" / "init.pt", weights_only=True)["cfg"]["model"])
    given = ("encoder_layers", "decoder_layers", "encoder_embed_dim", "decoder_embed_dim", "encoder_ffn_embed_dim")
    args = Namespace(**{k: theirs[k] for k in (*given, "decoder_ffn_embed_dim", "dropout")})
    args.share_all_embeddings = args.share_decoder_input_output_embed = True
    transformer_iwslt_de_en(args)
    shared = vars(args).keys() & theirs.keys()
    assert len(shared) > 30
    assert {k: vars(args)[k] for k in shared} == {k: theirs[k] for k in shared}
