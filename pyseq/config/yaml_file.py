"""``--config run.yaml``: the same options as the flags, flat or in groups.

Flat keys are flag names (``max-tokens`` or ``max_tokens``). Groups are the sections of a config
(``optimization: {max_update: 50000}``); the section of a plug-in names it with ``_name``
(``optimizer: {_name: adam, adam_betas: (0.9, 0.98)}``). Both may be mixed.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from pyseq.config.groups import SECTIONS
from pyseq.errors import ConfigError, nearest

PLUGIN_SECTIONS = {"model": "arch"} | {
    kind: kind for kind in ("task", "criterion", "optimizer", "lr_scheduler", "scoring", "bpe", "tokenizer")
}
MANDATORY = "???"
# One file may serve several commands: what another command takes is passed over.
OF_SOME_COMMAND = {field.name for group in SECTIONS.values() for field in dataclasses.fields(group)} | {
    "arch",
    "dry_run",
}


def read_settings(path: str) -> dict[str, Any]:
    """The options in a YAML file, flat: option name (with underscores) -> value.

    Raises:
        ConfigError: the file is missing, is not YAML, is not a mapping, or leaves a mandatory value (``???``) open.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path} is not YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} must be a mapping of options, not a {type(content).__name__}")
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name in ("defaults", "hydra"):
            continue
        if isinstance(value, dict) and name in SECTIONS:
            settings.update(_clean(value))
        elif isinstance(value, dict) and name in PLUGIN_SECTIONS:
            fields = _clean(value)
            if "_name" in value:
                settings[PLUGIN_SECTIONS[name]] = value["_name"]
            settings.update(fields)
        else:
            settings[PLUGIN_SECTIONS.get(name, name)] = value
    open_values = [key for key, value in settings.items() if value == MANDATORY]
    # A mandatory value may still be given as a flag; argparse asks for it if it is not.
    for key in open_values:
        del settings[key]
    return settings


def _clean(section: dict[Any, Any]) -> dict[str, Any]:
    return {str(key).replace("-", "_"): value for key, value in section.items() if str(key) != "_name"}


def apply_settings(parser: Any, settings: dict[str, Any], path: str | None) -> None:
    """Make the file's values the defaults of the parser's options.

    Raises:
        ConfigError: a key is no option of this command and its plug-ins, or a value is not among the choices.
    """
    actions = {action.dest: action for action in parser._actions}
    settings = {key: value for key, value in settings.items() if key in actions or key not in OF_SOME_COMMAND}
    unknown = sorted(key for key in settings if key not in actions)
    if unknown:
        hints = "; ".join(f"'{key}' ({nearest(key, actions) or 'no such option'})" for key in unknown)
        raise ConfigError(f"--config {path}: unknown options {hints}")
    for key, value in settings.items():
        action = actions[key]
        action.required = False
        if not action.option_strings:
            action.nargs = "?"
        action.default = _as_default(action, value, path)


def _as_default(action: argparse.Action, value: Any, path: str | None) -> Any:
    if value is None or isinstance(value, bool):
        return value
    text = _text(value)
    if action.choices is not None and text not in action.choices:
        raise ConfigError(
            f"--config {path}: {action.dest}: {text!r} is not one of {', '.join(map(str, action.choices))}"
        )
    if action.type is None or not callable(action.type):
        return text
    try:
        return action.type(text)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise ConfigError(f"--config {path}: {action.dest}: {error}") from None


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value) if all(isinstance(i, str) for i in value) else str(list(value))
    return str(value)


def dump(sections: dict[str, Any]) -> str:
    """YAML of a config's sections, which :func:`read_settings` reads back."""
    import yaml

    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
