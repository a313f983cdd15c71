"""pyseq-generate on a tiny model with random weights, and on fairseq's own checkpoint."""

from __future__ import annotations

import argparse
import gzip
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyseq.cli import generate, preprocess
from pyseq.cli.plugins import load_plugins
from pyseq.config.config import config_from_args
from pyseq.config.parser import get_training_parser, parse_args_and_arch
from pyseq.errors import CheckpointError, ConfigError, DataError, UserError
from pyseq.tasks import setup_task
from pyseq.training.checkpoint_file import load_checkpoint_file, save_checkpoint_file


@pytest.fixture
def make_checkpoint(train_argv: list[str], tmp_path: Path) -> Callable[..., str]:
    """Checkpoints of models with random weights: ``make_checkpoint(seed)`` returns the path."""

    def make(seed: int = 1, *more: str) -> str:
        load_plugins()
        cfg = config_from_args(parse_args_and_arch(get_training_parser(), [*train_argv, *more]))
        torch.manual_seed(seed)
        model = setup_task(cfg.task).build_model(cfg.model)
        with torch.no_grad():
            model.decoder.output_projection.weight.mul_(3)
            # A constant feature, by which <s> is never generated: text does not show it.
            norm = model.decoder.layers[-1].final_layer_norm
            norm.weight[0], norm.bias[0] = 0, 1
            model.decoder.output_projection.weight[:, 0] = 0
            model.decoder.output_projection.weight[0, 0] = -40
        path = tmp_path / f"model{seed}.pt"
        save_checkpoint_file({"args": None, "cfg": cfg.to_dict(), "model": model.state_dict()}, path)
        return str(path)

    return make


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """The output of the command without the log."""
    common = ["--cpu", "--num-workers", "0", "--max-len-b", "12", "--no-progress-bar"]
    generate.main([*argv, *common])
    return [line for line in capsys.readouterr().out.splitlines() if " | " not in line]


def entries(lines: list[str], kind: str) -> dict[int, list[list[str]]]:
    """The fields after the id of each line of a kind, by sentence."""
    found: dict[int, list[list[str]]] = {}
    for line in lines:
        match = re.fullmatch(rf"{kind}-(\d+)\t(.*)", line)
        if match:
            found.setdefault(int(match[1]), []).append(match[2].split("\t"))
    return found


def test_lines_of_each_sentence(make_checkpoint, tiny_data, tiny_text, capsys):
    lines = run(capsys, str(tiny_data), "--path", make_checkpoint(), "--beam", "4", "--nbest", "2", "--print-step")
    assert lines[-1].startswith("Generate test with beam=4: BLEU4 = ")
    kinds = [line[0] for line in lines[:-1]]
    assert "".join(kinds) == "STHDPIHDPI" * 30
    sources, targets = ((tiny_text / f"test.{side}").read_text().splitlines() for side in ("en", "de"))
    assert {i: fields[0][0] for i, fields in entries(lines, "S").items()} == dict(enumerate(sources))
    assert {i: fields[0][0] for i, fields in entries(lines, "T").items()} == dict(enumerate(targets))
    hypotheses, positional = entries(lines, "H"), entries(lines, "P")
    assert entries(lines, "D") == hypotheses
    for i, found in hypotheses.items():
        scores = [float(score) for score, _ in found]
        assert scores[0] >= scores[1]
        for (score, text), (bits,), (steps,) in zip(found, positional[i], entries(lines, "I")[i]):
            parts = [float(part) for part in bits.split()]
            assert len(parts) == int(steps) == len(text.split()) + 1
            assert sum(parts) / len(parts) == pytest.approx(float(score), abs=1e-4)
            assert all(re.fullmatch(r"-?\d+\.\d{4}", part) for part in bits.split())


