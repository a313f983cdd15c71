from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pyseq.models import (
    BaseModel,
    Decoder,
    Encoder,
    EncoderDecoderModel,
    EncoderModel,
    IncrementalDecoder,
    LanguageModel,
)


class Listener(nn.Module):
    def set_num_updates(self, num_updates: int) -> None:
        self.updates = num_updates

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class SumEncoder(Encoder):
    def __init__(self) -> None:
        super().__init__(None)
        self.listener = Listener()

    def forward(self, src_tokens, src_lengths=None, **kwargs):
        return {"encoder_out": src_tokens.float().sum(1, keepdim=True), "lengths": src_lengths}


class AddDecoder(IncrementalDecoder):
    """Features [B T 1]: the token plus the encoder's number; logits: features times 0 .. 4."""

    def __init__(self) -> None:
        super().__init__(None)
        self.child = AddChild()

    def forward(self, prev_output_tokens, encoder_out=None, incremental_state=None, **kwargs):
        x, extra = self.extract_features(prev_output_tokens, encoder_out)
        return self.output_layer(x), extra

    def extract_features(self, prev_output_tokens, encoder_out=None, incremental_state=None, **kwargs):
        bias = 0 if encoder_out is None else encoder_out["encoder_out"]
        return (prev_output_tokens + bias).unsqueeze(-1), {"seen": kwargs}

    def output_layer(self, features):
        return features * torch.arange(5.0)

    def max_positions(self):
        return 7

    def reorder_incremental_state(self, incremental_state, new_order):
        incremental_state["own"] = incremental_state["own"][new_order]


class AddChild(nn.Module):
    def reorder_incremental_state(self, incremental_state, new_order):
        return {"child": incremental_state["child"][new_order]}

    def set_beam_size(self, beam_size: int) -> None:
        self.beam_size = beam_size


SOURCE, PREFIX = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6, 7], [8, 9, 10]])


def test_an_encoder_and_a_decoder_of_ones_own() -> None:
    model = EncoderDecoderModel(SumEncoder(), AddDecoder())
    logits, extra = model(SOURCE, torch.tensor([2, 2]), PREFIX)
    features, _ = model.extract_features(SOURCE, torch.tensor([2, 2]), PREFIX)
    assert torch.equal(features.squeeze(-1), PREFIX + torch.tensor([[3.0], [7.0]]))
    assert torch.equal(logits, model.output_layer(features))
    assert torch.equal(model.forward_decoder(PREFIX, encoder_out=model.encoder(SOURCE))[0], logits)
    probs = model.get_normalized_probs((logits.half(), extra), log_probs=True, sample=None)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs, logits.log_softmax(-1))
    assert model.max_positions() == (1e6, 7) and model.max_decoder_positions() == 7
    assert model.get_targets({"target": 3}, None) == 3
    with pytest.raises(NotImplementedError):
        model.encoder.reorder_encoder_out(None, None)


def test_a_decoder_alone_and_an_encoder_alone() -> None:
    language_model = LanguageModel(AddDecoder())
    assert torch.equal(language_model(PREFIX, src_lengths=None)[0], PREFIX.unsqueeze(-1) * torch.arange(5.0))
    assert language_model.supported_targets == {"future"} and language_model.max_positions() == 7
    encoder_model = EncoderModel(SumEncoder())
    out = encoder_model(SOURCE, torch.tensor([2, 2]))
    assert torch.equal(encoder_model.get_normalized_probs(out, log_probs=False), torch.ones(2, 1))
    with pytest.raises(TypeError, match="LanguageModel needs a Decoder, got a SumEncoder"):
        LanguageModel(SumEncoder())  # type: ignore[arg-type]


def test_a_plain_decoder_needs_only_features_and_an_output_layer() -> None:
    class Plain(Decoder):
        extract_features = AddDecoder.extract_features
        output_layer = AddDecoder.output_layer

    model = EncoderDecoderModel(SumEncoder(), Plain(None))
    expected, _ = EncoderDecoderModel(SumEncoder(), AddDecoder())(SOURCE, None, PREFIX)
    assert torch.equal(model(SOURCE, None, PREFIX)[0], expected)


def test_a_model_that_returns_a_tensor() -> None:
    class Classifier(BaseModel):
        def forward(self, src_tokens, src_lengths):
            return src_tokens.float()

    model = Classifier()
    out = model(SOURCE, None)
    torch.testing.assert_close(model.get_normalized_probs(out, log_probs=False), out.softmax(-1))
    assert model.max_positions() is None
    with pytest.raises(NotImplementedError, match="Classifier has no get_normalized_probs"):
        model.get_normalized_probs((out,), log_probs=True)
    with pytest.raises(NotImplementedError, match="Classifier has no build_model"):
        Classifier.build_model(None, None)


def test_modules_hear_of_updates_and_epochs() -> None:
    model = EncoderDecoderModel(SumEncoder(), AddDecoder())
    model.set_num_updates(5)
    model.set_epoch(2)
    assert (model.encoder.listener.updates, model.encoder.listener.epoch) == (5, 2)


def test_reordering_and_beam_size_reach_every_module() -> None:
    decoder = AddDecoder()
    state = {"own": torch.tensor([1, 2]), "child": torch.tensor([3, 4])}
    decoder.reorder_incremental_state_scripting(state, torch.tensor([1, 1, 0]))
    assert state["own"].tolist() == [2, 2, 1] and state["child"].tolist() == [4, 4, 3]
    decoder.set_beam_size(4)
    assert decoder.child.beam_size == 4


def test_made_ready_for_generation(small_model) -> None:
    model = small_model(dropout=0.5)
    assert model.train().training
    generation = SimpleNamespace(
        beam=3, print_alignment="hard", retain_dropout=True, retain_dropout_modules=["TransformerEncoder"]
    )
    model.prepare_for_inference_(SimpleNamespace(generation=generation))
    model.prepare_for_inference_(SimpleNamespace(generation=generation))
    assert not model.training and model.decoder.need_attn
    on = {name for name, m in model.named_modules() if getattr(m, "apply_during_inference", False)}
    assert on == {"encoder.dropout_module"}
    with pytest.raises(RuntimeError, match="made ready for generation"):
        model.train()
    assert model.eval() is model
    other = small_model()
    other.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(beam=5)))
    assert not other.decoder.need_attn
