"""Plug-ins that import fairseq run as they are: through the commands, from data to output."""

from __future__ import annotations

import json
import logging
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyseq import compat
from pyseq.cli import generate, preprocess, train
from pyseq.errors import ConfigError
from pyseq.training.checkpoint_file import load_checkpoint_file

pytestmark = pytest.mark.skipif(not compat.install(), reason="the real fairseq is installed")
REPOSITORY = Path(compat.__file__).parents[2]

ARCHITECTURE = """
    from {package}.models import register_model_architecture
    from {package}.models.transformer import transformer_vaswani_wmt_en_de_big

    @register_model_architecture("transformer", "{name}")
    def my_transformer(args):
        args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 16)
        args.encoder_ffn_embed_dim = getattr(args, "encoder_ffn_embed_dim", 32)
        args.encoder_layers = getattr(args, "encoder_layers", 1)
        args.encoder_attention_heads = getattr(args, "encoder_attention_heads", 2)
        args.decoder_embed_dim = getattr(args, "decoder_embed_dim", 16)
        args.decoder_ffn_embed_dim = getattr(args, "decoder_ffn_embed_dim", 32)
        args.decoder_layers = getattr(args, "decoder_layers", 1)
        args.decoder_attention_heads = getattr(args, "decoder_attention_heads", 2)
        transformer_vaswani_wmt_en_de_big(args)
"""

LSTM = """
    import torch
    import torch.nn as nn
    from fairseq import utils
    from fairseq.models import (
        FairseqDecoder, FairseqEncoder, FairseqEncoderDecoderModel, FairseqIncrementalDecoder, register_model,
        register_model_architecture,
    )

    class PlainEncoder(FairseqEncoder):
        def __init__(self, args, dictionary, embed_dim, hidden_dim):
            super().__init__(dictionary)
            self.args = args
            self.embed_tokens = nn.Embedding(len(dictionary), embed_dim, padding_idx=dictionary.pad())
            self.lstm = nn.LSTM(embed_dim, hidden_dim, batch_first=True)

        def forward(self, src_tokens, src_lengths):
            if self.args.left_pad_source:
                src_tokens = utils.convert_padding_direction(
                    src_tokens, padding_idx=self.dictionary.pad(), left_to_right=True
                )
            # The lengths come in descending order, which is what this asks for.
            packed = nn.utils.rnn.pack_padded_sequence(self.embed_tokens(src_tokens), src_lengths, batch_first=True)
            _, (hidden, _) = self.lstm(packed)
            return hidden.squeeze(0)

        def reorder_encoder_out(self, encoder_out, new_order):
            return encoder_out.index_select(0, new_order)

    class PlainDecoder(FairseqDecoder):
        def __init__(self, dictionary, encoder_hidden_dim, embed_dim, hidden_dim):
            super().__init__(dictionary)
            self.embed_tokens = nn.Embedding(len(dictionary), embed_dim, padding_idx=dictionary.pad())
            self.lstm = nn.LSTM(encoder_hidden_dim + embed_dim, hidden_dim, batch_first=True)
            self.output_projection = nn.Linear(hidden_dim, len(dictionary))

        def run(self, tokens, encoder_out, state):
            x = self.embed_tokens(tokens)
            x = torch.cat([x, encoder_out.unsqueeze(1).expand(-1, x.size(1), -1)], dim=2)
            output, state = self.lstm(x, state)
            return self.output_projection(output), state

        def forward(self, prev_output_tokens, encoder_out):
            start = (encoder_out.unsqueeze(0), torch.zeros_like(encoder_out).unsqueeze(0))
            return self.run(prev_output_tokens, encoder_out, start)[0], None

    class StepwiseDecoder(PlainDecoder, FairseqIncrementalDecoder):
        def forward(self, prev_output_tokens, encoder_out, incremental_state=None):
            if incremental_state is None:
                return PlainDecoder.forward(self, prev_output_tokens, encoder_out)
            state = utils.get_incremental_state(self, incremental_state, "prev_state")
            if state is None:
                state = (encoder_out.unsqueeze(0), torch.zeros_like(encoder_out).unsqueeze(0))
            logits, state = self.run(prev_output_tokens[:, -1:], encoder_out, state)
            utils.set_incremental_state(self, incremental_state, "prev_state", state)
            return logits, None

        def reorder_incremental_state(self, incremental_state, new_order):
            state = utils.get_incremental_state(self, incremental_state, "prev_state")
            reordered = tuple(part.index_select(1, new_order) for part in state)
            utils.set_incremental_state(self, incremental_state, "prev_state", reordered)

    @register_model("{name}")
    class SimpleLSTM(FairseqEncoderDecoderModel):
        @staticmethod
        def add_args(parser):
            parser.add_argument("--encoder-hidden-dim", type=int, metavar="N", help="size of the encoder")
            parser.add_argument("--decoder-hidden-dim", type=int, metavar="N", help="size of the decoder")
            parser.add_argument("--stepwise", action="store_true", help="decode incrementally")

        @classmethod
        def build_model(cls, args, task):
            encoder = PlainEncoder(args, task.source_dictionary, 16, args.encoder_hidden_dim)
            kind = StepwiseDecoder if getattr(args, "stepwise", False) else PlainDecoder
            decoder = kind(task.target_dictionary, args.encoder_hidden_dim, 16, args.decoder_hidden_dim)
            return cls(encoder, decoder)

    @register_model_architecture("{name}", "{name}_arch")
    def simple_lstm(args):
        args.encoder_hidden_dim = getattr(args, "encoder_hidden_dim", 32)
        args.decoder_hidden_dim = getattr(args, "decoder_hidden_dim", 32)
"""

