"""Checkpoints of older and of deeper models."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from pyseq.errors import CheckpointError

PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}


def aged(state: dict) -> dict:
    """The same parameters under the names of fairseq's first releases."""
    old = {}
    for name, value in state.items():
        side, parts = name.split(".")[0], name.split(".")
        if len(parts) > 3 and parts[3] in NORMS[side]:
            name = name.replace(parts[3], f"layer_norms.{NORMS[side].index(parts[3])}")
        if "version" in name or "layer_norm." in name.replace("layer_norms.", "") and parts[1] == "layer_norm":
            continue
        for kind in ("weight", "bias"):
            if name.endswith(f"q_proj.{kind}"):
                stacked = [state[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
                old[name.replace(f"q_proj.{kind}", f"in_proj_{kind}")] = torch.cat(stacked)
        if not any(p in name for p in ("q_proj", "k_proj", "v_proj")):
            old[name] = value
    old["encoder.embed_positions._float_tensor"] = old["decoder.embed_positions._float_tensor"] = torch.zeros(1)
    return old


@pytest.mark.parametrize("tied", [False, True])
def test_names_of_the_first_releases(small_model, padded, tied) -> None:
    options = PRE_NORM | {"share_decoder_input_output_embed": tied}
    model, fresh = small_model(**options), small_model(**options)
    model.encoder.layer_norm = model.decoder.layer_norm = None  # models of that time had none
    old = aged(model.state_dict())
    projection = old.pop("decoder.output_projection.weight")
    if not tied:
        old["decoder.embed_out"] = projection
    assert not any("q_proj" in name or "self_attn_layer_norm" in name for name in old)
    with torch.no_grad():
        for p in fresh.parameters():
            p.zero_()
    names = list(old)
    fresh.load_state_dict(old)
    assert list(old) == names
    batch = padded([[5, 6, 2], [7, 2]], True), None, padded([[2, 5], [2, 6, 7]], False)
    assert torch.equal(fresh(*batch)[0], model(*batch)[0])
    assert fresh.encoder.version.item() == fresh.decoder.version.item() == 1


def test_the_final_norm_stays_where_the_version_says_so(small_model) -> None:
    state = small_model(**PRE_NORM).state_dict()
    assert state["encoder.version"].tolist() == state["decoder.version"].tolist() == [3.0]
    for side, version, stays in (("encoder", 2.0, True), ("encoder", 1.0, False), ("decoder", 2.0, False)):
        model = small_model(**PRE_NORM)
        old = state | {f"{side}.version": torch.tensor([version])}
        if not stays:
            old = {k: v for k, v in old.items() if not k.startswith(f"{side}.layer_norm.")}
        model.load_state_dict(old)
        assert (getattr(model, side).layer_norm is not None) == stays


def test_layers_of_a_deeper_model(small_model, padded) -> None:
    deep = small_model(encoder_layers=4, decoder_layers=3)
    cfg = {"encoder_layers": 4, "encoder_layers_to_keep": "3,1", "decoder_layers_to_keep": "2"}
    shallow = small_model(**cfg)
    assert (len(shallow.encoder.layers), len(shallow.decoder.layers)) == (2, 1)
    args = Namespace(**cfg)
    shallow.load_state_dict(deep.state_dict(), model_cfg=args)
    assert args.encoder_layers_to_keep is None and args.decoder_layers_to_keep is None
    deep.encoder.layers = torch.nn.ModuleList([deep.encoder.layers[1], deep.encoder.layers[3]])
    deep.decoder.layers = torch.nn.ModuleList([deep.decoder.layers[2]])
    batch = padded([[5, 6, 2], [7, 2]], True), None, padded([[2, 5], [2, 6, 7]], False)
    assert torch.equal(shallow(*batch)[0], deep(*batch)[0])
    # What is saved next loads into a model of the same options without pruning a second time.
    small_model(encoder_layers=2, decoder_layers=1).load_state_dict(shallow.state_dict(), model_cfg=args)


def test_layers_that_are_not_there(small_model) -> None:
    with pytest.raises(
        CheckpointError, match=r"--encoder-layers-to-keep asks for layers \[5\]; the checkpoint has 2 enc"
    ):
        small_model().load_state_dict(small_model().state_dict(), args=Namespace(encoder_layers_to_keep="0,5"))


def test_another_models_parameters_are_refused_in_one_message(small_model) -> None:
    model, other = small_model(), small_model(encoder_ffn_embed_dim=28, encoder_layers=1, decoder_layers=3)
    with pytest.raises(CheckpointError) as error:
        model.load_state_dict(other.state_dict())
    missing, unknown = "encoder.layers.1.self_attn", "decoder.layers.2.self_attn"
    assert str(error.value) == (
        f"the checkpoint does not fit this TransformerModel: it lacks {missing}.k_proj.weight, {missing}.k_proj.bias, "
        f"{missing}.v_proj.weight and 13 more; the model has no {unknown}.k_proj.weight, {unknown}.k_proj.bias, "
        f"{unknown}.v_proj.weight and 23 more; other sizes: encoder.layers.0.fc1.weight 28 x 16 instead of 20 x 16, "
        "encoder.layers.0.fc1.bias 28 instead of 20, encoder.layers.0.fc2.weight 16 x 28 instead of 16 x 20 and 6 "
        "more. It was trained with another --arch, other model options, or another dictionary."
    )
    assert model.load_state_dict(model.state_dict() | {"more": torch.zeros(1)}, strict=False).unexpected_keys == [
        "more"
    ]
