"""Command lines and YAML files, through the plug-ins that pyseq ships."""

from __future__ import annotations

import pytest

from pyseq.cli.plugins import load_plugins
from pyseq.config.config import Config, config_from_args, config_from_dict
from pyseq.config.parser import get_eval_lm_parser, get_generation_parser, get_training_parser, parse_args_and_arch
from pyseq.config.unsupported import UNSUPPORTED
from pyseq.errors import ConfigError

load_plugins()
TRAIN = ["data", "--arch", "transformer_iwslt_de_en", "--optimizer", "adam", "--max-tokens", "4096"]


def config(*argv: str) -> Config:
    return config_from_args(parse_args_and_arch(get_training_parser(), [*TRAIN, *argv]))


def test_flags_beat_the_architecture_and_the_architecture_the_default():
    cfg = config("--encoder-layers", "2")
    assert (cfg.model.encoder_layers, cfg.model.decoder_layers) == (2, 6)
    assert (cfg.model.encoder_ffn_embed_dim, cfg.model.encoder_attention_heads) == (1024, 4)
    assert cfg.model._name == "transformer_iwslt_de_en"


def test_validation_budgets_follow_training_unless_given():
    assert config().dataset.max_tokens_valid == 4096
    assert config("--max-tokens-valid", "100").dataset.max_tokens_valid == 100
    assert config("--max-sentences", "8").dataset.batch_size_valid == 8


def test_references_between_groups_are_resolved():
    cfg = config("--lr", "0.005", "--sentence-avg", "--lr-scheduler", "inverse_sqrt")
    assert cfg.optimizer.lr == [0.005] == cfg.lr_scheduler.lr
    assert cfg.criterion.sentence_avg is True
    assert cfg.task.train_subset == "train"


def test_legacy_store_false_flag_turns_left_padding_off():
    assert config().task.left_pad_source is True
    assert config("--left-pad-source").task.left_pad_source is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-tokenz", "1"], "unknown flag --max-tokenz. Did you mean '--max-tokens"),
        (["--fp16"], "--fp16 is not carried yet: use --bf16"),
        (["--tpu"], "--tpu is not carried"),
        (["--arch", "transformer_iwslt"], "unknown architecture 'transformer_iwslt'. Did you mean"),
        (["--criterion", "cross_entrop"], "unknown criterion 'cross_entrop'. Did you mean 'cross_entropy'"),
        (["--optimizer", "adamm"], "unknown optimizer 'adamm'. Did you mean 'adam'"),
        (["--task", "translate"], "unknown task 'translate'. Did you mean 'translation'"),
        (["--max-tokens", "many"], "--max-tokens: invalid int value: 'many'"),
        (["--update-freq", "a"], "is not a list of int"),
        (["--config", "/no/such/file.yaml"], "/no/such/file.yaml"),
    ],
)
def test_what_is_wrong_is_said(argv, message):
    with pytest.raises(ConfigError) as error:
        config(*argv)
    assert message in str(error.value)


def test_no_carried_flag_is_called_unsupported():
    for parser in (get_training_parser(), get_generation_parser(), get_eval_lm_parser()):
        assert not set(parser.flags()) & set(UNSUPPORTED)


