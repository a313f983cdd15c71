"""The whole model against numpy, sentence by sentence, and the seams that plug-ins use."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyseq.errors import ConfigError
from pyseq.models import build_model, register_model
from pyseq.models.transformer import TransformerDecoder, TransformerEncoder, TransformerModel, transformer_tiny
from pyseq.modules import TransformerEncoderLayer

SOURCE = [[5, 6, 7, 8, 2], [9, 2], [10, 11, 12, 2]]
PREFIX = [[2, 13, 14], [2, 15, 16, 17, 18, 19], [2]]

VARIANTS: dict[str, dict] = {
    "post-norm": {},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "no final norm": {"decoder_normalize_before": True, "no_decoder_final_norm": True},
    "gelu": {"activation_fn": "gelu"},
    "learned positions": {"encoder_learned_pos": True, "decoder_learned_pos": True, "max_source_positions": 9},
    "embedding norm, no scale": {"layernorm_embedding": True, "no_scale_embedding": True},
    "no positions": {"no_token_positional_embeddings": True},
    "tied output": {"share_decoder_input_output_embed": True},
    "all tied": {"share_all_embeddings": True, "source": 23},
    "sizes": {"decoder_embed_dim": 24, "decoder_input_dim": 12, "decoder_output_dim": 10, "decoder_attention_heads": 3},
    "recomputed": {"checkpoint_activations": True},
}


def rows_of(logits: torch.Tensor, left: bool) -> list[torch.Tensor]:
    return [row[-len(p) :] if left else row[: len(p)] for row, p in zip(logits, PREFIX)]


@pytest.mark.parametrize("left_target", [False, True])
@pytest.mark.parametrize("left_source", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_a_padded_batch(small_model, oracle, padded, variant, left_source, left_target) -> None:
    model = small_model(**VARIANTS[variant])
    source, prefix = padded(SOURCE, left_source), padded(PREFIX, left_target)
    logits, extra = model(source, None, prefix)
    assert logits.shape == (3, 6, 23) and extra["attn"] == [None]
    numpy_model = oracle(model, model.cfg)
    for ours, src, prev in zip(rows_of(logits, left_target), SOURCE, PREFIX):
        theirs, _ = numpy_model.decode(prev, numpy_model.encode(src))
        torch.testing.assert_close(ours.detach(), torch.from_numpy(theirs), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(small_model, padded, dtype) -> None:
    model = small_model(encoder_normalize_before=True, decoder_normalize_before=True)
    batch = padded(SOURCE, True), None, padded(PREFIX, True)
    real = batch[2].ne(1)
    exact, _ = model(*batch)
    ours, _ = model.to(dtype)(*batch)
    error = (ours.double() - exact)[real].norm() / exact[real].norm()
    assert ours.dtype == dtype and error < 8 * torch.finfo(dtype).eps
    ours[real].float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    probs = model.get_normalized_probs((ours, None), log_probs=False)
    assert probs.dtype == torch.float32 and (probs.sum(-1) - 1).abs().max() < 1e-5


def test_attention_is_returned_when_asked_for(small_model, oracle, padded) -> None:
    model = small_model()
    source, prefix = padded(SOURCE, True), padded(PREFIX, False)
    numpy_model = oracle(model, model.cfg)
    asked = [({"alignment_layer": 0}, 0, 2), ({"alignment_heads": 1}, 1, 1), ({"alignment_layer": 1}, 1, 2)]
    model.decoder.need_attn = False
    results = [(model(source, None, prefix, **kwargs)[1]["attn"][0], layer, heads) for kwargs, layer, heads in asked]
    model.decoder.make_generation_fast_(need_attn=True)
    results.append((model(source, None, prefix)[1]["attn"][0], 1, 2))
    for attn, layer, heads in results:
        for ours, src, prev in zip(attn, SOURCE, PREFIX):
            _, weights = numpy_model.decode(prev, numpy_model.encode(src))
            theirs = torch.from_numpy(weights[layer][:heads].mean(0))
            torch.testing.assert_close(ours[: len(prev), -len(src) :].detach(), theirs, rtol=0, atol=1e-12)
            assert torch.all(ours[:, : -len(src)] == 0)


@pytest.mark.parametrize("left", [False, True])
def test_training_needs_no_mask_tensor_unless_targets_are_padded_on_the_left(
    small_model, padded, monkeypatch, left
) -> None:
    model = small_model().train()
    calls = []
    fused = F.scaled_dot_product_attention

    def record(*args, attn_mask=None, is_causal=False, **kwargs):
        calls.append("causal" if is_causal else "none" if attn_mask is None else "mask")
        return fused(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    model(padded([[5, 6, 2]] * 2, True), None, padded([[2, 5], [2, 5, 6]], left))
    assert calls == ["none", "none"] + ["mask" if left else "causal", "none"] * 2
    calls.clear()
    model(padded([[5, 2], [5, 6, 2]], True), None, padded([[2, 5], [2, 5]], left))
    assert calls == ["mask", "mask"] + ["causal", "mask"] * 2


@pytest.mark.parametrize("left_pad_target", [False, True])
def test_nothing_reads_the_device(small_model, padded, left_pad_target) -> None:
    """Tensors on the meta device have no values: whatever would make the host wait for a GPU raises."""
    model = small_model(left_pad_target=left_pad_target, layernorm_embedding=True).train().to("meta")
    source, prefix = padded(SOURCE, True).to("meta"), padded(PREFIX, left_pad_target).to("meta")
    logits, _ = model(source, torch.empty(3, device="meta"), prefix, alignment_layer=0)
    logits.sum().backward()
    model.eval()
    with torch.no_grad():
        encoder_out = model.encoder(source)
        order = torch.empty(6, dtype=torch.long, device="meta")
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
        state: dict = {}
        for t in (1, 2):
            tokens = torch.empty(6, t, dtype=torch.long, device="meta")
            logits, _ = model.decoder(tokens, encoder_out=encoder_out, incremental_state=state)
            model.get_normalized_probs((logits, None), log_probs=True)
            model.decoder.reorder_incremental_state_scripting(state, order)


def test_gradients_do_not_reach_padding(small_model, padded) -> None:
    model = small_model().train()
    logits, _ = model(padded(SOURCE, True), None, padded(PREFIX, False))
    mask = padded(PREFIX, False).ne(1)
    logits[mask].square().sum().backward()
    for table in (model.encoder.embed_tokens, model.decoder.embed_tokens):
        assert torch.all(table.weight.grad[1] == 0) and table.weight.grad.isfinite().all()
    assert model.encoder.embed_tokens.weight.grad[5].abs().sum() > 0


def test_a_row_of_padding_alone_does_no_harm(small_model, padded) -> None:
    model = small_model().train()
    source, prefix = padded([*SOURCE, [1]], True), padded([*PREFIX, [1]], False)
    logits, _ = model(source, None, prefix)
    assert logits.isfinite().all()
    logits[:3].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    expected, _ = model(source[:3], None, prefix[:3])
    torch.testing.assert_close(logits[:3], expected, rtol=0, atol=1e-12)


def test_layerdrop_and_dropout_act_in_training_only(small_model, padded) -> None:
    model = small_model(dropout=0.2, encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    batch = padded(SOURCE, True), None, padded(PREFIX, False)
    assert torch.equal(model(*batch)[0], model(*batch)[0])
    assert list(model.state_dict()) == list(small_model().state_dict())
    model.train()
    assert not torch.equal(model(*batch)[0], model(*batch)[0])


def test_tied_tables_are_one_parameter_under_every_name(small_model) -> None:
    model = small_model(share_all_embeddings=True, source=23)
    names = [n for n in model.state_dict() if "embed_tokens" in n or "output_projection" in n]
    assert names == ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"]
    assert model.encoder.embed_tokens.weight is model.decoder.output_projection.weight
    assert [n for n, _ in model.named_parameters() if "embed" in n or "output" in n] == ["encoder.embed_tokens.weight"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"share_all_embeddings": True}, "needs a joined dictionary"),
        ({"share_all_embeddings": True, "decoder_embed_dim": 24, "source": 23}, r"\(16\) and .* \(24\) to be equal"),
        ({"share_all_embeddings": True, "decoder_embed_path": "x", "source": 23}, "--encoder-embed-path alone"),
        ({"adaptive_softmax_cutoff": "10,20"}, "adaptive softmax is not available"),
        ({"activation_fn": "rellu"}, "unknown --activation-fn 'rellu'. Did you mean 'relu'"),
        ({"encoder_attention_heads": 3}, "3 attention heads do not divide an embedding of dimension 16"),
    ],
)
def test_options_that_do_not_fit(small_model, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        small_model(**options)


def test_pretrained_embeddings(small_model, tmp_path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("s5 " + " ".join(["0.5"] * 16) + "\n")
    model = small_model(encoder_embed_path=str(path))
    assert torch.all(model.encoder.embed_tokens.weight[5] == 0.5)
    assert not torch.any(model.decoder.embed_tokens.weight[5] == 0.5)


def test_flags_reach_the_namespace_only_when_given() -> None:
    parser = ArgumentParser()
    TransformerModel.add_args(parser.add_argument_group("model"))
    assert vars(parser.parse_args([])) == {}
    flags = (
        "--encoder-layers 3 --decoder-normalize-before --relu-dropout 0.2 --activation-fn gelu --share-all-embeddings "
        "--decoder-layers-to-keep 0,1 --encoder-embed-path v.txt --checkpoint-activations"
    )
    args = parser.parse_args(flags.split())
    assert vars(args) == {
        "encoder_layers": 3,
        "decoder_normalize_before": True,
        "activation_dropout": 0.2,
        "activation_fn": "gelu",
        "share_all_embeddings": True,
        "decoder_layers_to_keep": "0,1",
        "encoder_embed_path": "v.txt",
        "checkpoint_activations": True,
    }


class DoublingLayer(TransformerEncoderLayer):
    def residual_connection(self, x, residual):
        return residual + 2 * x


class PluginEncoder(TransformerEncoder):
    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(args, dictionary, embed_tokens)
        self.gain = args.my_gain

    def build_encoder_layer(self, args):
        assert args.my_gain == 3.0
        return DoublingLayer(args)

    def forward_embedding(self, src_tokens, token_embedding=None):
        x, embed = super().forward_embedding(src_tokens, token_embedding)
        return self.gain * x, embed


class PluginDecoder(TransformerDecoder):
    def extract_features(self, prev_output_tokens, encoder_out=None, incremental_state=None, **unused):
        x, extra = self.extract_features_scriptable(prev_output_tokens, encoder_out, incremental_state)
        return x + 1, extra

    def output_layer(self, features):
        return super().output_layer(features) - 1


def test_a_plug_in_built_on_the_seams(registries, task_of, padded) -> None:
    @register_model("plugin_transformer")
    class PluginModel(TransformerModel):
        @staticmethod
        def add_args(parser):
            TransformerModel.add_args(parser)
            parser.add_argument("--my-gain", type=float, default=3.0)

        @classmethod
        def build_encoder(cls, args, src_dict, embed_tokens):
            return PluginEncoder(args, src_dict, embed_tokens)

        @classmethod
        def build_decoder(cls, args, tgt_dict, embed_tokens):
            return PluginDecoder(args, tgt_dict, embed_tokens)

    def plugin_small(args: Namespace) -> None:
        args.encoder_layers = getattr(args, "encoder_layers", 1)
        transformer_tiny(args)

    registries.register_model_architecture("plugin_transformer", "plugin_small")(plugin_small)
    parser = ArgumentParser()
    PluginModel.add_args(parser)
    args = parser.parse_args(["--dropout", "0"])
    args.arch = "plugin_small"
    model = build_model(args, task_of(19, 23)).eval()
    assert isinstance(model, PluginModel) and len(model.encoder.layers) == 1
    assert isinstance(model.encoder.layers[0], DoublingLayer)

    source, prefix = padded(SOURCE, True), padded(PREFIX, False)
    encoder_out = model.encoder(source)
    features, _ = model.decoder.extract_features(prefix, encoder_out)
    assert torch.equal(model(source, None, prefix)[0], F.linear(features, model.decoder.output_projection.weight) - 1)
    plain = TransformerModel.build_model(args, task_of(19, 23)).eval()
    plain.load_state_dict(model.state_dict())
    x, _ = plain.encoder.forward_embedding(source)
    layer = plain.encoder.layers[0]
    x = (3 * x).masked_fill(source.eq(1).unsqueeze(-1), 0).transpose(0, 1)
    h, _ = layer.self_attn(x, x, x, source.eq(1), need_weights=False)
    h = layer.self_attn_layer_norm(x + 2 * h)
    expected = layer.final_layer_norm(h + 2 * layer.fc2(layer.fc1(h).relu()))
    torch.testing.assert_close(encoder_out["encoder_out"][0], expected, rtol=0, atol=1e-5)
    plain_features, _ = plain.decoder.extract_features(prefix, encoder_out)
    torch.testing.assert_close(features, plain_features + 1)


def test_only_encoders_and_decoders_make_a_model(small_model) -> None:
    model = small_model()
    with pytest.raises(TypeError, match="TransformerModel needs a Encoder, got a Linear"):
        TransformerModel(model.cfg, nn.Linear(2, 2), model.decoder)