CLASSIFIER = {
    "__init__.py": "",
    "models/rnn.py": """
        import torch
        import torch.nn as nn
        from fairseq.models import BaseFairseqModel, register_model, register_model_architecture

        @register_model("rnn_classifier")
        class RNNClassifier(BaseFairseqModel):
            @staticmethod
            def add_args(parser):
                parser.add_argument("--hidden-dim", type=int, metavar="N", help="size of the state")

            @classmethod
            def build_model(cls, args, task):
                return cls(args.hidden_dim, len(task.source_dictionary), len(task.target_dictionary))

            def __init__(self, hidden_dim, n_in, n_out):
                super().__init__()
                self.embed = nn.Embedding(n_in, hidden_dim)
                self.rnn = nn.RNN(hidden_dim, hidden_dim, batch_first=True)
                self.out = nn.Linear(hidden_dim, n_out)

            def forward(self, src_tokens, src_lengths):
                states, _ = self.rnn(self.embed(src_tokens))
                return self.out(states[torch.arange(len(src_tokens)), src_lengths - 1])

        @register_model_architecture("rnn_classifier", "char_rnn")
        def char_rnn(args):
            args.hidden_dim = getattr(args, "hidden_dim", 32)
    """,
    "tasks/names.py": """
        import os
        import torch
        from fairseq.data import Dictionary, LanguagePairDataset
        from fairseq.tasks import LegacyFairseqTask, register_task

        @register_task("char_classification")
        class CharClassification(LegacyFairseqTask):
            @staticmethod
            def add_args(parser):
                parser.add_argument("data", metavar="FILE", help="folder of the data")
                parser.add_argument("--max-positions", default=1024, type=int, help="longest input")

            @classmethod
            def setup_task(cls, args, **kwargs):
                inputs = Dictionary.load(os.path.join(args.data, "dict.input.txt"))
                labels = Dictionary.load(os.path.join(args.data, "dict.label.txt"))
                return cls(args, inputs, labels)

            def __init__(self, args, inputs, labels):
                super().__init__(args)
                self.inputs, self.labels = inputs, labels

            def load_dataset(self, split, **kwargs):
                prefix = os.path.join(self.args.data, f"{split}.input-label")
                sentences, lengths, labels = [], [], []
                for line in open(prefix + ".input", encoding="utf-8"):
                    tokens = self.inputs.encode_line(line.strip(), add_if_not_exist=False)
                    sentences.append(tokens)
                    lengths.append(tokens.numel())
                for line in open(prefix + ".label", encoding="utf-8"):
                    labels.append(torch.LongTensor([self.labels.add_symbol(line.strip())]))
                self.datasets[split] = LanguagePairDataset(
                    src=sentences, src_sizes=lengths, src_dict=self.inputs,
                    tgt=labels, tgt_sizes=torch.ones(len(labels)), tgt_dict=self.labels,
                    left_pad_source=False, input_feeding=False,
                )

            def max_positions(self):
                return (self.args.max_positions, 1)

            @property
            def source_dictionary(self):
                return self.inputs

            @property
            def target_dictionary(self):
                return self.labels
    """,
}

