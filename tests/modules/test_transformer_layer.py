"""Layers against torch's own, with the same weights, in float64."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from torch import Tensor, nn

from pyseq.modules import TransformerDecoderLayer, TransformerEncoderLayer
from pyseq.modules.causal_mask import future_mask, mark_causal

C, F, H, B, S, T = 16, 40, 4, 3, 7, 5


def options(**more) -> Namespace:
    return Namespace(
        encoder_embed_dim=C,
        encoder_ffn_embed_dim=F,
        encoder_attention_heads=H,
        decoder_embed_dim=C,
        decoder_ffn_embed_dim=F,
        decoder_attention_heads=H,
        dropout=0.0,
        **more,
    )


def perturb(module: nn.Module) -> nn.Module:
    """No bias at zero and no norm weight at one, so that none can be missing."""
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, mean=0.1, std=0.3)
    return module.double().eval()


def copy_attention(ours: nn.Module, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]))
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


def torch_twin(ours: nn.Module, pre_norm: bool) -> nn.Module:
    decoder = isinstance(ours, TransformerDecoderLayer)
    cls = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    twin = cls(C, H, F, dropout=0.0, norm_first=pre_norm).double()
    pairs = {"linear1": "fc1", "linear2": "fc2", "norm1": "self_attn_layer_norm"}
    pairs |= (
        {"norm2": "encoder_attn_layer_norm", "norm3": "final_layer_norm"} if decoder else {"norm2": "final_layer_norm"}
    )
    for theirs, name in pairs.items():
        getattr(twin, theirs).load_state_dict(getattr(ours, name).state_dict())
    copy_attention(ours.self_attn, twin.self_attn)
    if decoder:
        copy_attention(ours.encoder_attn, twin.multihead_attn)
    # In training mode torch does not take its own fused path.
    return twin.train()


def batch_first(x: Tensor) -> Tensor:
    """The same numbers as T x B x C, but lying batch-first, as models pass them."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("memory", [torch.clone, batch_first])
def test_encoder_layer(pre_norm: bool, memory) -> None:
    layer = perturb(TransformerEncoderLayer(options(encoder_normalize_before=pre_norm)))
    x = torch.randn(S, B, C, dtype=torch.float64)
    padding = torch.arange(S)[None] >= torch.tensor([[S], [4], [1]])
    x1, x2 = memory(x).requires_grad_(), x.clone().requires_grad_()
    ours, theirs = layer(x1, padding), torch_twin(layer, pre_norm)(x2, src_key_padding_mask=padding)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    probe = torch.randn_like(ours)
    grads = [torch.autograd.grad(out, x, probe)[0] for out, x in ((ours, x1), (theirs, x2))]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-11)


def test_encoder_layer_with_an_attention_mask() -> None:
    layer = perturb(TransformerEncoderLayer(options()))
    x = torch.randn(S, B, C, dtype=torch.float64)
    hidden = torch.ones(S, S).triu(2)
    theirs = torch_twin(layer, False)(x, src_mask=hidden.bool())
    torch.testing.assert_close(layer(x, None, attn_mask=hidden), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("memory", [torch.clone, batch_first])
def test_decoder_layer(pre_norm: bool, memory) -> None:
    layer = perturb(TransformerDecoderLayer(options(decoder_normalize_before=pre_norm)))
    x, enc = torch.randn(T, B, C, dtype=torch.float64), torch.randn(S, B, C, dtype=torch.float64)
    padding = torch.arange(S)[None] < torch.tensor([[0], [3], [6]])
    mask = future_mask(T, x.dtype, x.device)
    x1, x2 = memory(x).requires_grad_(), x.clone().requires_grad_()
    ours, attn, _ = layer(x1, memory(enc), padding, self_attn_mask=mark_causal(mask.clone()))
    assert attn is None
    twin = torch_twin(layer, pre_norm)
    theirs = twin(x2, enc, tgt_mask=mask, memory_key_padding_mask=padding)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    probe = torch.randn_like(ours)
    grads = [torch.autograd.grad(out, x, probe)[0] for out, x in ((ours, x1), (theirs, x2))]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-11)

    again, attn, _ = layer(x, enc, padding, self_attn_mask=mask, need_attn=True)
    torch.testing.assert_close(again, theirs, rtol=0, atol=1e-12)
    assert attn.shape == (B, T, S) and torch.all(attn.masked_select(padding[:, None]) == 0)
    torch.testing.assert_close(attn.sum(-1), torch.ones(B, T, dtype=torch.float64))


