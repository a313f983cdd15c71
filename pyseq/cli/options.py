"""From a command line to the options of a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from pyseq.cli.plugins import load_plugins, set_up_logging
from pyseq.config.config import Config, config_from_args
from pyseq.config.parser import Parser, parse_args_and_arch


def read_options(
    make_parser: Callable[[], Parser], argv: Sequence[str] | None
) -> tuple[Config, argparse.Namespace] | None:
    """The options that ``argv`` (default: the process's own arguments) gives, and the flat namespace they came from.

    Loads the plug-ins, which ``make_parser`` needs to know, and sets up the log. None where ``--print-config`` asked to
    see the options, which it then has.

    Raises:
        ConfigError, SystemExit: the command line is wrong.
    """
    load_plugins()
    args = parse_args_and_arch(make_parser(), argv)
    cfg = config_from_args(args)
    if args.print_config:
        print(cfg.to_yaml(args), end="")
        return None
    set_up_logging()
    return cfg, args
