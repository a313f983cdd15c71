"""``pyseq-validate``: the validation loss of a trained model.

pyseq-validate DATA --path checkpoints/checkpoint_best.pt --task translation --valid-subset valid --max-tokens 4096
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Sequence

import torch

from pyseq import metrics, utils
from pyseq.cli.compiling import compile_for_inference
from pyseq.cli.options import read_options
from pyseq.cli.run import run
from pyseq.config.flags import literal_dict
from pyseq.config.parser import Parser, get_validation_parser
from pyseq.errors import ConfigError
from pyseq.tasks import setup_task
from pyseq.training.checkpoint import load_model_ensemble_and_task
from pyseq.training.progress import progress_bar
from pyseq.training.validation import subset_batches

logger = logging.getLogger("pyseq.validate")


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``pyseq-validate`` with ``argv`` (default: the process's own arguments).

    Task and criterion are the checkpoint's own; the data folder and the batch sizes are the command line's.

    Raises:
        UserError: something in the options, the data or a checkpoint is wrong.
    """
    options = read_options(validation_parser, argv)
    if options is None:
        return
    cfg, args = options
    given = list(sys.argv[1:] if argv is None else argv)
    if not cfg.common_eval.path:
        raise ConfigError("--path is required: the checkpoint to validate")
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        cfg.dataset.max_tokens_valid = 12000
    metrics.reset()
    overrides = literal_dict(cfg.common_eval.model_overrides)
    if args.data:
        overrides["data"] = args.data
    models, saved, task = load_model_ensemble_and_task(
        utils.split_paths(cfg.common_eval.path), overrides, unsafe=cfg.checkpoint.unsafe_load
    )
    if args.task and "--task" in given:
        task = setup_task(cfg.task)
    model = models[0]
    device = torch.device("cuda" if torch.cuda.is_available() and not cfg.common.cpu else "cpu")
    criterion = task.build_criterion(saved.criterion).to(device).eval()
    model.to(device).eval()
    if cfg.common.bf16:
        model.bfloat16()
    if cfg.common.compile:
        compile_for_inference([model])
    for subset in cfg.dataset.valid_subset.split(","):
        task.load_dataset(subset, combine=bool(cfg.dataset.combine_valid_subsets), epoch=1)
        progress = progress_bar(
            subset_batches(cfg, task, model, subset),
            log_format=cfg.common.log_format,
            log_interval=cfg.common.log_interval,
            prefix=f"valid on '{subset}' subset",
            default_log_format="simple" if cfg.common.no_progress_bar else "tqdm",
        )
        with metrics.aggregate(new_root=True) as aggregator:
            for i, sample in enumerate(itertools.islice(progress, cfg.dataset.max_valid_steps)):
                _, _, output = task.valid_step(utils.move_to_device(sample, device), model, criterion)
                task.reduce_metrics([output], criterion)
                progress.log(aggregator.get_smoothed_values(), step=i + 1)
        progress.print(aggregator.get_smoothed_values(), tag=subset, step=0)


def validation_parser() -> Parser:
    parser = get_validation_parser()
    parser.add_argument("data", nargs="?", help="folder with the binarised data (default: the one trained on)")
    return parser


def cli_main() -> None:
    run(main)


if __name__ == "__main__":
    cli_main()
