"""``--compile``: one graph for batches of all shapes, and the numbers of the run without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyseq.cli import train
from pyseq.cli.plugins import load_plugins
from pyseq.cli.train import build
from pyseq.config.config import config_from_args
from pyseq.config.parser import get_training_parser, parse_args_and_arch
from pyseq.errors import ConfigError

PADDING = 1
SHAPES = ((16, 30, 42), (24, 37, 35), (40, 27, 29), (32, 29, 29))  # sentences, source and target tokens


def test_one_graph_serves_every_shape(train_argv: list[str]) -> None:
    argv = [*train_argv, "--dropout", "0", "--encoder-embed-dim", "64", "--decoder-embed-dim", "64"]
    load_plugins()
    model = build(config_from_args(parse_args_and_arch(get_training_parser(), argv))).model.train()
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=backend)
    classes = model.decoder.output_projection.weight.size(0)
    for sentences, source, target in SHAPES:
        generator = torch.Generator().manual_seed(sentences)
        tokens = [torch.randint(4, classes, (sentences, n), generator=generator) for n in (source, target)]
        tokens[0][0, -2:] = PADDING
        tokens[1][1, -3:] = PADDING
        lengths = tokens[0].ne(PADDING).sum(1)
        expected, _ = model(tokens[0], lengths, tokens[1])
        got, _ = compiled(tokens[0], lengths, tokens[1])
        real = tokens[1].ne(PADDING)
        torch.testing.assert_close(got[real], expected[real], rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1
    model.eval()
    with torch.no_grad():
        for sentences, source, target in SHAPES[:2]:
            compiled(torch.full((sentences, source), 5), None, torch.full((sentences, target), 5))
    assert len(graphs) == 2


def test_packing_and_compiling_are_told_apart(train_argv: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--packed leaves out padding"):
        train.main([*train_argv, "--save-dir", str(tmp_path), "--compile", "--packed"])


def test_no_compiler_is_told_of_before_anything_is_loaded(
    train_argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(ConfigError, match=r"--compile needs a C\+\+ compiler"):
        train.main([*train_argv, "--compile"])


@pytest.mark.slow
def test_a_compiled_run_is_the_run_without(train_argv: list[str], tmp_path: Path) -> None:
    torch._dynamo.reset()
    records = {}
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        folder = tmp_path / name
        train.main([*train_argv, "--save-dir", str(folder), "--dropout", "0", "--max-update", "4", *flags])
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        records[name] = [r["loss"] for r in map(json.loads, lines) if "loss" in r]
    assert len(records["plain"]) >= 5  # four updates and a validation
    assert records["compiled"] == pytest.approx(records["plain"], abs=2e-3)
    names = [set(torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=False)["model"]) for name in records]
    assert names[0] == names[1]