def test_normformer_scales() -> None:
    """Shleifer et al., 2021: head scales and a norm after self-attention, a norm inside and scales around the FFN."""
    flags = {"scale_attn": True, "scale_heads": True, "scale_fc": True, "scale_resids": True}
    layer = perturb(TransformerDecoderLayer(options(decoder_normalize_before=True, **flags), no_encoder_attn=True))
    names = [name for name, _ in layer.named_parameters()]
    assert names[:2] == ["c_attn", "w_resid"]
    x = torch.randn(T, B, C, dtype=torch.float64)
    mask = mark_causal(future_mask(T, x.dtype, x.device))
    ours, _, _ = layer(x, self_attn_mask=mask)

    h = layer.self_attn_layer_norm(x)
    h, _ = layer.self_attn(h, h, h, need_weights=False, attn_mask=mask)
    h = h * layer.c_attn.repeat_interleave(C // H)
    h = x + layer.attn_ln(h)
    inner = layer.ffn_layernorm(layer.fc1(layer.final_layer_norm(h)).relu())
    torch.testing.assert_close(ours, h * layer.w_resid + layer.fc2(inner), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_cross_self_attention_is_one_attention_over_source_and_target(padded: bool) -> None:
    layer = perturb(TransformerDecoderLayer(options(cross_self_attention=True), no_encoder_attn=True))
    x, enc = torch.randn(T, B, C, dtype=torch.float64), torch.randn(S, B, C, dtype=torch.float64)
    padding = torch.arange(S)[None] < torch.tensor([[0], [3], [6]]) if padded else None
    mask = mark_causal(future_mask(T, x.dtype, x.device))
    ours, _, _ = layer(x, enc, padding, self_attn_mask=mask)

    twin = nn.MultiheadAttention(C, H).double()
    copy_attention(layer.self_attn, twin)
    both = torch.cat([enc, x])
    hidden = torch.cat([torch.zeros(T, S), torch.ones(T, T).triu(1)], dim=1).bool()
    source = torch.zeros(B, S, dtype=torch.bool) if padding is None else padding
    h, _ = twin(x, both, both, attn_mask=hidden, key_padding_mask=torch.cat([source, torch.zeros(B, T) > 0], dim=1))
    h = layer.self_attn_layer_norm(x + h)
    torch.testing.assert_close(ours, layer.final_layer_norm(h + layer.fc2(layer.fc1(h).relu())), rtol=0, atol=1e-12)

    state: dict = {}
    for t in range(T):
        step, _, _ = layer(x[t : t + 1], enc, padding, state)
        torch.testing.assert_close(step, ours[t : t + 1], rtol=0, atol=1e-12)


def test_caches_may_be_given_by_the_caller() -> None:
    layer = perturb(TransformerDecoderLayer(options()))
    x, enc = torch.randn(2, B, C, dtype=torch.float64), torch.randn(S, B, C, dtype=torch.float64)
    state: dict = {}
    layer(x[:1], enc, None, state)
    caches = [layer.self_attn._get_input_buffer(state), layer.encoder_attn._get_input_buffer(state)]
    given = [[cache["prev_key"], cache["prev_value"]] for cache in caches]
    expected, _, _ = layer(x[1:], enc, None, state)
    ours, _, _ = layer(x[1:], enc, None, None, *given)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_a_subclass_changes_its_parts() -> None:
    class Layer(TransformerEncoderLayer):
        def build_fc1(self, input_dim, output_dim, q_noise, qn_block_size):
            return nn.Sequential(nn.Linear(input_dim, output_dim), nn.Linear(output_dim, output_dim))

        def build_self_attention(self, embed_dim, args):
            attention = super().build_self_attention(embed_dim, args)
            attention.mine = args.my_option
            return attention

        def residual_connection(self, x, residual):
            return residual - x

    layer = perturb(Layer(options(my_option=7)))
    assert layer.self_attn.mine == 7
    x = torch.randn(S, B, C, dtype=torch.float64)
    h, _ = layer.self_attn(x, x, x, need_weights=False)
    h = layer.self_attn_layer_norm(x - h)
    expected = layer.final_layer_norm(h - layer.fc2(layer.fc1(h).relu()))
    torch.testing.assert_close(layer(x, None), expected, rtol=0, atol=1e-12)


def test_dropout_probabilities_go_where_they_belong() -> None:
    layer = TransformerDecoderLayer(
        Namespace(**vars(options()) | {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3})
    )
    assert layer.dropout_module.p == 0.1 and layer.activation_dropout_module.p == 0.3
    assert layer.self_attn.dropout_module.p == layer.encoder_attn.dropout_module.p == 0.2
    assert TransformerEncoderLayer(options(relu_dropout=0.4)).activation_dropout_module.p == 0.4


def test_old_norm_names() -> None:
    layer = TransformerDecoderLayer(options())
    new = {f"l.{k}": v for k, v in layer.state_dict().items()}
    names = {"self_attn_layer_norm": 0, "encoder_attn_layer_norm": 1, "final_layer_norm": 2}
    old = {}
    for key, value in new.items():
        name = key.split(".")[1]
        old[key.replace(name, f"layer_norms.{names[name]}") if name in names else key] = value
    assert "l.layer_norms.2.bias" in old
    layer.upgrade_state_dict_named(old, "l")
    assert old.keys() == new.keys() and all(old[k] is new[k] for k in new)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("cls", [TransformerEncoderLayer, TransformerDecoderLayer])
def test_blocks_end_alike_in_one_pass_and_in_parts(cls, pre_norm: bool) -> None:
    """A subclass that has a residual connection of its own gets its parts, and draws the same masks."""

    class InParts(cls):
        def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
            return x + residual

    torch.manual_seed(0)
    args = options(encoder_normalize_before=pre_norm, decoder_normalize_before=pre_norm, activation_dropout=0.2)
    args.dropout = 0.3
    fused = cls(args)
    parts = InParts(args)
    parts.load_state_dict(fused.state_dict())
    results = []
    for layer in (fused, parts):
        torch.manual_seed(1)
        x = torch.randn(T, B, C, requires_grad=True)
        out = layer(x, None) if cls is TransformerEncoderLayer else layer(x, torch.ones(S, B, C))[0]
        out.square().sum().backward()
        results.append([out, x.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(fused.eval()(x, None)[0], parts.eval()(x, None)[0])


def test_hooks_on_a_norm_see_what_it_returns() -> None:
    args = options()
    args.dropout = 0.3
    layer = TransformerEncoderLayer(args)
    seen = []
    layer.final_layer_norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    out = layer(torch.randn(S, B, C), None)
    assert len(seen) == 1 and seen[0] is out
