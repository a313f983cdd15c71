"""pyseq-eval-lm against log-probabilities summed by hand, token by token."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyseq.cli import eval_lm, preprocess
from pyseq.cli.plugins import load_plugins
from pyseq.config.config import config_from_args
from pyseq.config.parser import get_training_parser, parse_args_and_arch
from pyseq.data.dictionary import Dictionary
from pyseq.errors import ConfigError, DataError
from pyseq.tasks import setup_task
from pyseq.training.checkpoint_file import save_checkpoint_file

BLOCK = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Binarised text of one to nine words a line, some of them cut into pieces with @@."""
    text = tmp_path_factory.mktemp("lm") / "text"
    draw = random.Random(3)
    words = ["the", "a", "new@@ est", "old@@ e@@ st", "house", "is", "was", "tall@@ er"]
    lines = [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(60)]
    text.write_text("".join(f"{line}\n" for line in lines))
    folder = text.parent / "bin"
    preprocess.main(["--only-source", "--trainpref", str(text), "--testpref", str(text), "--destdir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A transformer language model with random weights, and its checkpoint."""
    load_plugins()
    argv = [
        str(data), "--task", "language_modeling", "--arch", "transformer_lm_gpt", "--tokens-per-sample", "128",
        "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32", "--decoder-layers", "2",
        "--decoder-attention-heads", "2", "--optimizer", "adam",
    ]  # fmt: skip
    cfg = config_from_args(parse_args_and_arch(get_training_parser(), argv))
    torch.manual_seed(0)
    built = setup_task(cfg.task).build_model(cfg.model).eval()
    with torch.no_grad():
        built.decoder.output_projection.weight.mul_(5)
    path = str(tmp_path_factory.mktemp("lm_model") / "model.pt")
    save_checkpoint_file({"args": None, "cfg": cfg.to_dict(), "model": built.state_dict()}, path)
    return built, path


@pytest.fixture
def evaluate(data: Path, model: tuple[Any, str]) -> Callable[..., dict[str, float]]:
    def run(*argv: str, path: str = model[1]) -> dict[str, float]:
        common = ["--cpu", "--num-workers", "0", "--no-progress-bar", "--tokens-per-sample", str(BLOCK)]
        results = eval_lm.main([str(data), "--path", path, "--gen-subset", "test", *common, *argv])
        assert results is not None
        return results

    return run


def sentences(data: Path) -> list[list[int]]:
    dictionary = Dictionary.load(data / "dict.txt")
    lines = (data.parent / "text").read_text().splitlines()
    return [dictionary.encode_line(line, add_if_not_exist=False).tolist() for line in lines]


@torch.no_grad()
def log_prob(model: Any, context: list[int], token: int) -> float:
    lprobs = model(torch.tensor([context]))[0][0, -1].double().log_softmax(-1)
    return float(lprobs[token])


def by_sentence(model: Any, data: Path) -> list[list[float]]:
    """Each sentence alone, beginning with the end of one."""
    return [[log_prob(model, [2, *s[:i]], s[i]) for i in range(len(s))] for s in sentences(data)]


def test_sentence_by_sentence(evaluate, model, data, capsys):
    scores = [score for line in by_sentence(model[0], data) for score in line]
    loss = -sum(scores) / len(scores) / math.log(2)
    for more in ([], ["--softmax-batch", "7"], ["--max-tokens", "30"], ["--batch-size", "1"]):
        results = evaluate("--sample-break-mode", "eos", *more)
        assert results["loss"] == pytest.approx(loss, abs=1e-5)
        assert results["perplexity"] == pytest.approx(2**loss, rel=1e-5)
        log = capsys.readouterr().out
        assert f"Loss (base 2): {loss:.4f}, Perplexity: {2**loss:.2f}" in log
        assert f"Evaluated {len(scores):,} tokens" in log


@pytest.mark.parametrize("window", [0, 8])
def test_blocks_with_context(window, evaluate, model, data):
    """A block of BLOCK - window tokens sees, besides its own tokens, the ``window`` before it."""
    stream = [token for sentence in sentences(data) for token in sentence]
    size, scores = BLOCK - window, []
    for start in range(0, len(stream), size):
        first = max(0, start - window)
        before = [2, *stream]  # the token before stream[i] is before[i]
        scores += [
            log_prob(model[0], before[first : i + 1], stream[i]) for i in range(start, min(start + size, len(stream)))
        ]
    results = evaluate("--context-window", str(window))
    assert results["loss"] == pytest.approx(-sum(scores) / len(scores) / math.log(2), abs=1e-5)


def test_words_instead_of_pieces(evaluate, model, data, capsys):
    """The same total over fewer words, with each word and its statistics in the log."""
    lines = (data.parent / "text").read_text().splitlines()
    words: dict[str, list[float]] = {}
    for line, scores in zip(lines, by_sentence(model[0], data)):
        word, total = "", 0.0
        for piece, score in zip([*line.split(), "</s>"], scores):
            word, total = word + piece.removesuffix("@@"), total + score
            if not piece.endswith("@@"):
                words.setdefault(word, []).append(total)
                word, total = "", 0.0
    everything = [score for scores in words.values() for score in scores]
    results = evaluate(
        "--sample-break-mode", "eos", "--remove-bpe", "--output-word-probs", "--output-word-stats", "--batch-size", "4"
    )
    assert results["loss"] == pytest.approx(-sum(everything) / len(everything) / math.log(2), abs=1e-5)
    log = capsys.readouterr().out
    printed = re.findall(r"(\S+) \[(-?\d+\.\d+)\]", log)
    assert len(printed) == len(everything)
    for name, scores in words.items():
        assert sorted(float(s) for w, s in printed if w == name) == pytest.approx(sorted(scores), abs=1e-4)
        (stat,) = re.findall(rf"\| {re.escape(name)}\t(\d+)\t(\S+)\t(\w+)\t(\S+)\t(\d+)", log)
        assert int(stat[0]) == len(scores)
        assert float(stat[1]) == pytest.approx(sum(scores), abs=1e-3)
        assert (stat[2] == "True") == (name in ("newest", "oldest", "taller"))
        assert int(stat[4]) == (0 if name == "</s>" else len(scores))


def test_ensemble_of_a_model_twice_is_the_model(evaluate, model):
    once, twice = evaluate(), evaluate(path=f"{model[1]}:{model[1]}")
    assert once["loss"] == pytest.approx(twice["loss"], abs=1e-5)


def test_what_cannot_work_is_told_in_one_message(evaluate):
    with pytest.raises(ConfigError, match="--context-window 24"):
        evaluate("--context-window", str(BLOCK))
    with pytest.raises(ConfigError, match="sentencepiece"):
        evaluate("--remove-bpe", "sentencepiece")
    with pytest.raises(DataError, match="valid"):
        evaluate("--gen-subset", "valid")


def test_impossible_tokens_are_told_and_weights_that_are_not_finite_show(model, data, caplog):
    """A token of probability 0 is left out of the mean, as in fairseq; nan is not hidden."""
    dictionary = Dictionary.load(data / "dict.txt")
    word = dictionary.index("house")

    class Fixed(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.value = value

        def forward(self, src_tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
            logits = torch.zeros(*src_tokens.shape, len(dictionary))
            logits[:, :, word] = self.value
            return logits, None

        def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> torch.Tensor:
            return net_output[0].log_softmax(-1)

    target = torch.tensor([[word, 5, 6, 2]])
    sample = {"id": torch.tensor([4]), "net_input": {"src_tokens": target}, "target": target, "ntokens": 4}
    caplog.set_level("INFO")
    results = eval_lm.eval_lm([Fixed(-math.inf)], dictionary, [sample])
    assert results["perplexity"] == pytest.approx(len(dictionary) - 1)
    assert "skipping tokens with inf scores: house" in caplog.text
    assert math.isnan(eval_lm.eval_lm([Fixed(math.nan)], dictionary, [sample])["loss"])