EVALUATE = """
    from fairseq import checkpoint_utils, data, options, tasks

    parser = options.get_generation_parser(default_task="char_classification")
    args = options.parse_args_and_arch(parser)
    task = tasks.setup_task(args)
    models, _ = checkpoint_utils.load_model_ensemble([args.path], task=task)
    model = models[0]
    model.eval()
    for name in ("a b a", "z y z x"):
        tokens = task.source_dictionary.encode_line(name, add_if_not_exist=False)
        batch = data.language_pair_dataset.collate(
            samples=[{"id": -1, "source": tokens}], pad_idx=task.source_dictionary.pad(),
            eos_idx=task.source_dictionary.eos(), left_pad_source=False, input_feeding=False,
        )
        scores, best = model(**batch["net_input"])[0].topk(k=1)
        print(f"{name}: {task.target_dictionary.string([best[0]])}")
"""

MODERN = """
    from dataclasses import dataclass, field
    from typing import List, Optional

    import torch
    from fairseq import metrics, utils
    from fairseq.criterions import FairseqCriterion, register_criterion
    from fairseq.dataclass import ChoiceEnum, FairseqDataclass
    from fairseq.optim import FairseqOptimizer, register_optimizer
    from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
    from fairseq.tasks import register_task
    from fairseq.tasks.translation import TranslationConfig, TranslationTask
    from omegaconf import II

    @dataclass
    class PowerConfig(FairseqDataclass):
        power: float = field(default=1.0, metadata={"help": "exponent of the loss"})
        scale_by: ChoiceEnum(["one", "two"]) = field(default="one", metadata={"help": "factor"})
        sentence_avg: bool = II("optimization.sentence_avg")

    @register_criterion("compat_power", dataclass=PowerConfig)
    class Power(FairseqCriterion):
        def __init__(self, task, power, scale_by, sentence_avg):
            super().__init__(task)
            self.power, self.factor, self.sentence_avg = power, {"one": 1, "two": 2}[scale_by], sentence_avg

        def forward(self, model, sample, reduce=True):
            net_output = model(**sample["net_input"])
            lprobs = model.get_normalized_probs(net_output, log_probs=True)
            target = model.get_targets(sample, net_output).view(-1)
            loss = -lprobs.view(-1, lprobs.size(-1)).gather(1, target.unsqueeze(1))[target.ne(self.padding_idx)]
            loss = self.factor * loss.pow(self.power).sum()
            size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
            log = {"loss": loss.data, "ntokens": sample["ntokens"], "sample_size": size}
            log["nsentences"] = len(sample["target"])
            return loss, size, log

        @classmethod
        def reduce_metrics(cls, logging_outputs):
            total = utils.item(sum(log["loss"] for log in logging_outputs))
            size = sum(log["sample_size"] for log in logging_outputs)
            metrics.log_scalar("loss", total / size, size, round=3)
            metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["loss"].avg))

    @dataclass
    class PlainConfig(FairseqDataclass):
        lr: List[float] = II("optimization.lr")

    @register_optimizer("compat_plain", dataclass=PlainConfig)
    class Plain(FairseqOptimizer):
        def __init__(self, cfg, params):
            super().__init__(cfg)
            self._optimizer = torch.optim.Adam(params, **self.optimizer_config)

        @property
        def optimizer_config(self):
            return {"lr": self.cfg.lr[0]}

    @dataclass
    class HalvingConfig(FairseqDataclass):
        every: Optional[int] = field(default=None, metadata={"help": "updates after which the rate is halved"})
        lr: List[float] = II("optimization.lr")

    @register_lr_scheduler("compat_halving", dataclass=HalvingConfig)
    class Halving(FairseqLRScheduler):
        def step_update(self, num_updates):
            self.optimizer.set_lr(self.cfg.lr[0] * 0.5 ** (num_updates // self.cfg.every))
            return self.optimizer.get_lr()

    @dataclass
    class CountingConfig(TranslationConfig):
        greeting: str = field(default="hello", metadata={"help": "what to log"})

    @register_task("compat_counting", dataclass=CountingConfig)
    class Counting(TranslationTask):
        def reduce_metrics(self, logging_outputs, criterion):
            super().reduce_metrics(logging_outputs, criterion)
            metrics.log_scalar("greeting_length", len(self.cfg.greeting))
"""


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """The commands log to the standard output of the test, which is gone after it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five words, translated one by one."""
    folder = tmp_path_factory.mktemp("tutorials")
    rng = random.Random(0)
    for split, size in (("train", 200), ("valid", 20)):
        sentences = [[rng.randrange(5) for _ in range(rng.randint(1, 3))] for _ in range(size)]
        for language, letter in (("xx", "x"), ("yy", "y")):
            text = "".join(" ".join(f"{letter}{word}" for word in sentence) + "\n" for sentence in sentences)
            (folder / f"{split}.{language}").write_text(text)
    prefixes = ["--trainpref", str(folder / "train"), "--validpref", str(folder / "valid")]
    preprocess.main(["-s", "xx", "-t", "yy", *prefixes, "--destdir", str(folder / "bin"), "--padding-factor", "1"])
    return folder / "bin"


