"""Command lines: which options a command has, and the two passes that read them.

The first pass finds out which plug-ins are chosen (``--user-dir``, ``--arch``, ``--task``, ``--criterion``, ...); their
options are added; the second pass reads everything. At last the architecture fills in what was not given:
flags, then the YAML file, then a plug-in's explicit default, then the architecture, then the dataclass default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pyseq.config import groups, yaml_file
from pyseq.config.flags import add_group_arguments
from pyseq.config.group import ConfigGroup
from pyseq.config.unsupported import explain
from pyseq.errors import ConfigError, nearest
from pyseq.registry import REGISTRIES, Entry, Registry, architecture
from pyseq.user_dir import import_user_dir


class Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviations, whose errors are :class:`ConfigError` with the nearest flags."""

    def __init__(self, prog: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("add_help", False)
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(prog=prog, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See {self.prog} --help.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        self.refuse_unknown(unknown)
        return parsed

    def flags(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def refuse_unknown(self, unknown: Sequence[str]) -> None:
        """Raise ConfigError for the first arguments that no option takes."""
        if not unknown:
            return
        messages = []
        for argument in unknown:
            if not argument.startswith("-"):
                continue
            flag = argument.split("=", 1)[0]
            messages.append(explain(flag) or f"unknown flag {flag}. {nearest(flag, self.flags())}".rstrip())
        raise ConfigError("\n".join(messages) or f"unexpected arguments: {' '.join(unknown)}")


# The kinds of plug-in that a flag of the same name chooses, besides --task and --arch.
CHOICES = ("criterion", "tokenizer", "bpe", "optimizer", "lr_scheduler", "scoring")
_CHOOSERS = {"help", "config", "user_dir", "task", "arch", *CHOICES}


def _base_parser(prog: str, default_task: str | None, description: str) -> Parser:
    parser = Parser(prog, description=description)
    run = parser.add_argument_group("run")
    run.add_argument("-h", "--help", action="store_true", help="show this message, with the chosen plug-ins' options")
    run.add_argument("--config", metavar="FILE", help="YAML file with options; flags win over it")
    run.add_argument("--print-config", action="store_true", help="print the resolved options as YAML, and exit")
    _group(parser, "common", groups.CommonConfig)
    plugins = parser.add_argument_group("plug-ins")
    for kind in CHOICES:
        registry = REGISTRIES[kind]
        plugins.add_argument(
            "--" + kind.replace("_", "-"), default=registry.default, metavar="NAME", help=_known(registry)
        )
    plugins.add_argument("--task", default=default_task, metavar="NAME", help=_known(REGISTRIES["task"]))
    return parser


def _known(registry: Registry) -> str:
    return f"one of {', '.join(registry.names())}".replace("%", "%%")


def _group(parser: Parser, title: str, cls: type[ConfigGroup]) -> None:
    add_group_arguments(parser.add_argument_group(title), cls)


def get_training_parser(default_task: str = "translation") -> Parser:
    parser = _base_parser("pyseq-train", default_task, "Train a model.")
    _group(parser, "data set", groups.DatasetConfig)
    _group(parser, "distributed", groups.DistributedConfig)
    model = parser.add_argument_group("model")
    model.add_argument("-a", "--arch", metavar="ARCH", help="model architecture")
    _group(parser, "optimization", groups.OptimizationConfig)
    _group(parser, "checkpoints", groups.CheckpointConfig)
    parser.add_argument_group("run").add_argument(
        "--dry-run", action="store_true", help="build everything, try one batch, say what it takes, and exit"
    )
    return parser


def get_generation_parser(interactive: bool = False, default_task: str = "translation") -> Parser:
    prog = "pyseq-interactive" if interactive else "pyseq-generate"
    parser = _base_parser(prog, default_task, "Translate with a trained model.")
    _group(parser, "data set", groups.DatasetConfig)
    _group(parser, "distributed", groups.DistributedConfig)
    _group(parser, "evaluation", groups.CommonEvalConfig)
    _group(parser, "generation", groups.GenerationConfig)
    _group(parser, "checkpoints", groups.CheckpointConfig)
    if interactive:
        _group(parser, "interactive", groups.InteractiveConfig)
    return parser


def get_eval_lm_parser(default_task: str = "language_modeling") -> Parser:
    parser = _base_parser("pyseq-eval-lm", default_task, "Score text with a language model.")
    _group(parser, "data set", groups.DatasetConfig)
    _group(parser, "distributed", groups.DistributedConfig)
    _group(parser, "evaluation", groups.CommonEvalConfig)
    _group(parser, "language model", groups.EvalLMConfig)
    _group(parser, "checkpoints", groups.CheckpointConfig)
    return parser


def get_validation_parser(default_task: str | None = None) -> Parser:
    parser = _base_parser("pyseq-validate", default_task, "Compute the validation loss of a trained model.")
    _group(parser, "data set", groups.DatasetConfig)
    _group(parser, "distributed", groups.DistributedConfig)
    _group(parser, "evaluation", groups.CommonEvalConfig)
    _group(parser, "checkpoints", groups.CheckpointConfig)
    return parser


def parse_args_and_arch(
    parser: Parser,
    argv: Sequence[str] | None = None,
    parse_known: bool = False,
    modify_parser: Callable[[Parser], None] | None = None,
) -> Any:
    """Read a command line in two passes. ``argv`` None is ``sys.argv[1:]``.

    Returns:
        The flat namespace, filled in by the architecture; with ``parse_known`` also the list of unknown arguments.

    Raises:
        ConfigError: an unknown flag, name or YAML key, a value of the wrong type, a missing argument.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first, _ = _without_required(parser).parse_known_args(argv)
    settings = yaml_file.read_settings(first.config) if first.config else {}
    import_user_dir(first.user_dir or settings.get("user_dir"))
    if modify_parser is not None:
        modify_parser(parser)
    for action in parser._actions:
        if action.dest in settings and not _given(action, argv):
            setattr(first, action.dest, settings[action.dest])
    _add_plugin_arguments(parser, first)
    if modify_parser is not None:
        modify_parser(parser)
    if first.help:
        parser.print_help()
        sys.exit(0)
    yaml_file.apply_settings(parser, settings, first.config)
    args, unknown = parser.parse_known_args(argv)
    if unknown and not parse_known:
        if not getattr(args, "arch", "none of this command's options"):
            raise ConfigError("--arch is required: it says what the model is and which options it has")
        parser.refuse_unknown(unknown)
    _fill_in(parser, args)
    return (args, unknown) if parse_known else args


def _given(action: argparse.Action, argv: Sequence[str]) -> bool:
    return any(a == flag or a.startswith(flag + "=") for a in argv for flag in action.option_strings)


def _without_required(parser: Parser) -> Parser:
    """A parser for the first pass: the same options, none of them required, and no errors for values it cannot know."""
    first = Parser(parser.prog)
    for action in parser._actions:
        if action.option_strings and action.dest in _CHOOSERS:
            kwargs: dict[str, Any] = {"dest": action.dest, "default": action.default}
            if action.nargs == 0:
                kwargs["action"] = "store_true"
            first.add_argument(*action.option_strings, **kwargs)
    return first


def _add_plugin_arguments(parser: Parser, first: argparse.Namespace) -> None:
    """Add the options of every plug-in that the first pass found chosen."""
    if getattr(first, "arch", None):
        chosen = architecture(first.arch)
        # Options that are not given stay out of the namespace: that is how the architecture sees which to fill in.
        group = parser.add_argument_group(
            f"model '{chosen.model_name}' (--arch {first.arch})", argument_default=argparse.SUPPRESS
        )
        _add_own(group, REGISTRIES["model"].entry(chosen.model_name), suppress_defaults=True)
    for kind in ("task", *CHOICES):
        choice = getattr(first, kind, None)
        if choice:
            _add_own(parser.add_argument_group(f"{kind} '{choice}'"), REGISTRIES[kind].entry(choice))


def _add_own(group: Any, entry: Entry, suppress_defaults: bool = False) -> None:
    if entry.group is not None:
        add_group_arguments(group, entry.group, suppress_defaults)
    elif hasattr(entry.cls, "add_args"):
        try:
            entry.cls.add_args(group)
        except argparse.ArgumentError as error:
            raise ConfigError(f"{entry.name} ({entry.where}): {error}") from None


def _fill_in(parser: Parser, args: argparse.Namespace) -> None:
    """What follows from other options: validation budgets, the architecture's own values."""
    if getattr(args, "max_tokens", None) == groups.AUTO and not hasattr(args, "update_freq"):
        raise ConfigError("--max-tokens auto is for training: give a number")
    if getattr(args, "batch_size_valid", 0) is None:
        args.batch_size_valid = args.batch_size
    if getattr(args, "max_tokens_valid", 0) is None:
        args.max_tokens_valid = args.max_tokens
    if getattr(args, "arch", None):
        architecture(args.arch).fill_in(args)
