"""A model that leaves padding out computes what it does with padding, and notices when it must not leave it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyseq.models.transformer import packed
from pyseq.modules import MultiheadAttention
from pyseq.modules.packing import Packing
from pyseq.utils import move_to_device

PAD = 1
SOURCE = [[5, 6, 7, 8, 2], [9, 2], [4, 5, 6, 2]]
TARGET = [[2, 7, 8], [2, 9, 10, 11, 12, 6], [2]]


def rows_of(padded: Callable[..., Tensor], left: bool = False) -> dict[str, Any]:
    source = padded(SOURCE, left)
    return {
        "src_tokens": source,
        "src_lengths": source.ne(PAD).sum(dim=1),
        "prev_output_tokens": padded(TARGET, left),
    }


def run(model: Any, packs: bool, **inputs: Any) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
    """Output, extra output, and the gradients of a random projection of the output at real tokens."""
    model.pack_sequences = packs
    model.zero_grad()
    out, extra = model(**inputs)
    tokens = inputs.get("prev_output_tokens", inputs["src_tokens"])
    real = tokens.ne(PAD)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
    (out * weights)[real].sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return out.detach()[real], extra, grads


def assert_same(model: Any, monkeypatch: pytest.MonkeyPatch, **inputs: Any) -> None:
    expected, _, expected_grads = run(model, False, **inputs)
    made: list[Packing] = []
    original = Packing.__init__
    monkeypatch.setattr(Packing, "__init__", lambda self, *args: (made.append(self), original(self, *args))[1])
    found, _, grads = run(model, True, **inputs)
    assert made, "the batch was not packed"
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoder_normalize_before": True, "decoder_normalize_before": True},
        {"encoder_learned_pos": True, "decoder_learned_pos": True, "layernorm_embedding": True},
        {"no_token_positional_embeddings": True, "activation_fn": "gelu"},
    ],
)
def test_translation_model(
    small_model: Any,
    padded: Any,
    monkeypatch: pytest.MonkeyPatch,
    left: bool,
    features_only: bool,
    options: dict[str, Any],
) -> None:
    model = small_model(**options)
    assert_same(model, monkeypatch, **rows_of(padded, left), features_only=features_only)


@pytest.mark.parametrize("left", [False, True])
def test_language_model(small_model: Any, padded: Any, monkeypatch: pytest.MonkeyPatch, left: bool) -> None:
    model = small_model(
        "transformer_lm_gpt2_tiny", decoder_embed_dim=16, decoder_attention_heads=2, tokens_per_sample=32
    )
    assert_same(model, monkeypatch, src_tokens=padded(TARGET, left))


def test_float32_model_on_the_compiled_core(small_model: Any, padded: Any) -> None:
    model = small_model().float()
    inputs = rows_of(padded)
    expected, _, expected_grads = run(model, False, **inputs)
    found, _, grads = run(model, True, **inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-3, atol=1e-4)


def test_states_between_layers_have_the_shape_of_the_batch(small_model: Any, padded: Any) -> None:
    model = small_model()
    inputs = rows_of(padded)
    _, expected, _ = run(model, False, **inputs)
    _, extra, _ = run(model, True, **inputs)
    real = inputs["prev_output_tokens"].ne(PAD).t()
    assert len(extra["inner_states"]) == len(expected["inner_states"])
    for found, state in zip(extra["inner_states"], expected["inner_states"]):
        assert found.shape == state.shape
        torch.testing.assert_close(found[real], state[real])
    torch.testing.assert_close(extra["inner_states"][-1:][0][real], expected["inner_states"][-1][real])


def test_padding_of_unpacked_features_is_zero(small_model: Any, padded: Any) -> None:
    model = small_model()
    model.pack_sequences = True
    inputs = rows_of(padded)
    features, _ = model(**inputs, features_only=True)
    assert (features[inputs["prev_output_tokens"].eq(PAD)] == 0).all()


def test_attention_dropout_acts(small_model: Any, padded: Any) -> None:
    """Twice the same seed, twice the same; and not what there is without dropout."""
    model = small_model(attention_dropout=0.5).train()
    inputs = rows_of(padded)
    results = []
    for _ in range(2):
        torch.manual_seed(11)
        results.append(run(model, True, **inputs)[0])
    assert torch.equal(*results)
    assert not torch.allclose(results[0], run(model.eval(), True, **inputs)[0])


def packs(model: Any, tokens: Tensor) -> bool:
    model.pack_sequences = True
    return packed.packs(model, tokens)


def test_a_model_that_was_changed_is_padded(small_model: Any, padded: Any) -> None:
    tokens = padded(TARGET, False)
    assert packs(small_model(), tokens)

    hooked = small_model()
    hooked.encoder.layers[0].fc1.register_forward_hook(lambda *args: None)
    assert not packs(hooked, tokens)

    attends_otherwise = small_model()

    class Attention(MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    attends_otherwise.decoder.layers[1].self_attn.__class__ = Attention
    assert not packs(attends_otherwise, tokens)

    wants_attention = small_model()
    wants_attention.decoder.need_attn = True
    assert not packs(wants_attention, tokens)

    told_not_to = small_model()
    told_not_to.pack_sequences = False
    assert not packed.packs(told_not_to, tokens)


def test_a_replaced_projection_is_called(small_model: Any, padded: Any) -> None:
    """A layer in the place of a projection (an adapter, say) is not passed by."""

    class Doubled(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    model = small_model()
    inputs = rows_of(padded)
    plain = run(model, True, **inputs)[0]
    attention = model.encoder.layers[0].self_attn
    attention.v_proj = Doubled(attention.v_proj)
    found = run(model, True, **inputs)[0]
    torch.testing.assert_close(found, run(model, False, **inputs)[0])
    assert not torch.allclose(found, plain)


def test_places_of_tokens() -> None:
    tokens = torch.tensor([[4, 5, PAD], [PAD, PAD, PAD], [6, 7, 8]])
    packing = Packing(tokens, PAD)
    assert packing.tokens.tolist() == [[4, 5, 6, 7, 8]]
    assert packing.positions.tolist() == [[2, 3, 2, 3, 4]]
    assert packing.segments.offsets.tolist() == [0, 2, 2, 5]
    x = torch.arange(10.0).view(5, 1, 2)
    spread = packing.unpack(x)
    assert spread[2].tolist() == [[4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]
    assert spread[0, 2].tolist() == [0.0, 0.0] and spread[1].abs().sum() == 0


def test_a_moved_batch_is_packed_without_waiting_for_the_device(small_model: Any, padded: Any) -> None:
    """On tensors without memory: to read one would be an error."""
    here = rows_of(padded, left=True)
    inputs = move_to_device(here, "meta")
    packing, expected = (Packing(t["src_tokens"], PAD) for t in (inputs, here))
    assert packing.index.shape == expected.index.shape and packing.segments.longest == expected.segments.longest
    model = small_model().to("meta")
    model.pack_sequences = True
    out, _ = model(**inputs)
    assert out.shape[:2] == here["prev_output_tokens"].shape and out.device.type == "meta"


@pytest.mark.parametrize("left", [False, True])
def test_an_encoder_alone_leaves_padding_out(
    small_model: Any, padded: Any, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    """In generation, which calls encoder and decoder one by one."""
    monkeypatch.setattr("pyseq.models.transformer.transformer_encoder.is_faster", lambda *args: True)
    encoder = small_model().encoder
    seen: list[torch.Size] = []
    embed = encoder._embed
    monkeypatch.setattr(
        encoder, "_embed", lambda tokens, *a, **k: (seen.append(tokens.shape), embed(tokens, *a, **k))[1]
    )
    inputs = rows_of(padded, left)
    real = inputs["src_tokens"].ne(PAD)
    expected = encoder(inputs["src_tokens"])
    found = encoder.forward_torchscript(inputs)
    assert seen == [real.shape, (1, int(real.sum()))]
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found["encoder_out"][0][real.t()], expected["encoder_out"][0][real.t()])
    torch.testing.assert_close(found["encoder_embedding"][0][real], expected["encoder_embedding"][0][real])
    for name in ("encoder_padding_mask", "src_lengths", "encoder_states", "src_tokens"):
        assert all(map(torch.equal, found[name], expected[name])) and len(found[name]) == len(expected[name])

    hook = encoder.layers[0].fc1.register_forward_hook(lambda *args: None)
    encoder.forward_torchscript(inputs)
    assert seen[2:] == [real.shape]
    hook.remove()
    encoder.forward_torchscript(inputs | {"return_all_hiddens": True})
    assert seen[3:] == [real.shape]
    encoder.compile(backend="eager")
    encoder.forward_torchscript(inputs)
    assert seen[4:] == [real.shape]
