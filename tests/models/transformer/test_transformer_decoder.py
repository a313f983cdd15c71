"""Generation step by step gives what the whole prefix at once gives."""

from __future__ import annotations

import pytest
import torch

SOURCE = [[5, 6, 7, 8, 2], [9, 2], [10, 11, 12, 2]]
VARIANTS = {
    "post-norm": {},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True, "decoder_learned_pos": True},
    "cross-self": {"cross_self_attention": True, "no_cross_attention": True},
    "no attention to the source": {"no_cross_attention": True},
}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_equal_the_whole_prefix(small_model, padded, variant, dtype, tolerance) -> None:
    model = small_model(**VARIANTS[variant]).to(dtype)
    encoder_out = model.encoder(padded(SOURCE, True))
    tokens = torch.randint(4, 23, (3, 8))
    full, _ = model.decoder(tokens, encoder_out=encoder_out)
    state: dict = {}
    for t in range(8):
        step, _ = model.decoder(tokens[:, : t + 1], encoder_out=encoder_out, incremental_state=state)
        assert step.shape == (3, 1, 23)
        torch.testing.assert_close(step[:, 0], full[:, t], rtol=0, atol=tolerance * full.abs().max().item())


@pytest.mark.parametrize("learned", [False, True])
def test_prefixes_padded_on_the_left(small_model, padded, learned) -> None:
    """Positions count from the left edge in a step, so this holds without them."""
    model = small_model(no_token_positional_embeddings=True, decoder_learned_pos=learned)
    encoder_out = model.encoder(padded(SOURCE, True))
    tokens = padded([[2, 5, 6, 7, 8], [2, 9, 10], [2]], True)
    full, _ = model.decoder(tokens, encoder_out=encoder_out)
    state: dict = {}
    for t in range(5):
        step, _ = model.decoder(tokens[:, : t + 1], encoder_out=encoder_out, incremental_state=state)
        here = tokens[:, t].ne(1)
        torch.testing.assert_close(step[here, 0], full[here, t], rtol=0, atol=1e-11)


@pytest.mark.parametrize("cached_per_sentence", [False, True])
def test_reordered_hypotheses(small_model, padded, cached_per_sentence) -> None:
    """A search of three sentences with two hypotheses each, of which the second sentence ends early."""
    model, beam = small_model(), 2
    if cached_per_sentence:
        model.decoder.set_beam_size(beam)
    encoder_out = model.encoder(padded(SOURCE, True))
    encoder_out = model.encoder.reorder_encoder_out(encoder_out, torch.arange(3).repeat_interleave(beam))
    orders = [[0, 0, 3, 2, 4, 5], [1, 0, 4, 4], [1, 1, 2, 3]]
    tokens = torch.full((6, 1), 2)
    state: dict = {}
    for order in [*orders, None]:
        step, _ = model.decoder(tokens, encoder_out=encoder_out, incremental_state=state)
        full, _ = model.decoder(tokens, encoder_out=encoder_out)
        torch.testing.assert_close(step[:, -1], full[:, -1], rtol=0, atol=1e-11)
        if order is not None:
            new = torch.tensor(order)
            tokens = torch.cat([tokens[new], torch.randint(4, 23, (len(order), 1))], dim=1)
            model.decoder.reorder_incremental_state_scripting(state, new)
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, new)


def test_full_context_looks_at_later_tokens(small_model, padded) -> None:
    model = small_model()
    encoder_out = model.encoder(padded(SOURCE, True))
    rows = [[2, 5, 6, 7], [2, 8], [2, 9, 10]]
    tokens = padded(rows, False)
    full, _ = model.decoder(tokens, encoder_out=encoder_out, full_context_alignment=True)
    causal, _ = model.decoder(tokens, encoder_out=encoder_out)
    assert not torch.allclose(full[:, 0], causal[:, 0])
    for i, row in enumerate(rows):
        one = model.encoder.reorder_encoder_out(encoder_out, torch.tensor([i]))
        alone, _ = model.decoder(torch.tensor([row]), encoder_out=one, full_context_alignment=True)
        torch.testing.assert_close(full[i, : len(row)], alone[0], rtol=0, atol=1e-11)


def test_features_and_projection_make_logits(small_model, padded) -> None:
    model = small_model()
    encoder_out = model.encoder(padded(SOURCE, True))
    tokens = torch.randint(4, 23, (3, 4))
    logits, _ = model.decoder(tokens, encoder_out=encoder_out)
    features, extra = model.decoder(tokens, encoder_out=encoder_out, features_only=True)
    assert torch.equal(model.decoder.output_layer(features), logits)
    torch.testing.assert_close(features @ model.decoder.output_projection.weight.T, logits)
    assert len(extra["inner_states"]) == 3 and extra["inner_states"][0].shape == (4, 3, 16)


def test_positions_are_limited(small_model) -> None:
    model = small_model(max_source_positions=50, max_target_positions=60, decoder_learned_pos=True)
    assert model.max_positions() == (50, 60) and model.max_decoder_positions() == 60
    assert small_model(no_token_positional_embeddings=True).max_positions() == (1024, 1024)


def test_a_mask_of_a_subclass_is_used(small_model, padded, monkeypatch) -> None:
    model = small_model()
    encoder_out = model.encoder(padded(SOURCE, True))
    tokens = torch.randint(4, 23, (3, 6))

    def window_of_two(tensor):
        mask = type(model.decoder).buffered_future_mask(model.decoder, tensor)
        return mask + torch.full_like(mask, float("-inf")).tril(-2)

    monkeypatch.setattr(model.decoder, "buffered_future_mask", window_of_two)
    before, _ = model.decoder(tokens, encoder_out=encoder_out)
    tokens[:, 0] = 4 + (tokens[:, 0] + 1) % 19
    after, _ = model.decoder(tokens, encoder_out=encoder_out)
    changed = (before - after).abs().amax(dim=(0, 2)) > 1e-9
    assert changed.tolist() == [True, True, True, False, False, False]  # two layers: two steps back


def test_training_goes_on_after_validation_in_inference_mode(small_model) -> None:
    """What is kept between calls must not be an inference tensor. An extra key makes attention use the mask itself."""
    model = small_model(no_cross_attention=True, max_target_positions=3)
    for layer in model.decoder.layers:
        layer.self_attn.add_zero_attn = True
    tokens = torch.randint(4, 23, (2, 8))
    with torch.inference_mode():
        expected, _ = model.decoder(tokens)
    logits, _ = model.train().decoder(tokens)
    logits.sum().backward()
    torch.testing.assert_close(logits, expected.clone(), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_one_graph_for_the_compiler(small_model, padded) -> None:
    model = small_model().train()
    batch = padded(SOURCE, True), None, padded([[2, 5], [2, 6, 7], [2]], False)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*batch)[0], model(*batch)[0], rtol=0, atol=1e-11)
    torch._dynamo.reset()
