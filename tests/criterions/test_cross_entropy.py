"""cross_entropy and label_smoothed_cross_entropy against their definitions in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyseq import metrics
from pyseq.criterions.cross_entropy import CrossEntropyCriterion
from pyseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    label_smoothed_nll_loss,
)
from pyseq.errors import ConfigError

PAD, CLASSES, EPSILON = 1, 19, 0.1
TASK = SimpleNamespace(target_dictionary=SimpleNamespace(pad=lambda: PAD))


class Model(nn.Module):
    """Logits that are parameters, as a decoder returns them."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, scale: float = 1.0) -> tuple[Tensor, dict[str, Any]]:
        return self.logits * scale, {"attn": []}

    def get_targets(self, sample: dict[str, Any], net_output: Any) -> Tensor:
        return sample["target"]

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        assert log_probs
        return torch.log_softmax(net_output[0].float(), dim=-1)


class ModelWithLogits(Model):
    """The same, and it says that its log-probabilities are the plain log-softmax of its logits."""

    def get_logits(self, net_output: Any, sample: Any = None) -> Tensor | None:
        return net_output[0]

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        raise AssertionError("N x V log-probabilities were made although logits were offered")


class ModelWithOtherProbabilities(Model):
    """Its probabilities are no softmax of its logits, so it offers none."""

    def get_logits(self, net_output: Any, sample: Any = None) -> Tensor | None:
        return None

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        return torch.log_softmax(-net_output[0].float(), dim=-1)


MODELS = [Model, ModelWithLogits]


def batch() -> tuple[Tensor, dict[str, Any]]:
    """Logits [B x T x V] and a sample of 4 sentences of 2 to 6 tokens, padded on the right."""
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(2, CLASSES, (4, 6), generator=generator)
    for row, length in enumerate((6, 5, 3, 2)):
        target[row, length:] = PAD
    logits = torch.randn(4, 6, CLASSES, generator=generator) * 2
    logits[0, 0, target[0, 0]] = logits[1, 2, target[1, 2]] = logits[2, 1, target[2, 1]] = 20.0
    return logits, {"net_input": {}, "target": target, "ntokens": 16}


def exact(logits: Tensor, target: Tensor, epsilon: float, prefix: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Smoothed loss [B x T], nll [B x T] and the gradient of the loss's sum, in float64."""
    x = logits.double().requires_grad_()
    log_p = x - x.exp().sum(dim=-1, keepdim=True).log()
    q = torch.full_like(x, epsilon / (CLASSES - 1)).scatter(-1, target.unsqueeze(-1), 1 - epsilon).detach()
    counts = target.ne(PAD)
    counts[:, :prefix] = False
    loss = -(q * log_p).sum(dim=-1) * counts
    (grad,) = torch.autograd.grad(loss.sum(), x)
    nll = -log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1) * counts
    return loss.detach(), nll.detach(), grad


