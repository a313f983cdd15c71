from __future__ import annotations

import torch

SOURCE = [[5, 6, 7, 8, 2], [9, 2], [10, 11, 12, 2]]


def test_output_and_its_reordering(small_model, padded) -> None:
    model = small_model(encoder_normalize_before=True)
    tokens = padded(SOURCE, True)
    out = model.encoder(tokens, return_all_hiddens=True)
    assert out["encoder_out"][0].shape == (5, 3, 16)
    assert torch.equal(out["encoder_padding_mask"][0], tokens.eq(1))
    assert out["src_lengths"][0].tolist() == [[5], [2], [4]] and out["src_tokens"] == []
    assert len(out["encoder_states"]) == 3
    at_padding = tokens.eq(1).t()  # layers that mix positions, a convolution say, read zeros there
    assert torch.all(out["encoder_states"][0][at_padding] == 0) and torch.all(
        out["encoder_states"][0][~at_padding] != 0
    )
    order = torch.tensor([2, 2, 0, 1])
    reordered = model.encoder.reorder_encoder_out(out, order)
    direct = model.encoder(tokens[order], return_all_hiddens=True)
    assert reordered.keys() == direct.keys()
    for name, tensors in direct.items():
        assert len(tensors) == len(reordered[name])
        for a, b in zip(tensors, reordered[name]):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_embeddings_may_be_given(small_model, padded) -> None:
    encoder = small_model().encoder
    tokens = padded(SOURCE, True)
    given = encoder(tokens, token_embeddings=encoder.embed_tokens(tokens))
    torch.testing.assert_close(given["encoder_out"][0], encoder(tokens)["encoder_out"][0])


def test_generation_hands_over_a_batch(small_model, padded) -> None:
    encoder = small_model().encoder
    tokens = padded(SOURCE, True)
    batch = {"src_tokens": tokens, "src_lengths": torch.tensor([5, 2, 4]), "prev_output_tokens": tokens}
    out = encoder.forward_torchscript(batch)
    assert torch.equal(out["encoder_out"][0], encoder(tokens)["encoder_out"][0])
