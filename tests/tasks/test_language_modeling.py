"""The language modelling task: blocks, targets, prompts, a run."""

from __future__ import annotations

import json

import pytest
import torch

from pyseq.cli import preprocess, train
from pyseq.cli.plugins import load_plugins
from pyseq.errors import ConfigError, DataError
from pyseq.tasks import setup_task
from pyseq.tasks.language_modeling import LanguageModelingConfig

load_plugins()


@pytest.fixture(scope="module")
def lm_data(tiny_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm") / "bin"
    preprocess.main(["--only-source", "--trainpref", str(tiny_text / "train.en"), "--validpref",
                     str(tiny_text / "valid.en"), "--destdir", str(folder)])  # fmt: skip
    return folder


def task(data, **options):
    return setup_task(LanguageModelingConfig(_name="language_modeling", data=str(data), **options))


def stream(loaded, text):
    """The corpus as one list of ids, an end of sentence after each line."""
    index, eos = loaded.dictionary.index, loaded.dictionary.eos()
    return [i for line in text.read_text().splitlines() for i in [*map(index, line.split()), eos]]


@pytest.mark.parametrize("mode", ["none", "complete", "eos"])
def test_targets_are_the_corpus_and_sources_what_stands_before(lm_data, tiny_text, mode):
    loaded = task(lm_data, tokens_per_sample=16, sample_break_mode=mode)
    loaded.load_dataset("valid")
    dataset = loaded.dataset("valid")
    tokens = stream(loaded, tiny_text / "valid.en")
    assert [int(t) for i in range(len(dataset)) for t in dataset[i]["target"]] == tokens
    for i in range(len(dataset)):
        source, target = dataset[i]["source"], dataset[i]["target"]
        assert torch.equal(source[1:], target[:-1])
        assert mode == "none" or source[0] == loaded.dictionary.eos()


def test_prompts_are_continued_and_not_ended(lm_data):
    loaded = task(lm_data)
    prompt = loaded.dictionary.encode_line("a b c", add_if_not_exist=False).long()
    dataset = loaded.build_dataset_for_inference([prompt], [len(prompt)])
    sample = dataset.collater([dataset[0]])
    eos = loaded.dictionary.eos()
    assert sample["net_input"]["src_tokens"].tolist() == [[eos, *prompt[:-1].tolist()]]


def test_a_smaller_output_dictionary(lm_data):
    loaded = task(lm_data, output_dictionary_size=10)
    assert len(loaded.target_dictionary) == 10 and len(loaded.source_dictionary) > 10


@pytest.mark.parametrize("method", ["truncate", "random_crop"])
def test_long_sentences_are_shortened(lm_data, method):
    loaded = task(lm_data, tokens_per_sample=4, sample_break_mode="eos", shorten_method=method)
    loaded.load_dataset("valid")
    dataset = loaded.dataset("valid")
    assert max(len(dataset[i]["target"]) for i in range(len(dataset))) == 4


def test_a_model_learns(lm_data, tmp_path):
    train.main([
        str(lm_data), "--task", "language_modeling", "--arch", "transformer_lm_gpt", "--decoder-layers", "1",
        "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32", "--decoder-attention-heads", "2",
        "--tokens-per-sample", "32", "--max-tokens", "256", "--optimizer", "adam", "--lr", "0.01", "--max-epoch", "3",
        "--save-dir", str(tmp_path), "--cpu", "--num-workers", "0", "--log-format", "none",
    ])  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if r["tag"] == "valid"]
    assert losses[-1] < losses[0] and losses[-1] < 4.3


def test_mistakes(lm_data, tmp_path):
    with pytest.raises(ConfigError, match="needs the folder"):
        task("")
    with pytest.raises(DataError, match="no such data folder"):
        task(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no 'test' data"):
        task(lm_data).load_dataset("test")