def close(got: Any, want: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(got).double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("sentence_avg", [False, True])
def test_cross_entropy(make: type[Model], sentence_avg: bool) -> None:
    logits, sample = batch()
    loss_64, _, grad_64 = exact(logits, sample["target"], 0.0)
    model, criterion = make(logits), CrossEntropyCriterion(TASK, sentence_avg)
    loss, sample_size, logged = criterion(model, sample)
    loss.backward()
    close(loss.detach(), loss_64.sum())
    close(model.logits.grad, grad_64)
    assert sample_size == (4 if sentence_avg else 16)
    assert {key: logged[key] for key in ("ntokens", "nsentences", "sample_size")} == {
        "ntokens": 16,
        "nsentences": 4,
        "sample_size": sample_size,
    }
    assert torch.equal(logged["loss"], loss) and not logged["loss"].requires_grad

    by_token, _, _ = criterion(model, sample, reduce=False)
    assert by_token.shape == (24,)
    close(by_token.detach(), loss_64.flatten())


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("epsilon", [0.0, EPSILON])
def test_label_smoothed_cross_entropy(make: type[Model], prefix: int, epsilon: float) -> None:
    logits, sample = batch()
    target = sample["target"].clone()
    loss_64, nll_64, grad_64 = exact(logits, target, epsilon, prefix)
    model = make(logits)
    criterion = LabelSmoothedCrossEntropyCriterion(
        TASK, False, epsilon, ignore_prefix_size=prefix, report_accuracy=True
    )
    loss, sample_size, logged = criterion(model, sample)
    loss.backward()
    close(loss.detach(), loss_64.sum())
    close(logged["nll_loss"], nll_64.sum())
    close(model.logits.grad, grad_64)
    assert sample_size == logged["sample_size"] == logged["ntokens"] == 16 and logged["nsentences"] == 4
    assert torch.equal(sample["target"], target), "the batch was changed"

    counts = target.ne(PAD)
    counts[:, :prefix] = False
    assert logged["total"] == counts.sum()
    assert logged["n_correct"] == (logits.argmax(dim=-1).eq(target) & counts).sum() > 0

    by_token, _, logged = criterion(model, sample, reduce=False)
    assert by_token.shape == logged["nll_loss"].shape == (4 * (6 - prefix), 1)
    close(by_token.detach(), loss_64[:, prefix:].reshape(-1, 1))
    close(logged["nll_loss"], nll_64[:, prefix:].reshape(-1, 1))
    assert logged["total"] == counts.sum()


CRITERIONS: dict[str, Callable[[], Any]] = {
    "cross_entropy": lambda: CrossEntropyCriterion(TASK, False),
    "label_smoothed_cross_entropy": lambda: LabelSmoothedCrossEntropyCriterion(
        TASK, False, EPSILON, report_accuracy=True
    ),
}


@pytest.mark.parametrize("name", CRITERIONS)
def test_a_model_with_its_own_probabilities_is_heard(name: str) -> None:
    logits, sample = batch()
    loss, _, _ = CRITERIONS[name]()(ModelWithOtherProbabilities(logits), sample)
    expected, _, _ = CRITERIONS[name]()(Model(-logits), sample)
    close(loss.detach(), expected.detach().double())


def test_a_subclass_with_its_own_log_probabilities_is_heard() -> None:
    class Doubled(LabelSmoothedCrossEntropyCriterion):
        def get_lprobs_and_target(self, model: Any, net_output: Any, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
            lprobs = torch.log_softmax(net_output[0] * 2, dim=-1)
            return lprobs.view(-1, CLASSES), sample["target"].view(-1)

    logits, sample = batch()
    loss, _, _ = Doubled(TASK, False, EPSILON)(ModelWithLogits(logits), sample)
    close(loss.detach(), exact(logits * 2, sample["target"], EPSILON)[0].sum())


def test_accuracy_is_of_the_logits_it_is_asked_about() -> None:
    """The count that the loss leaves behind must not be taken for that of another output."""
    logits, sample = batch()
    criterion = CRITERIONS["label_smoothed_cross_entropy"]()
    model, other = ModelWithLogits(logits), ModelWithLogits(-logits)
    criterion.compute_loss(model, model(), sample)
    n_correct, total = criterion.compute_accuracy(other, other(), sample)
    counts = sample["target"].ne(PAD)
    assert n_correct == ((-logits).argmax(dim=-1).eq(sample["target"]) & counts).sum() and total == 16


@pytest.mark.parametrize("name", CRITERIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_models_have_fp32_losses(name: str, dtype: torch.dtype) -> None:
    logits, sample = batch()
    logits = logits.to(dtype)
    model = ModelWithLogits(logits)
    loss, _, _ = CRITERIONS[name]()(model, sample)
    loss.backward()
    assert loss.dtype == torch.float32 and model.logits.grad is not None and model.logits.grad.dtype == dtype
    epsilon = 0.0 if name == "cross_entropy" else EPSILON
    close(loss.detach(), exact(logits, sample["target"], epsilon)[0].sum())


@pytest.mark.parametrize("name", CRITERIONS)
def test_padding_with_bad_logits_does_no_harm(name: str) -> None:
    logits, sample = batch()
    logits[sample["target"].eq(PAD)] = float("nan")
    model = ModelWithLogits(logits)
    loss, _, _ = CRITERIONS[name]()(model, sample)
    loss.backward()
    assert loss.isfinite() and model.logits.grad is not None
    assert (model.logits.grad[sample["target"].eq(PAD)] == 0).all() and model.logits.grad.isfinite().all()


def test_logged_values_stay_on_the_device() -> None:
    logits, sample = batch()
    for make in CRITERIONS.values():
        _, _, logged = make()(ModelWithLogits(logits), sample)
        assert all(torch.is_tensor(logged[key]) for key in logged if key in ("loss", "nll_loss", "n_correct", "total"))


def test_what_cross_entropy_logs() -> None:
    outputs = [
        {"loss": torch.tensor(60.0), "ntokens": 20, "nsentences": 2, "sample_size": 20},
        {"loss": torch.tensor(90.0), "ntokens": 30, "nsentences": 3, "sample_size": 30},
    ]
    with metrics.aggregate() as logged:
        CrossEntropyCriterion.reduce_metrics(outputs)
    bits = 3.0 / math.log(2)
    assert logged.get_smoothed_values() == {"loss": round(bits, 3), "ppl": round(2**bits, 2)}

    with metrics.aggregate() as logged:
        CrossEntropyCriterion.reduce_metrics([{**output, "sample_size": output["nsentences"]} for output in outputs])
    values = logged.get_smoothed_values()
    assert values == {"loss": round(10 * bits, 3), "nll_loss": round(bits, 3), "ppl": round(2**bits, 2)}


def test_what_label_smoothed_cross_entropy_logs() -> None:
    outputs = [
        {"loss": torch.tensor(90.0), "nll_loss": torch.tensor(60.0), "ntokens": 20, "sample_size": 2},
        {"loss": torch.tensor(120.0), "nll_loss": torch.tensor(90.0), "ntokens": 30, "sample_size": 3},
    ]
    bits = 3.0 / math.log(2)
    expected = {"loss": round(42 / math.log(2), 3), "nll_loss": round(bits, 3), "ppl": round(2**bits, 2)}
    with metrics.aggregate() as logged:
        LabelSmoothedCrossEntropyCriterion.reduce_metrics(outputs)
    assert logged.get_smoothed_values() == expected

    counted = [{**output, "n_correct": torch.tensor(7), "total": torch.tensor(15)} for output in outputs]
    with metrics.aggregate() as logged:
        LabelSmoothedCrossEntropyCriterion.reduce_metrics(counted)
    values = logged.get_smoothed_values()
    assert values == expected | {"total": 30, "n_correct": 14, "accuracy": 46.667}
    assert CrossEntropyCriterion.logging_outputs_can_be_summed()
    assert LabelSmoothedCrossEntropyCriterion.logging_outputs_can_be_summed()


def test_nll_loss_of_log_probabilities_keeps_the_shapes_that_plugins_expect() -> None:
    logits, sample = batch()
    target = sample["target"]
    lprobs = torch.log_softmax(logits, dim=-1)
    loss_64, nll_64, _ = exact(logits, target, EPSILON)
    loss, nll = label_smoothed_nll_loss(lprobs, target, EPSILON, ignore_index=PAD)
    close(loss, loss_64.sum())
    close(nll, nll_64.sum())
    loss, nll = label_smoothed_nll_loss(lprobs, target.unsqueeze(-1), EPSILON, ignore_index=PAD, reduce=False)
    close(loss, loss_64.unsqueeze(-1))
    loss, _ = label_smoothed_nll_loss(lprobs, target, EPSILON, reduce=False)
    assert loss.shape == target.shape
    loss, _ = label_smoothed_nll_loss(lprobs, torch.full_like(target, -100), EPSILON, ignore_index=-100)
    assert loss == 0


@pytest.mark.parametrize(("options", "flag"), [((1.5,), "--label-smoothing"), ((0.1, -1), "--ignore-prefix-size")])
def test_options_out_of_range_name_the_flag(options: tuple[Any, ...], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        LabelSmoothedCrossEntropyCriterion(TASK, False, *options)
