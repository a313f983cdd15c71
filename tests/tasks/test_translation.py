"""The translation task: languages, splits, options."""

from __future__ import annotations

import os
import shutil

import pytest

from pyseq.cli.plugins import load_plugins
from pyseq.errors import ConfigError, DataError
from pyseq.tasks import setup_task
from pyseq.tasks.translation import TranslationConfig

load_plugins()


def task(data, **options):
    return setup_task(TranslationConfig(_name="translation", data=str(data), train_subset="train", **options))


def test_languages_are_found_from_the_files(tiny_data):
    found = task(tiny_data)
    assert (found.cfg.source_lang, found.cfg.target_lang) == ("en", "de")


@pytest.mark.parametrize("given", [{"source_lang": "de"}, {"target_lang": "en"}])
def test_one_language_is_enough_to_turn_the_direction_round(tiny_data, given):
    turned = task(tiny_data, **given)
    turned.load_dataset("valid")
    assert (turned.cfg.source_lang, turned.cfg.target_lang) == ("de", "en")
    sample = turned.dataset("valid")[0]
    assert turned.src_dict.string(sample["source"]).isupper()
    assert turned.tgt_dict.string(sample["target"]).islower()


def test_text_survives_the_way_through_the_task(tiny_data, tiny_text):
    loaded = task(tiny_data)
    loaded.load_dataset("test")
    lines = (tiny_text / "test.en").read_text().splitlines()
    assert [loaded.src_dict.string(loaded.dataset("test")[i]["source"]) for i in range(len(lines))] == lines


def test_combine_joins_numbered_splits_and_upsamples_the_first(tiny_data, tmp_path):
    folder = shutil.copytree(tiny_data, tmp_path / "data")
    for name in os.listdir(folder):
        if name.startswith("valid."):
            shutil.copy(folder / name, folder / name.replace("valid.", "train1."))
    loaded = task(folder, upsample_primary=2)
    loaded.load_dataset("train", combine=True)
    assert len(loaded.dataset("train")) == 2 * 400 + 40
    loaded.load_dataset("train", combine=False)
    assert len(loaded.dataset("train")) == 400


def test_folders_are_used_one_an_epoch(tiny_data, tmp_path):
    other = shutil.copytree(tiny_data, tmp_path / "data")
    for name in os.listdir(other):
        if name.startswith("valid."):
            shutil.copy(other / name, other / name.replace("valid.", "train."))
    loaded = task(f"{tiny_data}:{other}")
    sizes = []
    for epoch in (1, 2, 3):
        loaded.load_dataset("train", epoch=epoch)
        sizes.append(len(loaded.dataset("train")))
    assert sizes == [400, 40, 400] and loaded.has_sharded_data("train")


def test_truncated_sources_keep_their_end(tiny_data):
    loaded = task(tiny_data, truncate_source=True, max_source_positions=4)
    loaded.load_dataset("valid")
    for i in range(40):
        source = loaded.dataset("valid")[i]["source"]
        assert len(source) <= 4 and source[-1] == loaded.src_dict.eos()


def test_over_long_samples_are_refused_or_left_out(tiny_data):
    loaded = task(tiny_data, max_source_positions=6)
    loaded.load_dataset("valid")
    dataset = loaded.dataset("valid")
    indices = dataset.ordered_indices()
    with pytest.raises(DataError, match="Size of sample #"):
        loaded.filter_indices_by_size(indices, dataset, loaded.max_positions())
    kept = loaded.filter_indices_by_size(indices, dataset, loaded.max_positions(), ignore_invalid_inputs=True)
    assert 0 < len(kept) < 40 and max(dataset.src_sizes[kept]) <= 6


def test_mistakes(tiny_data, tmp_path):
    with pytest.raises(ConfigError, match="needs the folder"):
        task("")
    with pytest.raises(DataError, match="no such data folder"):
        task(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="-s and -t"):
        task(tmp_path)
    with pytest.raises(DataError, match="no 'more' data"):
        task(tiny_data).load_dataset("more")
    with pytest.raises(KeyError, match="not loaded"):
        task(tiny_data).dataset("train")
