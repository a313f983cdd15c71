"""fairseq's own checkpoints and losses."""

from __future__ import annotations

import json
import math
import struct
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyseq.models import build_model
from pyseq.models.transformer import TransformerModel

PAD, EOS, VOCAB = 1, 2, 9736


def read_checkpoint(reference: Path, name: str) -> dict[str, Any]:
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(reference / "checkpoints" / name, weights_only=True)


@pytest.fixture(scope="module")
def init(reference: Path) -> dict[str, Any]:
    return read_checkpoint(reference, "init.pt")


def read_dataset(prefix: Path) -> Callable[[int], np.ndarray]:
    """The sentences of an indexed dataset: sizes and byte offsets in .idx, tokens in .bin."""
    index = prefix.with_name(prefix.name + ".idx").read_bytes()
    _, code, count = struct.unpack_from("<QBQ", index, 9)
    assert code == 8  # unsigned 16 bit
    sizes = np.frombuffer(index, "<i4", count, offset=26)
    starts = np.frombuffer(index, "<i8", count, offset=26 + 4 * count) // 2
    tokens = np.fromfile(prefix.with_name(prefix.name + ".bin"), "<u2").astype(np.int64)
    return lambda i: tokens[starts[i] : starts[i] + sizes[i]]


def collate(reference: Path, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Source padded on the left, target shifted right by one, target."""
    english, german = (read_dataset(reference / "data-bin" / f"train.en-de.{side}") for side in ("en", "de"))
    source, prefix, target = (np.full(batch[f"{side}_shape"], PAD) for side in ("src", "tgt", "tgt"))
    for row, sample in enumerate(batch["ids"]):
        s, t = english(sample), german(sample)
        source[row, -len(s) :] = s
        target[row, : len(t)] = t
        prefix[row, : len(t)] = np.roll(t, 1)
    assert np.all(prefix[:, 0] == EOS)
    return torch.from_numpy(source), torch.from_numpy(prefix), torch.from_numpy(target)


def test_the_same_seed_draws_the_same_weights(init, task_of) -> None:
    torch.manual_seed(1)
    model = build_model(init["cfg"]["model"], task_of(VOCAB, VOCAB))
    ours, theirs = model.state_dict(), init["model"]
    assert list(ours) == list(theirs)
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


def test_the_optimizers_order_of_parameters(init, reference, task_of) -> None:
    """Optimizer states are numbered in the order of parameters."""
    model = build_model(init["cfg"]["model"], task_of(VOCAB, VOCAB))
    state = read_checkpoint(reference, "plain_update20.pt")["last_optimizer_state"]["state"]
    shapes = [tuple(state[i]["exp_avg"].shape) for i in sorted(state)]
    assert shapes == [tuple(p.shape) for p in model.parameters()]


@pytest.mark.parametrize("name", ["init.pt", "plain_update20.pt", "update372.pt"])
def test_checkpoints_load(reference, task_of, name) -> None:
    checkpoint = read_checkpoint(reference, name)
    model = build_model(checkpoint["cfg"]["model"], task_of(VOCAB, VOCAB))
    model.load_state_dict(checkpoint["model"], strict=True, model_cfg=checkpoint["cfg"]["model"])
    assert all(torch.equal(v, checkpoint["model"][k]) for k, v in model.state_dict().items())


def test_the_loss_and_gradient_norm_of_the_first_update(init, reference, task_of) -> None:
    update = json.loads((reference / "runs" / "plain.json").read_text())["updates"][0]
    source, prefix, target = collate(reference, update["micro_batches"][0])
    model: TransformerModel = build_model(init["cfg"]["model"], task_of(VOCAB, VOCAB))
    model.load_state_dict(init["model"])
    logits, _ = model.train()(source, None, prefix)

    # label smoothing 0.1: the target gets 1 - 0.1, every other symbol 0.1 / (V - 1)
    real = target.ne(PAD)
    log_probs = model.get_normalized_probs((logits, {}), log_probs=True)[real]
    nll = -log_probs.gather(-1, target[real].unsqueeze(-1)).squeeze(-1)
    share = 0.1 / (VOCAB - 1)
    loss = ((1 - 0.1 - share) * nll - share * log_probs.sum(-1)).sum()
    bits = loss.item() / update["sample_size"] / math.log(2)
    assert abs(bits - update["loss_base2"]) < 5e-5
    assert abs(nll.sum().item() / update["sample_size"] / math.log(2) - update["nll_loss_base2"]) < 5e-5

    (loss / update["sample_size"]).backward()
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters() if p.grad is not None))
    assert abs(norm / update["gnorm"] - 1) < 1e-4
