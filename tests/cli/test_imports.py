"""What a command does not need is not imported: a start takes as long as its imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# The compiler takes as long to import as torch itself; the others belong to options that are not given.
NEVER = {
    "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp", "torch.utils.tensorboard",
    "sympy", "triton", "sacrebleu", "tensorboard", "matplotlib", "pandas", "scipy", "sentencepiece", "subword_nmt",
    "sacremoses", "yaml",
}  # fmt: skip


def imported(code: str, *argv: str) -> set[str]:
    """Names of the modules that a process of its own has imported when it has run ``code``."""
    code = f"import json, sys; argv = sys.argv[1:]\n{code}\nprint(json.dumps(list(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    return set(json.loads(found.stdout.splitlines()[-1]))


def test_preprocess_and_score_do_without_torch(tiny_text, tmp_path):
    (tmp_path / "hypothesis").write_text("a b c d e\n")
    (tmp_path / "reference").write_text("a b c d f\n")
    preprocess = ["--only-source", "--source-lang", "en", "--trainpref", str(tiny_text / "train"), "--destdir",
                  str(tmp_path / "bin")]  # fmt: skip
    modules = imported("from pyseq.cli import preprocess; preprocess.main(argv)", *preprocess)
    assert not modules & {"torch", "concurrent.futures.process", *NEVER}
    score = ["--sys", str(tmp_path / "hypothesis"), "--ref", str(tmp_path / "reference")]
    modules = imported("from pyseq.cli import score; score.main(argv)", *score)
    assert not modules & {"torch", "numpy", *NEVER}


def test_training_imports_no_compiler(train_argv, tmp_path):
    argv = [*train_argv, "--save-dir", str(tmp_path), "--max-update", "1"]
    assert not imported("from pyseq.cli import train; train.main(argv)", *argv) & NEVER


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "generate", "interactive", "eval_lm", "average"])
def test_help_imports_no_compiler(command):
    run = f"from pyseq.cli import {command}\ntry: {command}.main(['--help'])\nexcept SystemExit: pass"
    assert not imported(run) & NEVER