def test_help_shows_the_chosen_plugins_options(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args_and_arch(get_training_parser(), ["-a", "transformer", "--lr-scheduler", "inverse_sqrt", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--encoder-layers" in shown and "--warmup-updates" in shown
    assert "--adam-betas" not in shown


def test_yaml_flat_with_flags_winning(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("max-tokens: 100\nlr: [0.1, 0.2]\noptimizer: adam\nadam_betas: (0.9, 0.98)\narch: transformer\n"
                    "encoder_layers: 3\nleft_pad_source: false\nsentence-avg: true\n")  # fmt: skip
    args = ["data", "--config", str(path)]
    cfg = config_from_args(parse_args_and_arch(get_training_parser(), args))
    assert cfg.dataset.max_tokens == 100 and cfg.optimization.lr == [0.1, 0.2] == cfg.optimizer.lr
    assert (cfg.optimizer._name, cfg.optimizer.adam_betas) == ("adam", "(0.9, 0.98)")
    assert (cfg.model.encoder_layers, cfg.model.decoder_layers) == (3, 6)
    assert cfg.task.left_pad_source is False and cfg.optimization.sentence_avg is True
    args += ["--max-tokens", "7", "--arch", "transformer_tiny"]
    over = config_from_args(parse_args_and_arch(get_training_parser(), args))
    assert (over.dataset.max_tokens, over.model.encoder_embed_dim, over.model.encoder_layers) == (7, 64, 3)


HYDRA = """# @package _group_
task:
  _name: language_modeling
  data: ???
  tokens_per_sample: 512
model: {_name: transformer_lm_gpt}
criterion: {_name: cross_entropy}
optimizer: {_name: adam, adam_betas: "(0.9,0.98)", weight_decay: 0.01}
lr_scheduler: {_name: inverse_sqrt, warmup_updates: 4000}
optimization: {max_update: 50000, lr: [0.0005], clip_norm: 0.0, update_freq: [16]}
dataset: {max_tokens: 2048, ignore_unused_valid_subsets: true}
common: {log_format: json}
checkpoint: {save_dir: elsewhere}
"""


def test_hydra_style_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(HYDRA)
    cfg = config_from_args(parse_args_and_arch(get_training_parser(), ["bin", "--config", str(path)]))
    assert (cfg.task._name, cfg.task.data, cfg.task.tokens_per_sample) == ("language_modeling", "bin", 512)
    assert (cfg.model._name, cfg.model.decoder_layers) == ("transformer_lm_gpt", 12)
    assert (cfg.optimizer.weight_decay, cfg.lr_scheduler.warmup_updates) == (0.01, 4000)
    assert (cfg.optimization.update_freq, cfg.optimization.lr) == ([16], [0.0005])
    assert cfg.checkpoint.save_dir == "elsewhere"


def test_yaml_mandatory_value_must_be_given(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(HYDRA)
    with pytest.raises(ConfigError, match="data"):
        parse_args_and_arch(get_training_parser(), ["--config", str(path)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_tokenz: 3", "max_tokenz"),
        ("log_format: xml", "'xml' is not one of"),
        ("max_tokens: many", "max_tokens"),
        ("- 1", "must be a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_yaml_mistakes_are_named(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        config("--config", str(path))
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("task", ["translation", "language_modeling"])
def test_printed_config_reads_back_as_the_same(tmp_path, task):
    extra = ["--arch", "transformer_lm_gpt", "--task", task] if task == "language_modeling" else ["--task", task]
    argv = [*TRAIN, *extra, "--lr", "0.1,0.2", "--adam-betas", "(0.9, 0.98)", "--dropout", "0.3", "--seed", "7"]
    args = parse_args_and_arch(get_training_parser(), argv)
    path = tmp_path / "printed.yaml"
    path.write_text(config_from_args(args).to_yaml(args))
    again = parse_args_and_arch(get_training_parser(), ["--config", str(path)])
    assert config_from_args(again).to_dict().keys() == config_from_args(args).to_dict().keys()
    assert config_from_args(again).to_yaml(again) == path.read_text()
    assert config_from_args(again).optimizer == config_from_args(args).optimizer


def test_one_file_may_serve_several_commands(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("generation: {beam: 7}\ndataset: {max_tokens: 11}\n")
    train = parse_args_and_arch(get_training_parser(), [*TRAIN[:-2], "--config", str(path)])
    generate = parse_args_and_arch(get_generation_parser(), ["data", "--config", str(path)])
    assert train.max_tokens == generate.max_tokens == 11
    assert generate.beam == 7 and not hasattr(train, "beam")


def test_checkpoint_dict_reads_back():
    cfg = config("--lr", "0.1", "--label-smoothing", "0.1", "--criterion", "label_smoothed_cross_entropy")
    again = config_from_dict(cfg.to_dict())
    assert again.to_dict().keys() == cfg.to_dict().keys()
    assert again.criterion == cfg.criterion and again.optimizer == cfg.optimizer and again.dataset == cfg.dataset
    assert vars(again.model) == vars(cfg.model)
