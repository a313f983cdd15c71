"""pyseq-average: a checkpoint whose weights are the mean of those of several.

Run as::

    pyseq-average --inputs checkpoints --num-epoch-checkpoints 10 --output checkpoints/average.pt
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pyseq.cli.run import run
from pyseq.config.parser import Parser
from pyseq.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

EPOCH_CHECKPOINT = re.compile(r"checkpoint(\d+)\.pt")
UPDATE_CHECKPOINT = re.compile(r"checkpoint_\d+_(\d+)\.pt")


def get_parser() -> argparse.ArgumentParser:
    parser = Parser("pyseq-average", description="Average the weights of checkpoints.", add_help=True)
    parser.add_argument("--inputs", required=True, nargs="+", metavar="PATH", help="checkpoints, or the folder of them")
    parser.add_argument("--output", required=True, metavar="FILE", help="the checkpoint to write")
    last = parser.add_mutually_exclusive_group()
    last.add_argument(
        "--num-epoch-checkpoints", type=int, metavar="N", help="the last N of checkpointE.pt in the folder --inputs"
    )
    last.add_argument(
        "--num-update-checkpoints", type=int, metavar="N", help="the last N of checkpoint_E_U.pt in the folder --inputs"
    )
    parser.add_argument(
        "--checkpoint-upper-bound", type=int, metavar="N", help="of those, none after this epoch or update"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the average. What else a checkpoint holds is taken from the first input: the newest, if N were asked for.

    Raises:
        ConfigError: the options do not fit together.
        CheckpointError: too few checkpoints, one that cannot be read, or weights that differ in name or shape.
    """
    from pyseq.training.checkpoint_file import load_checkpoint_file, save_checkpoint_file

    args = get_parser().parse_args(argv)
    paths = chosen_checkpoints(args)
    print(f"averaging {', '.join(paths)}", flush=True)
    average = average_checkpoints((path, load_checkpoint_file(path)) for path in paths)
    save_checkpoint_file(average, args.output)
    print(f"wrote {args.output}, the average of {len(paths)} checkpoints")


def chosen_checkpoints(args: argparse.Namespace) -> list[str]:
    """The files to average. Raises ConfigError or CheckpointError (see :func:`main`)."""
    if args.num_epoch_checkpoints is not None:
        flag, count, pattern = "--num-epoch-checkpoints", args.num_epoch_checkpoints, EPOCH_CHECKPOINT
    elif args.num_update_checkpoints is not None:
        flag, count, pattern = "--num-update-checkpoints", args.num_update_checkpoints, UPDATE_CHECKPOINT
    elif args.checkpoint_upper_bound is not None:
        raise ConfigError("--checkpoint-upper-bound needs --num-epoch-checkpoints or --num-update-checkpoints")
    else:
        for path in args.inputs:
            if os.path.isdir(path):
                raise ConfigError(f"{path} is a folder: say which of its checkpoints, with --num-epoch-checkpoints N")
        return list(args.inputs)
    if count < 1:
        raise ConfigError(f"{flag} {count}: expected at least 1")
    if len(args.inputs) != 1 or not os.path.isdir(args.inputs[0]):
        raise ConfigError(f"{flag} needs one folder as --inputs, not {' '.join(args.inputs)}")
    return last_checkpoints(args.inputs[0], pattern, count, args.checkpoint_upper_bound)


def last_checkpoints(folder: str, pattern: re.Pattern[str], count: int, upper_bound: int | None = None) -> list[str]:
    """The ``count`` files in ``folder`` whose names match ``pattern``, with the greatest numbers, greatest first.

    Raises:
        CheckpointError: there are fewer than ``count``.
    """
    numbered = [(int(match[1]), name) for name in os.listdir(folder) if (match := pattern.fullmatch(name))]
    found = sorted((pair for pair in numbered if upper_bound is None or pair[0] <= upper_bound), reverse=True)
    if len(found) < count:
        bound = "" if upper_bound is None else f" up to {upper_bound}"
        raise CheckpointError(f"{folder} has {len(found)} checkpoints like {_example(pattern)}{bound}, not {count}")
    return [os.path.join(folder, name) for _, name in found[:count]]


def _example(pattern: re.Pattern[str]) -> str:
    return "checkpoint7.pt" if pattern is EPOCH_CHECKPOINT else "checkpoint_7_5000.pt"


def average_checkpoints(checkpoints: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """One checkpoint out of several, read one at a time.

    Floating-point weights are summed in fp64 and their means stored in fp32 (fp64 stays fp64). Counters and flags
    (integers, booleans) have no mean: the first checkpoint's stay. Weights that are one tensor under several names in
    every checkpoint are one in the result.

    Args:
        checkpoints: pairs of a path, for messages, and a checkpoint with a ``model``.

    Returns:
        The first checkpoint, with its ``model`` replaced.

    Raises:
        CheckpointError: no ``model``, or weights that differ from the first one's in name or shape.
    """
    result: dict[str, Any] = {}
    sums: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    count, first_path = 0, ""
    for path, checkpoint in checkpoints:
        if not isinstance(checkpoint.get("model"), dict):
            raise CheckpointError(f"{path} holds no model")
        weights = checkpoint["model"]
        if not result:
            result, first_path, shared = checkpoint, path, first_names(weights)
            sums = {name: w.double() if w.is_floating_point() else w for name, w in weights.items()}
        else:
            check_same_weights(result["model"], first_path, weights, path)
            shared = shared if first_names(weights) == shared else {}
            for name, total in sums.items():
                if total.is_floating_point():
                    sums[name] = total + weights[name].double()
        count += 1
    model = type(result["model"])()
    for name, weight in result["model"].items():
        same = shared.get(name, name)
        model[name] = model[same] if same in model else mean(sums[name], count, weight)
    return {**result, "model": model}


def mean(total: Tensor, count: int, like: Tensor) -> Tensor:
    import torch

    if not like.is_floating_point():
        return like
    return (total / count).to(torch.float64 if like.dtype == torch.float64 else torch.float32)


def first_names(weights: dict[str, Tensor]) -> dict[str, str]:
    """For each name, the first name under which the same memory appears."""
    seen: dict[tuple[Any, ...], str] = {}
    return {
        name: seen.setdefault((w.data_ptr(), w.dtype, w.shape, w.stride()), name) if w.numel() else name
        for name, w in weights.items()
    }


def check_same_weights(expected: dict[str, Tensor], expected_path: str, found: dict[str, Tensor], path: str) -> None:
    """Raise CheckpointError if the two differ in a name, a shape, or in what is an integer."""
    missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or extra:
        differences = [f"lacks {n}" for n in sorted(missing)] + [f"has {n} too" for n in sorted(extra)]
        more = f", and {len(differences) - 3} more differences" if len(differences) > 3 else ""
        raise CheckpointError(f"{path} is of another model than {expected_path}: {', '.join(differences[:3])}{more}")
    for name, weight in expected.items():
        if weight.shape != found[name].shape or weight.is_floating_point() != found[name].is_floating_point():
            raise CheckpointError(
                f"{path} is of another model than {expected_path}: {name} is {found[name].dtype} "
                f"{tuple(found[name].shape)} here and {weight.dtype} {tuple(weight.shape)} there"
            )


def cli_main() -> None:
    run(main)
