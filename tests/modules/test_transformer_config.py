from __future__ import annotations

from argparse import Namespace

import pytest

from pyseq.errors import ConfigError
from pyseq.modules.transformer_config import TransformerConfig, layers_to_keep, refuse_unavailable


def test_defaults_follow_other_options() -> None:
    cfg = TransformerConfig.from_namespace(Namespace(encoder_embed_dim=32, encoder_ffn_embed_dim=48, mine="kept"))
    assert (cfg.decoder_embed_dim, cfg.decoder_input_dim, cfg.decoder_output_dim) == (32, 32, 32)
    assert cfg.decoder_ffn_embed_dim == 48 and cfg.mine == "kept"  # type: ignore[attr-defined]
    assert (cfg.max_source_positions, cfg.max_target_positions, cfg.left_pad_target) == (1024, 1024, False)
    assert TransformerConfig.from_namespace(cfg) is cfg
    assert (cfg.encoder.embed_dim, cfg.decoder.layers) == (32, 6)
    given = TransformerConfig.from_namespace(
        Namespace(decoder_embed_dim=24, max_source_positions=7, left_pad_target=True)
    )
    assert (given.decoder_input_dim, given.max_source_positions, given.left_pad_target) == (24, 7, True)


def test_all_that_is_unavailable_is_told_at_once() -> None:
    refuse_unavailable(Namespace(adaptive_input=False, quant_noise_pq=0, adaptive_softmax_cutoff=None))
    with pytest.raises(ConfigError, match="(?s)adaptive_input: .*not available yet.*quant_noise_pq: .*not available"):
        refuse_unavailable(Namespace(adaptive_input=True, quant_noise_pq=0.1))


def test_layers_to_keep() -> None:
    assert layers_to_keep("4,0,2") == layers_to_keep([0, 4, 2]) == [0, 2, 4]
    assert layers_to_keep(None) is None and layers_to_keep("") is None
    with pytest.raises(ConfigError, match="'0,x' is not a list of layer numbers"):
        layers_to_keep("0,x")