def test_scores_are_those_of_the_model(make_checkpoint, tiny_data, capsys):
    """--score-reference against the model called by hand."""
    path = make_checkpoint()
    lines = run(capsys, str(tiny_data), "--path", path, "--score-reference", "--beam", "1")
    state = load_checkpoint_file(path)
    task = setup_task(argparse.Namespace(task="translation", data=str(tiny_data)))
    model = task.build_model(state["cfg"]["model"]).eval()
    model.load_state_dict(state["model"])
    task.load_dataset("test")
    positional = entries(lines, "P")
    assert {i: f[0][1] for i, f in entries(lines, "H").items()} == {i: f[0][0] for i, f in entries(lines, "T").items()}
    for i in range(30):
        item = task.dataset("test")[i]
        source, target = item["source"].unsqueeze(0), item["target"]
        previous = torch.cat([target[-1:], target[:-1]]).unsqueeze(0)
        with torch.no_grad():
            lprobs = model(source, torch.tensor([source.size(1)]), previous)[0].double().log_softmax(-1)
        bits = lprobs[0, torch.arange(len(target)), target] / math.log(2)
        assert [float(part) for part in positional[i][0][0].split()] == pytest.approx(bits.tolist(), abs=1e-4)


def test_ensemble_of_a_model_twice_is_the_model(make_checkpoint, tiny_data, capsys):
    one, two = make_checkpoint(1), make_checkpoint(2)
    outputs = [
        run(capsys, str(tiny_data), "--path", path, "--beam", "3") for path in (one, f"{one}:{one}", f"{one}:{two}")
    ]
    texts = [{i: fields[0][1] for i, fields in entries(lines, "H").items()} for lines in outputs]
    assert texts[0] == texts[1] != texts[2]


def test_prefix_is_forced(make_checkpoint, tiny_data, capsys):
    lines = run(capsys, str(tiny_data), "--path", make_checkpoint(), "--prefix-size", "2", "--beam", "3")
    references = entries(lines, "T")
    for i, ((_, text),) in entries(lines, "H").items():
        assert text.split()[:2] == references[i][0][0].split()[:2]


def test_results_path_and_quiet(make_checkpoint, tiny_data, tmp_path, capsys):
    path = make_checkpoint()
    printed = run(capsys, str(tiny_data), "--path", path, "--beam", "2", "--gen-subset", "valid")
    quiet = run(capsys, str(tiny_data), "--path", path, "--beam", "2", "--gen-subset", "valid", "--quiet")
    assert quiet == printed[-1:]
    assert quiet[0].startswith("Generate valid with beam=2: ")
    folder = str(tmp_path / "results" / "new")
    run(capsys, str(tiny_data), "--path", path, "--beam", "2", "--gen-subset", "valid", "--results-path", folder)
    assert (tmp_path / "results/new/generate-valid.txt").read_text().splitlines() == printed


def test_workers_print_the_same(make_checkpoint, tiny_data, capsys):
    argv = [str(tiny_data), "--path", make_checkpoint(), "--beam", "4", "--batch-size", "3"]
    outputs = [run(capsys, *argv, "--num-generation-workers", number) for number in ("1", "2", "5")]
    for lines in outputs[1:]:
        assert_same(lines, outputs[0])


@pytest.mark.parametrize("flag", ["--retain-dropout", "--compile"])
def test_what_one_worker_alone_can_do_is_told_apart(make_checkpoint, tiny_data, capsys, flag):
    with pytest.raises(ConfigError, match="--num-generation-workers 2"):
        run(capsys, str(tiny_data), "--path", make_checkpoint(), flag, "--num-generation-workers", "2")


@pytest.mark.parametrize("flags", [["--beam", "4"], ["--score-reference"]], ids=["search", "scores"])
def test_a_compiled_model_prints_the_same_from_one_graph(make_checkpoint, tiny_data, capsys, monkeypatch, flags):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **how: compile_module(module, backend=backend, fullgraph=True, **how)
    )
    torch._dynamo.reset()
    argv = [str(tiny_data), "--path", make_checkpoint(), "--batch-size", "4", *flags]
    expected = run(capsys, *argv)
    assert not graphs
    assert_same(run(capsys, *argv, "--compile"), expected)
    assert len(graphs) == 1