def user_dir(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def run(data: Path, plugin: Path, save_dir: Path, *options: str) -> list[dict[str, Any]]:
    """Train; returns the validation records."""
    train.main([
        str(data), "--user-dir", str(plugin), "--save-dir", str(save_dir), "--max-tokens", "100", "--num-workers", "0",
        "--cpu", "--no-epoch-checkpoints", "--no-progress-bar", *options,
    ])  # fmt: skip
    records = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["tag"] == "valid"]


@pytest.mark.parametrize("package", ["fairseq", "pyseq"])
def test_architecture_of_the_overview(data: Path, tmp_path: Path, package: str) -> None:
    name = f"my_transformer_{package}"
    plugin = user_dir(tmp_path / name, {"__init__.py": ARCHITECTURE.format(package=package, name=name)})
    options = ["-a", name, "--task", "translation", "--optimizer", "adam", "--lr", "0.005", "--max-epoch", "3"]
    records = run(data, plugin, tmp_path / "checkpoints", *options, "--decoder-layers", "2", "--dropout", "0")
    assert records[-1]["loss"] < 0.7 * records[0]["loss"]
    state = load_checkpoint_file(tmp_path / "checkpoints" / "checkpoint_last.pt")
    cfg = state["cfg"]["model"]
    # From the flag, from the function, from the architecture that it calls.
    assert (cfg.decoder_layers, cfg.encoder_layers, cfg.attention_dropout) == (2, 1, 0.0) and cfg.dropout == 0
    assert {key for key in state["model"] if key.startswith("decoder.layers.1.")}


@pytest.mark.parametrize("stepwise", [True, False])
def test_simple_lstm(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stepwise: bool) -> None:
    name = f"tutorial_lstm_{int(stepwise)}"
    plugin = user_dir(tmp_path / name, {"__init__.py": LSTM.replace("{name}", name)})
    options = ["--arch", f"{name}_arch", "--optimizer", "adam", "--lr", "0.005", "--lr-shrink", "0.5"]
    if stepwise:
        options.append("--stepwise")
    records = run(data, plugin, tmp_path / "checkpoints", *options, "--max-epoch", "30")
    assert records[-1]["loss"] < 0.3 * records[0]["loss"]
    capsys.readouterr()
    generate.main([
        str(data), "--user-dir", str(plugin), "--path", str(tmp_path / "checkpoints" / "checkpoint_best.pt"),
        "--gen-subset", "valid", "--beam", "3", "--max-len-b", "8", "--cpu", "--num-workers", "0", "--max-tokens", "99",
    ])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    references = dict(m.groups() for line in lines if (m := re.match(r"T-(\d+)\t(.*)", line)))
    outputs = dict(m.groups() for line in lines if (m := re.match(r"H-(\d+)\t\S+\t(.*)", line)))
    assert len(references) == 20
    assert sum(outputs[i] == references[i] for i in references) >= 15


