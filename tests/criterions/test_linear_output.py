"""Criterions that multiply by the output weight themselves have the numbers of those that are given logits."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyseq import ops
from pyseq.criterions.cross_entropy import CrossEntropyCriterion
from pyseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from pyseq.data import Dictionary
from pyseq.models import build_model
from pyseq.models.linear_output import LinearOutput
from pyseq.models.model import LanguageModel
from pyseq.models.transformer import TransformerDecoder, TransformerModel

SYMBOLS = 40


def make_task() -> Any:
    dictionary = Dictionary()
    for index in range(SYMBOLS - len(dictionary)):
        dictionary.add_symbol(f"w{index}")
    return SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)


TASK = make_task()
PAD = TASK.target_dictionary.pad()
SMALL = {
    "dropout": 0.0,
    "encoder_embed_dim": 16,
    "decoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 20,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
}


def make_model(arch: str = "transformer_iwslt_de_en", **options: Any) -> Any:
    torch.manual_seed(3)
    return build_model(Namespace(arch=arch, **(SMALL | options)), TASK)


def make_language_model() -> Any:
    return make_model("transformer_lm", decoder_input_dim=16, decoder_output_dim=16, tokens_per_sample=32)


def batch(language_model: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)
    target = torch.randint(4, SYMBOLS, (5, 9), generator=generator)
    for row, length in enumerate((9, 8, 6, 3, 2)):
        target[row, length:] = PAD
    previous = target.roll(1, dims=1)
    previous[:, 0] = 2
    inputs = {"src_tokens": previous, "src_lengths": target.ne(PAD).sum(dim=1)}
    if not language_model:
        inputs["prev_output_tokens"] = previous
    return {"net_input": inputs, "target": target, "ntokens": int(target.ne(PAD).sum())}


CRITERIONS: dict[str, Any] = {
    "cross_entropy": lambda: CrossEntropyCriterion(TASK, False),
    "cross_entropy, by sentence": lambda: CrossEntropyCriterion(TASK, True),
    "smoothed": lambda: LabelSmoothedCrossEntropyCriterion(TASK, False, 0.1),
    "smoothed, with accuracy": lambda: LabelSmoothedCrossEntropyCriterion(TASK, False, 0.1, report_accuracy=True),
    "smoothed, without a prefix": lambda: LabelSmoothedCrossEntropyCriterion(
        TASK, True, 0.1, ignore_prefix_size=2, report_accuracy=True
    ),
}


def count_calls(monkeypatch: pytest.MonkeyPatch, module: nn.Module) -> list[Any]:
    """What ``module`` is called with from now on. (Its forward is watched, not a hook, which the model would heed.)"""
    calls: list[Any] = []
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda *args, **kwargs: calls.append(args) or forward(*args, **kwargs))
    return calls


def outcome(criterion: Any, model: Any, sample: dict[str, Any], reduce: bool) -> tuple[Any, ...]:
    model.zero_grad()
    loss, size, logged = criterion(model, sample, reduce=reduce)
    loss.sum().backward()
    return loss.detach(), size, logged, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("name", CRITERIONS)
@pytest.mark.parametrize("kind", ["separate", "tied", "all tied", "language model"])
def test_the_numbers_are_those_of_the_logits(
    kind: str, name: str, reduce: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    language_model = kind == "language model"
    options = {"tied": {"share_decoder_input_output_embed": True}, "all tied": {"share_all_embeddings": True}}
    model = make_language_model() if language_model else make_model(**options.get(kind, {}))
    sample, criterion = batch(language_model), CRITERIONS[name]()
    calls = count_calls(monkeypatch, model.decoder.output_projection)
    loss, size, logged, grads = outcome(criterion, model, sample, reduce)
    assert not calls, "the logits were made"

    monkeypatch.setattr(type(model), "linear_output", lambda self: None)
    want_loss, want_size, want_logged, want_grads = outcome(criterion, model, sample, reduce)
    assert len(calls) == 1 and size == want_size and logged.keys() == want_logged.keys()
    torch.testing.assert_close(loss, want_loss)
    for key, value in want_logged.items():
        torch.testing.assert_close(torch.as_tensor(logged[key]), torch.as_tensor(value))
    for parameter, grad in want_grads.items():
        torch.testing.assert_close(grads[parameter], grad, rtol=1e-4, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", CRITERIONS)
def test_validation_goes_the_same_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = make_model().eval(), batch()
    calls = count_calls(monkeypatch, model.decoder.output_projection)
    with torch.no_grad():
        loss, _, _ = CRITERIONS[name]()(model, sample)
        assert not calls and not loss.requires_grad
        monkeypatch.setattr(TransformerModel, "linear_output", lambda self: None)
        torch.testing.assert_close(loss, CRITERIONS[name]()(model, sample)[0])


def test_bf16_models(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = make_model(share_all_embeddings=True).bfloat16(), batch()
    criterion = CRITERIONS["smoothed, with accuracy"]()
    loss, _, _, grads = outcome(criterion, model, sample, True)
    assert loss.dtype == torch.float32 and {g.dtype for g in grads.values()} == {torch.bfloat16}
    monkeypatch.setattr(TransformerModel, "linear_output", lambda self: None)
    torch.testing.assert_close(loss, outcome(criterion, model, sample, True)[0], rtol=1e-3, atol=1e-3)


class OwnProbabilities(TransformerModel):
    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        return torch.log_softmax(net_output[0].float() * 2, dim=-1)


class OwnForward(TransformerModel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        logits, extra = super().forward(*args, **kwargs)
        return logits * 2, extra


class OwnLogits(TransformerModel):
    def get_logits(self, net_output: Any, sample: Any = None) -> Tensor | None:
        return net_output[0] * 2


class OwnTargets(TransformerModel):
    def get_targets(self, sample: dict[str, Any], net_output: Any) -> Tensor:
        assert net_output[0].size(-1) == SYMBOLS
        return sample["target"]


class DecoderOutput(TransformerDecoder):
    def output_layer(self, features: Tensor) -> Tensor:
        return super().output_layer(features) * 2


class DecoderForward(TransformerDecoder):
    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        logits, extra = super().forward(*args, **kwargs)
        return logits * 2, extra


class DecoderProbabilities(TransformerDecoder):
    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        return torch.log_softmax(net_output[0].float() * 2, dim=-1)


@pytest.mark.parametrize("name", ["cross_entropy", "smoothed, with accuracy"])
@pytest.mark.parametrize(
    "override",
    [OwnProbabilities, OwnForward, OwnLogits, OwnTargets, DecoderOutput, DecoderForward, DecoderProbabilities],
)
def test_a_model_that_changes_what_follows_its_features_is_heard(
    override: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sample = make_model(), batch()
    changed = model.decoder if issubclass(override, TransformerDecoder) else model
    logits = model(**sample["net_input"])[0]
    changed.__class__ = override
    assert model.linear_output() is None
    loss, _, _ = CRITERIONS[name]()(model, sample)
    doubled = logits.reshape(-1, SYMBOLS) * (1 if override is OwnTargets else 2)
    smoothing = 0.0 if name == "cross_entropy" else 0.1
    want = ops.cross_entropy_sums(doubled, sample["target"].view(-1), label_smoothing=smoothing, ignore_index=PAD)
    torch.testing.assert_close(loss, want.loss)


def test_an_output_layer_that_is_watched_or_replaced_is_called() -> None:
    for place in ("", "decoder", "decoder.output_projection"):
        model = make_model()
        hook = model.get_submodule(place).register_forward_hook(lambda module, args, output: None)
        assert model.linear_output() is None
        hook.remove()
        assert model.linear_output() is not None
    model.decoder.output_projection = nn.Sequential(model.decoder.output_projection, nn.Tanh())
    assert model.linear_output() is None
    model = make_model()
    nn.utils.parametrizations.weight_norm(model.decoder.output_projection)
    assert model.linear_output() is None
    model = make_model()
    model.decoder.adaptive_softmax = nn.Identity()
    assert model.linear_output() is None


def test_a_criterion_that_uses_logits_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnLoss(LabelSmoothedCrossEntropyCriterion):
        def compute_loss(self, model: Any, net_output: Any, sample: Any, reduce: bool = True) -> Any:
            assert net_output[0].size(-1) == SYMBOLS
            return super().compute_loss(model, net_output, sample, reduce)

    class OwnAccuracy(LabelSmoothedCrossEntropyCriterion):
        def compute_accuracy(self, model: Any, net_output: Any, sample: Any) -> Any:
            assert net_output[0].size(-1) == SYMBOLS
            return torch.tensor(1), torch.tensor(2)

    class Plain(CrossEntropyCriterion):
        def compute_loss(self, model: Any, net_output: Any, sample: Any, reduce: bool = True) -> Any:
            assert net_output[0].size(-1) == SYMBOLS
            return super().compute_loss(model, net_output, sample, reduce)

    model, sample = make_model(), batch()
    for criterion in (OwnLoss(TASK, False, 0.1), OwnAccuracy(TASK, False, 0.1, report_accuracy=True)):
        torch.testing.assert_close(criterion(model, sample)[0], CRITERIONS["smoothed"]()(model, sample)[0])
    torch.testing.assert_close(Plain(TASK, False)(model, sample)[0], CRITERIONS["cross_entropy"]()(model, sample)[0])


class PluginDecoder(TransformerDecoder):
    """A forward of its own, in the old style."""

    def forward(self, prev_output_tokens: Tensor, encoder_out: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        x, extra = self.extract_features(prev_output_tokens, encoder_out)
        return x if kwargs.get("features_only") else self.output_layer(x), extra


class OfferingDecoder(PluginDecoder):
    """The same, and it says what may be left out."""

    def linear_output(self) -> LinearOutput:
        return LinearOutput(self.output_projection.weight)


@pytest.mark.parametrize("decoder", [PluginDecoder, OfferingDecoder])
def test_a_plugin_says_for_itself_what_may_be_left_out(decoder: type, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = make_model(), batch()
    want = CRITERIONS["smoothed"]()(model, sample)[0]
    model.decoder.__class__ = decoder
    calls = count_calls(monkeypatch, model.decoder.output_projection)
    torch.testing.assert_close(CRITERIONS["smoothed"]()(model, sample)[0], want)
    assert len(calls) == (1 if decoder is PluginDecoder else 0)


def test_a_language_model_of_ones_own_keeps_its_logits() -> None:
    model = make_language_model()
    assert model.linear_output() is not None
    assert LanguageModel(model.decoder).linear_output() is None