def assert_same(lines: list[str], expected: list[str]) -> None:
    """The same sentences, hypotheses and statistics, and scores that agree within rounding."""
    assert [line.split("\t")[0] for line in lines] == [line.split("\t")[0] for line in expected]
    texts = [[line.split("\t")[-1] for line in some if line[0] in "DTS"] for some in (lines, expected)]
    assert texts[0] == texts[1]
    for kind in "HP":
        scores, others = (
            [[float(score) for score in fields[0][0].split()] for fields in entries(some, kind).values()]
            for some in (lines, expected)
        )
        assert all(one == pytest.approx(other, abs=2e-4) for one, other in zip(scores, others, strict=True))
    assert lines[-1] == expected[-1]


def test_shards_share_the_sentences(make_checkpoint, tiny_data, capsys):
    shard = [str(tiny_data), "--path", make_checkpoint(), "--beam", "2", "--batch-size", "8", "--num-shards", "3"]
    ids = [set(entries(run(capsys, *shard, "--shard-id", str(k)), "H")) for k in range(3)]
    assert sorted(i for part in ids for i in part) == list(range(30))


def test_hard_and_soft_alignment(make_checkpoint, tiny_data, capsys):
    common = [str(tiny_data), "--path", make_checkpoint(), "--beam", "2", "--print-alignment"]
    hard, soft = run(capsys, *common), run(capsys, *common, "soft")
    sources, texts, weights = entries(hard, "S"), entries(hard, "H"), entries(soft, "A")
    for i, ((pairs,),) in entries(hard, "A").items():
        rows = [[float(weight) for weight in row.split(",")] for row in weights[i][0][0].split()]
        length = len(sources[i][0][0].split())
        assert len(rows) == len(texts[i][0][1].split()) + 1
        assert all(len(row) == length + 1 and sum(row) == pytest.approx(1, abs=1e-4) for row in rows)
        best = [max(range(length), key=row.__getitem__) for row in rows[:-1]]
        assert pairs == " ".join(f"{source}-{target}" for target, source in enumerate(best))


def test_unknown_words_are_replaced_by_source_words(tiny_text, tiny_data, make_checkpoint, tmp_path, capsys):
    """A model that generates hardly anything but <unk>, through --unkpen."""
    raw = tmp_path / "raw"
    dictionaries = ["--srcdict", str(tiny_data / "dict.en.txt"), "--tgtdict", str(tiny_data / "dict.de.txt")]
    preprocess.main([
        "-s", "en", "-t", "de", "--testpref", str(tiny_text / "test"), "--destdir", str(raw), "--dataset-impl", "raw",
        *dictionaries,
    ])  # fmt: skip
    argv = [str(raw), "--path", make_checkpoint(), "--dataset-impl", "raw", "--unkpen", "-30", "--beam", "1"]
    plain = run(capsys, *argv, "--print-alignment")
    replaced = run(capsys, *argv, "--replace-unk")
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("".join(f"{letter} <{letter}>\n" for letter in "abcdefgh"))
    looked_up = run(capsys, *argv, "--replace-unk", str(pairs))
    sources, texts = entries(plain, "S"), entries(plain, "H")
    assert any("<unk>" in text for ((_, text),) in texts.values())
    for i, ((_, text),) in texts.items():
        words = sources[i][0][0].split()
        aligned = {int(t): words[int(s)] for s, t in (pair.split("-") for pair in entries(plain, "A")[i][0][0].split())}
        expected = [aligned[t] if word == "<unk>" else word for t, word in enumerate(text.split())]
        assert entries(replaced, "H")[i][0][1].split() == expected
        expected = [f"<{w}>" if w in "abcdefgh" and o == "<unk>" else w for w, o in zip(expected, text.split())]
        assert entries(looked_up, "H")[i][0][1].split() == expected


def test_model_overrides_and_bf16(make_checkpoint, tiny_data, capsys):
    path = make_checkpoint()
    assert len(entries(run(capsys, str(tiny_data), "--path", path, "--bf16", "--beam", "2"), "H")) == 30
    overrides = "{'max_target_positions': 5}"
    lines = run(capsys, str(tiny_data), "--path", path, "--beam", "2", "--model-overrides", overrides,
                "--skip-invalid-size-inputs-valid-test")  # fmt: skip
    assert max(len(f[0][1].split()) for f in entries(lines, "H").values()) <= 4


