from __future__ import annotations

import os
from collections import OrderedDict

import numpy as np
import pytest
import torch

from pyseq.cli.average import average_checkpoints, main
from pyseq.errors import CheckpointError, ConfigError
from pyseq.training.checkpoint_file import load_checkpoint_file


def weights(seed, **extra):
    torch.manual_seed(seed)
    return OrderedDict(a=torch.randn(3, 4), b=torch.randn(()), **extra)


def average(*models):
    return average_checkpoints((f"{i}.pt", {"model": model, "extra_state": i}) for i, model in enumerate(models))


@pytest.fixture
def run(tmp_path):
    """A folder with the checkpoints of a run: epochs 1, 2, 9, 10, and updates 50 and 100 of epoch 3."""
    for seed, name in enumerate(["1", "2", "9", "10", "_3_50", "_3_100", "_last", "_best"]):
        torch.save({"model": weights(seed), "cfg": {"name": name}}, tmp_path / f"checkpoint{name}.pt")
    return tmp_path


def test_mean_against_float64():
    models = [weights(seed) for seed in range(7)]
    result = average(*models)
    for name in ("a", "b"):
        exact = np.mean([m[name].double().numpy() for m in models], axis=0)
        assert result["model"][name].dtype == torch.float32
        assert np.array_equal(result["model"][name].numpy(), exact.astype(np.float32))
    assert list(result["model"]) == ["a", "b"] and isinstance(result["model"], OrderedDict)
    assert result["extra_state"] == 0
    assert torch.equal(models[0]["a"], weights(0)["a"])


def test_large_values_and_many_inputs_lose_nothing():
    models = [{"a": torch.tensor([2.0**24 + 2, 1e-3])} for _ in range(100)]
    assert torch.equal(average(*models)["model"]["a"], models[0]["a"])


def test_fp64_stays_fp64():
    models = [{"a": torch.tensor([value], dtype=torch.float64)} for value in (1.0 + 2.0**-50, 1.0)]
    mean = average(*models)["model"]["a"]
    assert mean.dtype == torch.float64 and mean.item() == 1.0 + 2.0**-51


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_and_stored_in_fp32(dtype):
    models = [{"a": torch.tensor([value], dtype=dtype)} for value in (60000.0, 60000.0, 1.0)]
    mean = average(*models)["model"]["a"]
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx((2 * models[0]["a"].item() + 1) / 3, rel=1e-7)


def test_integers_and_flags_are_those_of_the_first():
    result = average(
        {"count": torch.tensor(101), "flag": torch.tensor([True]), "a": torch.tensor([1.0])},
        {"count": torch.tensor(50), "flag": torch.tensor([False]), "a": torch.tensor([2.0])},
    )["model"]
    assert result["count"].item() == 101 and result["count"].dtype == torch.int64
    assert result["flag"].item() is True
    assert result["a"].item() == 1.5


def test_tied_weights_stay_tied():
    def tied(value):
        a = torch.full((2,), value)
        return {"a": a, "other": torch.full((2,), value), "again": a}

    model = average(tied(1.0), tied(2.0))["model"]
    assert model["again"] is model["a"] and model["other"] is not model["a"]
    untied = average(tied(1.0), {"a": torch.zeros(2), "other": torch.zeros(2), "again": torch.ones(2)})["model"]
    assert untied["a"].tolist() == [0.5, 0.5] and untied["again"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "other, message",
    [
        (weights(1, c=torch.zeros(1)), "1.pt is of another model than 0.pt: has c too"),
        ({"a": torch.zeros(3, 4)}, "lacks b"),
        ({"a": torch.zeros(3, 5), "b": torch.zeros(())}, r"a is torch.float32 \(3, 5\) here and .* \(3, 4\) there"),
        ({"a": torch.zeros(3, 4), "b": torch.zeros((), dtype=torch.long)}, "b is torch.int64"),
    ],
)
def test_checkpoints_of_different_models_are_refused(other, message):
    with pytest.raises(CheckpointError, match=message):
        average(weights(0), other)


def expected_mean(run, *names):
    models = [torch.load(run / f"checkpoint{name}.pt", weights_only=True)["model"]["a"].double() for name in names]
    return (sum(models) / len(models)).float()


@pytest.mark.parametrize(
    "options, names",
    [
        (["--num-epoch-checkpoints", "2"], ["10", "9"]),
        (["--num-epoch-checkpoints", "2", "--checkpoint-upper-bound", "9"], ["9", "2"]),
        (["--num-update-checkpoints", "1"], ["_3_100"]),
        (["--num-update-checkpoints", "1", "--checkpoint-upper-bound", "99"], ["_3_50"]),
    ],
)
def test_the_last_checkpoints_of_a_folder(run, options, names):
    main(["--inputs", f"{run}", "--output", f"{run}/average.pt", *options])
    state = load_checkpoint_file(run / "average.pt")
    assert torch.equal(state["model"]["a"], expected_mean(run, *names))
    assert state["cfg"] == {"name": names[0]}


def test_checkpoints_by_name(run, capsys):
    inputs = [f"{run}/checkpoint1.pt", f"{run}/checkpoint_best.pt"]
    main(["--inputs", *inputs, "--output", f"{run}/average.pt"])
    assert torch.equal(load_checkpoint_file(run / "average.pt")["model"]["a"], expected_mean(run, "1", "_best"))
    assert "the average of 2 checkpoints" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, error, message",
    [
        (["--inputs", "RUN", "--num-epoch-checkpoints", "5"], CheckpointError, "4 .* like checkpoint7.pt, not 5"),
        (
            ["--inputs", "RUN", "--num-update-checkpoints", "2", "--checkpoint-upper-bound", "60"],
            CheckpointError,
            "1 checkpoints like checkpoint_7_5000.pt up to 60, not 2",
        ),
        (["--inputs", "RUN"], ConfigError, "is a folder"),
        (["--inputs", "RUN", "--num-epoch-checkpoints", "0"], ConfigError, "at least 1"),
        (["--inputs", "RUN/checkpoint1.pt", "--num-epoch-checkpoints", "1"], ConfigError, "needs one folder"),
        (["--inputs", "RUN/checkpoint1.pt", "--checkpoint-upper-bound", "1"], ConfigError, "upper-bound needs"),
        (["--inputs", "RUN/checkpoint7.pt"], CheckpointError, "checkpoint7.pt"),
    ],
)
def test_nothing_is_written_if_it_cannot_be_done(run, options, error, message):
    before = sorted(os.listdir(run))
    options = [option.replace("RUN", str(run)) for option in options]
    with pytest.raises(error, match=message):
        main([*options, "--output", f"{run}/average.pt"])
    assert sorted(os.listdir(run)) == before


def test_checkpoints_of_the_reference(reference, tmp_path):
    paths = [reference / "checkpoints" / name for name in ("init.pt", "plain_update20.pt")]
    main(["--inputs", *map(str, paths), "--output", f"{tmp_path}/average.pt"])
    states = [load_checkpoint_file(path) for path in paths]
    result = load_checkpoint_file(tmp_path / "average.pt")
    assert list(result) == list(states[0]) and list(result["model"]) == list(states[0]["model"])
    for name, value in result["model"].items():
        exact = (states[0]["model"][name].double() + states[1]["model"][name].double()) / 2
        assert torch.equal(value, exact.float())
    # The embedding that three names share is written once.
    assert os.path.getsize(tmp_path / "average.pt") < 1.01 * os.path.getsize(paths[0])
