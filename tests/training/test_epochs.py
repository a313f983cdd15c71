from __future__ import annotations

from pyseq.cli import train
from pyseq.cli.plugins import load_plugins
from pyseq.config.config import config_from_args
from pyseq.config.parser import get_training_parser, parse_args_and_arch
from pyseq.training.epochs import Epochs
from pyseq.training.validation import subset_batches


def test_packed_budgets_count_real_tokens(train_argv, tmp_path):
    load_plugins()
    argv = [*train_argv, "--save-dir", str(tmp_path), "--max-tokens", "1000", "--max-tokens-valid", "300",
            "--required-batch-size-multiple", "1"]  # fmt: skip

    def batches(*more):
        cfg = config_from_args(parse_args_and_arch(get_training_parser(), [*argv, *more]))
        trainer = train.build(cfg)
        epoch = next(iter(Epochs(cfg, trainer.task, trainer.model)))
        training = [batch for micro_batches in epoch.updates for batch in micro_batches]
        return training, list(subset_batches(cfg, trainer.task, trainer.model, "valid"))

    for packed, padded, limit in zip(batches("--packed"), batches(), (1000, 300)):
        assert len(packed) < len(padded)
        real = [max(int(b["net_input"]["src_lengths"].sum()), b["ntokens"]) for b in packed]
        assert max(real) <= limit
        assert any(max(b["net_input"]["src_tokens"].numel(), b["target"].numel()) > limit for b in packed)
        ids = [sorted(i for b in side for i in b["id"].tolist()) for side in (packed, padded)]
        assert ids[0] == ids[1]
