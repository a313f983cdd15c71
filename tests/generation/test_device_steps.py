"""Steps of a decoder for devices: keys and values that stay where they are, and steps recorded as CUDA graphs.

Without a GPU what is recorded runs again, and the kernel in Triton's interpreter, or its reference, which is quicker.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyseq.errors import ConfigError
from pyseq.generation import SequenceGenerator
from pyseq.ops import dispatch
from pyseq.ops.decoder_step import attend
from pyseq.ops.decoder_step.graph import GraphedSteps
from support.backends import running_on
from support.generation import VOCAB, assert_as_by_layers, is_fast
from support.graphs import Replays

SMALL = {"decoder_embed_dim": 16, "decoder_output_dim": 16, "decoder_input_dim": 16, "encoder_embed_dim": 16}


def on(device: torch.device, sample: dict[str, Any]) -> dict[str, Any]:
    return sample | {"net_input": {key: value.to(device) for key, value in sample["net_input"].items()}}


def record(model: Any) -> Replays | None:
    """Have the decoder's steps recorded; returns what counts them, where it is not CUDA that does it."""
    decoder, replays = model.decoder, Replays()
    decoder.cuda_graphs = True
    if next(decoder.parameters()).is_cuda:
        return None
    decoder._prepared.graphs = GraphedSteps(replays)
    return replays


@pytest.fixture
def quick_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    if dispatch.interpreting():
        monkeypatch.setattr("pyseq.kernels.decode_attention.attend", attend)


@pytest.mark.usefixtures("quick_kernel")
@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ({"decoder_normalize_before": True, "activation_fn": "gelu"}, False),
        ({}, True),
    ],
    ids=["pre-norm, eager", "post-norm, graphs"],
)
def test_as_by_layers(options, graphs, make_transformer, make_dictionary, make_sample):
    """Sentences leave the batch, batches of other sizes follow, weights change."""
    dictionary = make_dictionary(VOCAB)
    with running_on("triton") as device:
        model = make_transformer(encoder_layers=1, encoder_normalize_before=True, **options).to(device)
        assert is_fast(model)
        replays = record(model) if graphs else None
        generator = SequenceGenerator([model], dictionary, 4, max_len_b=20)
        for lengths in ([7, 2, 9, 4], [4, 6, 5, 3, 2]):
            assert_as_by_layers(generator, on(device, make_sample(dictionary, lengths)))
        with torch.no_grad():
            model.decoder.layers[0].fc1.weight.mul_(-1)
        assert_as_by_layers(generator, on(device, make_sample(dictionary, [3, 4])))
    assert replays is None or replays.recorded > 0


@pytest.mark.usefixtures("quick_kernel")
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_language_models_ensembles_and_prefixes(graphs, make_transformer, make_dictionary, make_sample):
    dictionary = make_dictionary(VOCAB)
    lm_options = {"decoder_layers": 1, "decoder_embed_dim": 16, "decoder_attention_heads": 2}
    with running_on("triton") as device:
        lm = make_transformer(9, arch="transformer_lm", **lm_options).to(device)
        model = make_transformer(1).to(device)
        assert is_fast(lm)
        if graphs:
            record(lm)
            record(model)
        # The model twice: two batches at a time go through its one decoder.
        generator = SequenceGenerator([model, model], dictionary, 3, max_len_b=15, lm_model=lm, lm_weight=0.3)
        prefix = torch.tensor([[7, 9], [8, dictionary.pad()]], device=device)
        assert_as_by_layers(generator, on(device, make_sample(dictionary, [5, 3])), prefix_tokens=prefix)


def test_half_precision_keeps_its_dtype(make_transformer, make_dictionary, make_sample):
    dictionary = make_dictionary(VOCAB)
    with running_on("triton") as device:
        model = make_transformer(3, **SMALL).to(device, torch.bfloat16)
        assert is_fast(model)
        generator = SequenceGenerator([model], dictionary, 2, max_len_b=3)
        with torch.no_grad():
            state = model.decoder.new_incremental_state()
            encoded = model.encoder.forward_torchscript(on(device, make_sample(dictionary, [4, 2]))["net_input"])
            tokens = torch.tensor([[2], [2]], device=device)
            features = model.decoder(tokens, encoded, incremental_state=state, features_only=True)[0]
        assert features.dtype == torch.bfloat16
        found = generator.generate(None, on(device, make_sample(dictionary, [4, 2])))
    assert all(torch.isfinite(h["score"]) for hypotheses in found for h in hypotheses)


def test_graphs_need_a_gpu(make_transformer, make_dictionary, make_sample):
    dictionary = make_dictionary(VOCAB)
    generator = SequenceGenerator([make_transformer()], dictionary, 2, cuda_graphs=True)
    with pytest.raises(ConfigError, match="--cuda-graphs needs a GPU"):
        generator.generate(None, make_sample(dictionary, [4, 2]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_replayed_steps_find_the_same(dtype, make_transformer, make_dictionary, make_sample):
    dictionary = make_dictionary(VOCAB)
    model = make_transformer(3).to("cuda", dtype)
    sample = on(torch.device("cuda"), make_sample(dictionary, [7, 2, 9, 4, 4, 6, 3, 8]))
    eager = SequenceGenerator([model], dictionary, 4, max_len_b=12).generate(None, sample)
    generator = SequenceGenerator([model], dictionary, 4, max_len_b=12, cuda_graphs=True)
    generator.generate(None, sample)  # records
    again = generator.generate(None, sample)
    assert model.decoder._prepared.graphs._recorded
    for hypotheses, others in zip(again, eager, strict=True):
        assert [h["tokens"].tolist() for h in hypotheses] == [h["tokens"].tolist() for h in others]
        # Rows are rounded up for graphs, which may change the order in which a product adds up.
        atol = 1e-4 if dtype == torch.float32 else 5e-2
        for one, other in zip(hypotheses, others):
            torch.testing.assert_close(one["positional_scores"], other["positional_scores"], rtol=0, atol=atol)