def test_another_scorer(make_checkpoint, tiny_data, capsys):
    lines = run(capsys, str(tiny_data), "--path", make_checkpoint(), "--beam", "2", "--scoring", "chrf")
    assert "chrF" in lines[-1]


def test_what_cannot_work_is_told_in_one_message(make_checkpoint, tiny_data, tiny_text, tmp_path, capsys):
    data, path = str(tiny_data), make_checkpoint()
    other = tmp_path / "other"
    short = tmp_path / "short"
    short.mkdir()
    for side in ("en", "de"):
        (short / f"test.{side}").write_text("a b c\n" * 5)
    preprocess.main(["-s", "en", "-t", "de", "--trainpref", str(short / "test"), "--destdir", str(other)])
    broken = tmp_path / "broken.pt"
    broken.write_bytes(Path(path).read_bytes()[:1000])
    cases: list[tuple[list[str], type[UserError], str]] = [
        ([data], ConfigError, "--path is required"),
        ([data, "--path", str(tmp_path / "none.pt")], CheckpointError, "none.pt"),
        ([data, "--path", str(broken)], CheckpointError, "broken.pt"),
        ([str(other), "--path", path, "--gen-subset", "train"], CheckpointError, "not fit"),
        ([data, "--path", path, "--gen-subset", "tset"], DataError, "tset"),
        ([data, "--path", path, "--model-overrides", "dropout=1"], ConfigError, "--model-overrides"),
        ([data, "--path", path, "--replace-unk"], ConfigError, "--dataset-impl raw"),
        ([data, "--path", path, "--beam", "0"], ConfigError, "--beam"),
        ([data, "--path", path, "--min-len", "500"], ConfigError, "--min-len"),
        ([data, "--path", path, "--sampling"], ConfigError, "--sampling"),
    ]
    for argv, error, message in cases:
        with pytest.raises(error, match=message):
            generate.main([*argv, "--cpu", "--num-workers", "0"])


def test_exit_code(tiny_data, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pyseq-generate", str(tiny_data), "--path", "nowhere/model.pt", "--cpu"])
    with pytest.raises(SystemExit) as exit_info:
        generate.cli_main()
    assert exit_info.value.code == 1
    error = capsys.readouterr().err
    assert "nowhere" in error and "Traceback" not in error


@pytest.mark.slow
def test_equals_fairseq(reference, tmp_path, capsys):
    """fairseq's own checkpoint on its own data: the same lines in the same order, scores to 1e-4, the same BLEU."""
    generate.main([
        str(reference / "data-bin"), "--path", str(reference / "checkpoints/update372.pt"), "--beam", "5",
        "--remove-bpe", "--max-tokens", "4096", "--cpu", "--gen-subset", "test", "--results-path", str(tmp_path),
    ])  # fmt: skip
    lines = (tmp_path / "generate-test.txt").read_text().splitlines()
    with gzip.open(reference / "generate/update372.beam5.txt.gz", "rt", encoding="utf-8") as file:
        expected = file.read().splitlines()
    assert [line.split("\t")[0] for line in lines[:-1]] == [line.split("\t")[0] for line in expected[:-1]]
    for kind in "ST":
        assert entries(lines, kind) == entries(expected, kind)
    found, wanted = entries(lines, "H"), entries(expected, "H")
    same = [i for i in wanted if found[i][0][1] == wanted[i][0][1]]
    assert len(same) >= 0.99 * len(wanted)
    assert max(abs(float(found[i][0][0]) - float(wanted[i][0][0])) for i in same) < 1e-4

    def bleu(line: str) -> float:
        match: Any = re.search(r"BLEU4 = ([\d.]+),", line)
        return float(match[1])

    assert bleu(lines[-1]) == pytest.approx(bleu(expected[-1]), abs=0.05)


def test_cuda_graphs_are_asked_for(tiny_data, make_checkpoint):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="--cuda-graphs needs a GPU"):
        generate.main([str(tiny_data), "--path", make_checkpoint(), "--cuda-graphs"])
