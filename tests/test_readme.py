"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from pyseq.cli import train
from pyseq.cli.plugins import load_plugins
from pyseq.config.parser import get_training_parser, parse_args_and_arch

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """The indented command lines that begin with ``name``, continued lines joined."""
    text = README.read_text().replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in re.findall(rf"^    ({name} .*)$", text, re.MULTILINE)]


def test_the_fused_parts_run_in_a_loop_of_ones_own():
    (code,) = [block for block in blocks("python") if "linear_cross_entropy" in block]
    scope: dict = {}
    exec(code, scope)
    assert scope["optimizer"].grad_norm.isfinite() and scope["loss"].isfinite()
    norms = torch.stack([p.grad.norm() for p in scope["parameters"]])
    assert norms.norm() <= 1 + 1e-5  # clipped
    assert all(state["step"] == 4 for state in scope["optimizer"].state.values())


def test_the_training_command_parses():
    load_plugins()
    shown = [argv for argv in commands("pyseq-train") if "--user-dir" not in argv]
    assert shown
    for argv in shown:
        parse_args_and_arch(get_training_parser(), argv)


@pytest.mark.slow
def test_the_first_plugin_trains(tmp_path, tiny_data, monkeypatch):
    (code,) = [block for block in blocks("python") if "my_transformer" in block]
    (tmp_path / "my_plugins").mkdir()
    (tmp_path / "my_plugins" / "__init__.py").write_text(code)
    (argv,) = [argv for argv in commands("pyseq-train") if "--user-dir" in argv]
    monkeypatch.chdir(tmp_path)
    small = ["--encoder-embed-dim", "16", "--decoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16",
             "--decoder-ffn-embed-dim", "16"]  # fmt: skip
    train.main([str(tiny_data), *argv[1:], *small, "--max-update", "1", "--max-tokens", "200", "--cpu"])
    assert (tmp_path / "checkpoints" / "checkpoint_last.pt").exists()
