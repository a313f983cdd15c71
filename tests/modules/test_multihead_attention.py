"""Attention against its definition, written with einsum in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pyseq.modules.linear as linear_module
from pyseq.errors import ConfigError
from pyseq.modules import MultiheadAttention
from pyseq.modules.causal_mask import future_mask, mark_causal
from pyseq.ops import backend, linear

C, H = 24, 4


def attention(
    m: MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor]:
    """Output [T B C] and weights [H B T S]; ``visible`` [B T S] says which keys a query sees."""
    q, k, v = (
        torch.einsum("tbc,dc->tbd", x, p.weight) + p.bias
        for x, p in ((query, m.q_proj), (key, m.k_proj), (value, m.v_proj))
    )
    q, k, v = (x.reshape(*x.shape[:2], H, -1) for x in (q, k, v))
    scores = torch.einsum("tbhd,sbhd->hbts", q, k) / math.sqrt(q.size(-1))
    scores = scores.masked_fill(~visible, -torch.inf)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    weights = weights.nan_to_num()  # 0 / 0 where nothing is visible
    out = torch.einsum("hbts,sbhd->tbhd", weights, v).flatten(2)
    return torch.einsum("tbc,dc->tbd", out, m.out_proj.weight) + m.out_proj.bias, weights


def perturbed(**kwargs) -> MultiheadAttention:
    """Biases are zero at first, which would hide a missing one."""
    torch.manual_seed(3)
    m = MultiheadAttention(C, H, **kwargs).double()
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return m


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_self_attention(need_weights: bool, causal: bool, padded: bool) -> None:
    m = perturbed(self_attention=True)
    x = torch.randn(5, 3, C, dtype=torch.float64)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, :2] = padding[2, 4:] = True
    visible = torch.ones(3, 5, 5, dtype=torch.bool)
    visible = visible.tril() if causal else visible
    visible = visible & ~padding[:, None] if padded else visible
    mask = mark_causal(future_mask(5, torch.float64, x.device)) if causal else None
    out, weights = m(x, x, x, padding if padded else None, need_weights=need_weights, attn_mask=mask)
    expected, expected_weights = attention(m, x, x, x, visible)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    if need_weights:
        torch.testing.assert_close(weights, expected_weights.mean(0), rtol=0, atol=1e-12)
    else:
        assert weights is None


@pytest.mark.parametrize("need_weights", [False, True])
def test_gradients_are_those_of_the_definition_and_finite_where_a_query_sees_nothing(need_weights: bool) -> None:
    m = perturbed(self_attention=True)
    x = torch.randn(4, 2, C, dtype=torch.float64, requires_grad=True)
    padding = torch.tensor([[True, True, False, False], [True] * 4])
    visible = torch.ones(2, 4, 4, dtype=torch.bool).tril() & ~padding[:, None]
    mask = mark_causal(future_mask(4, torch.float64, x.device))
    out, _ = m(x, x, x, padding, need_weights=need_weights, attn_mask=mask)
    probe = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, x, probe)
    masked = torch.where(visible.any(-1).t()[:, :, None], probe, 0)
    expected_out, _ = attention(m, x, x, x, visible | ~visible.any(-1, keepdim=True))
    (expected,) = torch.autograd.grad(expected_out, x, masked)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bool_mask", [False, True])
def test_a_mask_that_is_not_the_future_is_applied(bool_mask: bool) -> None:
    m = perturbed(self_attention=True)
    x = torch.randn(5, 2, C, dtype=torch.float64)
    visible = torch.rand(5, 5) < 0.6
    visible.fill_diagonal_(True)
    mask = ~visible if bool_mask else torch.zeros(5, 5, dtype=torch.float64).masked_fill(~visible, -torch.inf)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True, False]])
    for kpm in (None, padding):
        sees = visible.expand(2, 5, 5) if kpm is None else visible & ~kpm[:, None]
        out, _ = m(x, x, x, kpm, need_weights=False, attn_mask=mask)
        torch.testing.assert_close(out, attention(m, x, x, x, sees)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("need_weights", [False, True])
def test_cross_attention_with_other_sizes_of_keys(need_weights: bool) -> None:
    m = perturbed(kdim=10, vdim=10, encoder_decoder_attention=True)
    query, key = torch.randn(3, 2, C, dtype=torch.float64), torch.randn(7, 2, 10, dtype=torch.float64)
    padding = torch.tensor([[False] * 7, [True] * 3 + [False] * 4])
    out, weights = m(query, key, key, padding, need_weights=need_weights, need_head_weights=need_weights)
    expected, expected_weights = attention(m, query, key, key, ~padding[:, None].expand(2, 3, 7))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    if need_weights:
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-12)


def test_extra_keys_are_seen_by_every_query() -> None:
    m = perturbed(self_attention=True, add_bias_kv=True, add_zero_attn=True)
    x = torch.randn(4, 2, C, dtype=torch.float64)
    padding = torch.tensor([[False] * 4, [False] * 3 + [True]])
    mask = mark_causal(future_mask(4, torch.float64, x.device))
    out, weights = m(x, x, x, padding, attn_mask=mask, need_head_weights=True)

    q = m.q_proj(x).unflatten(-1, (H, -1))
    k = torch.cat([m.k_proj(x), m.bias_k.expand(1, 2, C), torch.zeros(1, 2, C)]).unflatten(-1, (H, -1))
    visible = F.pad(torch.ones(2, 4, 4, dtype=torch.bool).tril() & ~padding[:, None], (0, 2), value=True)
    scores = torch.einsum("tbhd,sbhd->hbts", q, k) / math.sqrt(C // H)
    expected = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)
    fused, _ = m(x, x, x, padding, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(fused, out, rtol=0, atol=1e-12)


def test_before_softmax_gives_scores_and_values() -> None:
    m = perturbed(self_attention=True)
    x = torch.randn(4, 2, C, dtype=torch.float64)
    scores, values = m(x, x, x, before_softmax=True)
    _, weights = m(x, x, x, need_head_weights=True)
    assert scores.shape == (2 * H, 4, 4) and values.shape == (2 * H, 4, C // H)
    torch.testing.assert_close(scores.softmax(-1).unflatten(0, (2, H)).transpose(0, 1), weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 3e-2), (torch.float16, 4e-3), (torch.float32, 1e-5)])
@pytest.mark.parametrize("need_weights", [False, True])
def test_low_precision(dtype: torch.dtype, tolerance: float, need_weights: bool) -> None:
    m = perturbed(self_attention=True).to(dtype)
    x = torch.randn(6, 2, C).to(dtype)
    padding = torch.tensor([[False] * 6, [True] * 2 + [False] * 4])
    mask = mark_causal(future_mask(6, dtype, x.device))
    out, weights = m(x, x, x, padding, need_weights=need_weights, attn_mask=mask)
    exact = m.double()
    visible = torch.ones(2, 6, 6, dtype=torch.bool).tril() & ~padding[:, None]
    expected, _ = attention(exact, *[x.double()] * 3, visible)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    if need_weights:
        assert weights.dtype == torch.float32


@pytest.mark.parametrize("need_weights", [False, True])
def test_steps_with_a_cache_give_what_all_positions_at_once_give(need_weights: bool) -> None:
    m = perturbed(self_attention=True)
    x = torch.randn(6, 2, C, dtype=torch.float64)
    full, _ = m(x, x, x, need_weights=False, attn_mask=mark_causal(future_mask(6, x.dtype, x.device)))
    state: dict = {}
    steps = [m(x[t : t + 1], None, None, incremental_state=state, need_weights=need_weights)[0] for t in range(6)]
    torch.testing.assert_close(torch.cat(steps), full, rtol=0, atol=1e-12)


def test_padding_that_begins_in_the_middle_of_generation_is_masked_from_then_on() -> None:
    m = perturbed(self_attention=True)
    x = torch.randn(5, 2, C, dtype=torch.float64)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 2] = True
    full, _ = m(x, x, x, padding, need_weights=False, attn_mask=mark_causal(future_mask(5, x.dtype, x.device)))
    state: dict = {}
    for t in range(5):
        kpm = padding[:, t : t + 1] if t == 2 else None
        out, _ = m(x[t : t + 1], None, None, kpm, incremental_state=state, need_weights=False)
        torch.testing.assert_close(out, full[t : t + 1], rtol=0, atol=1e-12)


def test_static_keys_are_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    m = perturbed(encoder_decoder_attention=True)
    key, query = torch.randn(7, 2, C, dtype=torch.float64), torch.randn(3, 2, C, dtype=torch.float64)
    padding = torch.tensor([[False] * 7, [True] * 3 + [False] * 4])
    full, _ = m(query, key, key, padding, need_weights=False)
    calls = []
    m.k_proj.register_forward_hook(lambda *_: calls.append(1))
    state: dict = {}
    for t in range(3):
        out, _ = m(query[t : t + 1], key, key, padding, incremental_state=state, static_kv=True, need_weights=False)
        torch.testing.assert_close(out, full[t : t + 1], rtol=0, atol=1e-12)
    assert len(calls) == 1


@pytest.mark.parametrize("need_weights", [False, True])
def test_hypotheses_of_a_sentence_share_its_keys(need_weights: bool) -> None:
    beam = 3
    m = perturbed(encoder_decoder_attention=True)
    key = torch.randn(5, 2, C, dtype=torch.float64).repeat_interleave(beam, dim=1)
    padding = torch.tensor([[False] * 5, [True] * 2 + [False] * 3]).repeat_interleave(beam, dim=0)
    query = torch.randn(2, 2 * beam, C, dtype=torch.float64)
    expected, expected_weights = m(query, key, key, padding)
    m.set_beam_size(beam)
    state: dict = {}
    for _ in range(2):
        out, weights = m(query, key, key, padding, incremental_state=state, static_kv=True, need_weights=need_weights)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        if need_weights:
            torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-12)
    cached = m._get_input_buffer(state)["prev_key"]
    assert cached is not None and cached.size(0) == 2

    # Within sentences the cache stays; when one is finished, its row goes.
    m.reorder_incremental_state(state, torch.tensor([2, 0, 0, 5, 4, 3]))
    assert m._get_input_buffer(state)["prev_key"] is cached
    m.reorder_incremental_state(state, torch.tensor([4, 3, 5]))
    torch.testing.assert_close(m._get_input_buffer(state)["prev_key"], cached[1:])
    out, _ = m(query[:, 3:], None, None, incremental_state=state, static_kv=True, need_weights=False)
    torch.testing.assert_close(out, expected[:, 3:], rtol=0, atol=1e-12)


def test_old_stacked_projections_are_split() -> None:
    m = perturbed(self_attention=True)
    new = m.state_dict()
    old = {f"attn.{k}": v for k, v in new.items() if k.startswith("out_proj")}
    for kind in ("weight", "bias"):
        old[f"attn.in_proj_{kind}"] = torch.cat([new[f"{p}_proj.{kind}"] for p in "qkv"])
    m.upgrade_state_dict_named(old, "attn")
    assert old.keys() == {f"attn.{k}" for k in new}
    assert all(torch.equal(old[f"attn.{k}"], v) for k, v in new.items())


def test_dropout_acts_on_weights_in_training_only() -> None:
    m = perturbed(self_attention=True, dropout=0.5)
    x = torch.randn(8, 2, C, dtype=torch.float64)
    for need_weights in (False, True):
        m.train()
        torch.manual_seed(0)
        a, _ = m(x, x, x, need_weights=need_weights)
        b, _ = m(x, x, x, need_weights=need_weights)
        assert not torch.allclose(a, b)
        m.eval()
        assert torch.equal(m(x, x, x, need_weights=need_weights)[0], m(x, x, x, need_weights=need_weights)[0])


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 attention heads do not divide an embedding of dimension 24"):
        MultiheadAttention(C, 5)


def test_a_future_mask_of_another_size_is_no_causal_attention() -> None:
    m = perturbed(encoder_decoder_attention=True)
    query, key = torch.randn(3, 2, C, dtype=torch.float64), torch.randn(7, 2, C, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        m(query, key, key, need_weights=False, attn_mask=mark_causal(future_mask(3, query.dtype, query.device)))


def products(monkeypatch: pytest.MonkeyPatch, m: MultiheadAttention, key: Tensor, incremental: bool = False) -> int:
    """How many linear layers ``m`` computes, in whatever module; what it returns is compared with the definition."""
    calls = []
    monkeypatch.setattr(linear_module, "linear", lambda *args: calls.append(args) or linear(*args))
    query = key if m.self_attention else torch.randn(5, 3, C, dtype=torch.float64)
    out, _ = m(query, key, key, incremental_state={} if incremental else None, need_weights=False)
    visible = torch.ones(3, len(query), len(key), dtype=torch.bool)
    torch.testing.assert_close(out, attention(m, query, key, key, visible)[0], rtol=0, atol=1e-12)
    return len(calls)


def test_projections_of_the_same_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    of_itself, cross = perturbed(self_attention=True), perturbed(encoder_decoder_attention=True)
    key = torch.randn(4, 3, C, dtype=torch.float64)
    assert products(monkeypatch, of_itself, key) == 2
    assert products(monkeypatch, cross, key) == 3
    assert products(monkeypatch, of_itself, key, incremental=True) == 4
    with backend("torch"):
        assert products(monkeypatch, of_itself, key) == 4
        assert products(monkeypatch, cross, key) == 4


def test_a_projection_that_is_watched_or_replaced_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    m, key, seen = perturbed(self_attention=True), torch.randn(4, 3, C, dtype=torch.float64), []
    handle = m.v_proj.register_forward_hook(lambda layer, args, out: seen.append(out.shape))
    assert products(monkeypatch, m, key) == 4 and seen == [key.shape]
    handle.remove()
    assert products(monkeypatch, m, key) == 2 and len(seen) == 1

    class Other(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.shape)
            return super().forward(x)

    replaced = Other(C, C).double()
    replaced.load_state_dict(m.q_proj.state_dict())
    m.q_proj = replaced
    products(monkeypatch, m, key)
    assert len(seen) == 2