def test_character_rnn_classifier(tmp_path: Path) -> None:
    rng = random.Random(0)
    for split, size in (("train", 120), ("valid", 20)):
        labels = [rng.choice(["Early", "Late"]) for _ in range(size)]
        letters = {"Early": "abcdef", "Late": "uvwxyz"}
        names = [" ".join(rng.choice(letters[label]) for _ in range(rng.randint(2, 6))) for label in labels]
        (tmp_path / f"{split}.input").write_text("\n".join(names) + "\n")
        (tmp_path / f"{split}.label").write_text("\n".join(labels) + "\n")
    data = tmp_path / "bin"
    preprocess.main([
        "--source-lang", "input", "--target-lang", "label", "--trainpref", str(tmp_path / "train"),
        "--validpref", str(tmp_path / "valid"), "--destdir", str(data), "--dataset-impl", "raw",
    ])  # fmt: skip
    plugin = user_dir(tmp_path / "char_rnn_tutorial", CLASSIFIER)
    options = ["--task", "char_classification", "--arch", "char_rnn", "--optimizer", "adam", "--lr", "0.005"]
    records = run(data, plugin, tmp_path / "checkpoints", *options, "--max-epoch", "6")
    assert records[-1]["loss"] < 0.3 * records[0]["loss"]
    (tmp_path / "evaluate.py").write_text(textwrap.dedent(EVALUATE))
    done = subprocess.run(
        [sys.executable, "-m", "pyseq.compat", str(tmp_path / "evaluate.py"), str(data), "--user-dir", str(plugin),
         "--path", str(tmp_path / "checkpoints" / "checkpoint_best.pt")],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["a b a: Early", "z y z x: Late"]


def test_dataclass_plugins_of_four_kinds(data: Path, tmp_path: Path) -> None:
    plugin = user_dir(tmp_path / "modern_plugins", {"__init__.py": MODERN})
    options = [
        "--task", "compat_counting", "--greeting", "good day", "--criterion", "compat_power", "--power", "1.5",
        "--scale-by", "two", "--optimizer", "compat_plain", "--lr", "0.01", "--lr-scheduler", "compat_halving",
        "--every", "10", "--arch", "transformer_tiny", "--dropout", "0", "--max-update", "25",
    ]  # fmt: skip
    records = run(data, plugin, tmp_path / "checkpoints", *options)
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    assert records[-1]["greeting_length"] == 8
    assert records[-1]["ppl"] == pytest.approx(2 ** records[-1]["loss"], rel=0.02)
    state = load_checkpoint_file(tmp_path / "checkpoints" / "checkpoint_last.pt")
    assert state["cfg"]["criterion"]["scale_by"] == "two" and state["cfg"]["lr_scheduler"]["every"] == 10
    assert state["last_optimizer_state"]["param_groups"][0]["lr"] == pytest.approx(0.01 / 4)
    with pytest.raises(ConfigError, match="scale-by"):
        run(data, plugin, tmp_path / "checkpoints", *options, "--scale-by", "three")


def test_what_is_missing_is_told_with_the_users_line(data: Path, tmp_path: Path) -> None:
    plugin = user_dir(tmp_path / "asks_too_much", {"__init__.py": "\nfrom fairseq.models.bart import BARTModel\n"})
    with pytest.raises(ConfigError) as error:
        run(data, plugin, tmp_path / "checkpoints", "--arch", "bart_base", "--optimizer", "adam")
    message = str(error.value)
    assert f'File "{plugin}/__init__.py", line 2' in message and "from fairseq.models.bart import BARTModel" in message
    assert "fairseq.models has no 'bart' in pyseq" in message
    assert "pyseq/compat" not in message
