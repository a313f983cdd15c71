"""The run's options, in groups: what ``cfg`` is everywhere above the ground floor."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pyseq.config import groups
from pyseq.config.group import ConfigGroup, default_of, group_from, reference_of
from pyseq.config.groups import SECTIONS
from pyseq.config.yaml_file import dump
from pyseq.registry import REGISTRIES, Entry, architecture

PLUGINS = ("task", "criterion", "optimizer", "lr_scheduler", "scoring", "bpe", "tokenizer")


@dataclass
class Config:
    """Typed groups that every command shares, and one node for each chosen plug-in.

    A plug-in's node is its own dataclass, or the flat namespace of all options if it registered without one.
    Either way its ``_name`` is the name it was chosen by. Nodes of kinds that were not chosen are None.
    """

    common: groups.CommonConfig = field(default_factory=groups.CommonConfig)
    common_eval: groups.CommonEvalConfig = field(default_factory=groups.CommonEvalConfig)
    distributed_training: groups.DistributedConfig = field(default_factory=groups.DistributedConfig)
    dataset: groups.DatasetConfig = field(default_factory=groups.DatasetConfig)
    optimization: groups.OptimizationConfig = field(default_factory=groups.OptimizationConfig)
    checkpoint: groups.CheckpointConfig = field(default_factory=groups.CheckpointConfig)
    generation: groups.GenerationConfig = field(default_factory=groups.GenerationConfig)
    eval_lm: groups.EvalLMConfig = field(default_factory=groups.EvalLMConfig)
    interactive: groups.InteractiveConfig = field(default_factory=groups.InteractiveConfig)
    model: Any = None
    task: Any = None
    criterion: Any = None
    optimizer: Any = None
    lr_scheduler: Any = None
    scoring: Any = None
    bpe: Any = None
    tokenizer: Any = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for a checkpoint: dicts, and a namespace where a plug-in has no dataclass."""
        return {"_name": None} | {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def to_yaml(self, args: argparse.Namespace) -> str:
        """A file that ``--config`` reads back: the options that the command line ``args`` could set."""
        sections: dict[str, Any] = {}
        for section in dataclasses.fields(self):
            node = getattr(self, section.name)
            if node is None:
                continue
            own = _own_options(section.name, node)
            kept = {
                name: plain(value)
                for name, value in sorted(vars(node).items())
                if name in own and (section.name not in SECTIONS or hasattr(args, name))
            }
            if getattr(node, "_name", None) is not None:
                kept = {"_name": node._name, **kept}
            sections |= {section.name: kept} if kept else {}
        return dump(sections)


def plain(node: Any) -> Any:
    """A config node as plain containers (enums as strings, tuples as lists)."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {f.name: plain(getattr(node, f.name)) for f in dataclasses.fields(node)}
    if isinstance(node, Enum):
        return node.value
    if isinstance(node, (list, tuple)):
        return [plain(item) for item in node]
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return node


def _own_options(section: str, node: Any) -> set[str]:
    """The options that ``node`` itself has flags for: not what it refers to, not the rest of a flat namespace."""
    if isinstance(node, ConfigGroup):
        return {
            f.name
            for f in dataclasses.fields(node)
            if f.name != "_name" and (f.metadata.get("help") or not reference_of(default_of(f)))
        }
    name = architecture(node._name).model_name if section == "model" else node._name
    entry = REGISTRIES[section].entry(name)
    parser = argparse.ArgumentParser(add_help=False)
    if hasattr(entry.cls, "add_args"):
        entry.cls.add_args(parser)
    return {action.dest for action in parser._actions}


def config_from_args(args: argparse.Namespace) -> Config:
    """The groups of a flat namespace. The namespace itself is not changed."""
    cfg = Config()
    for section in dataclasses.fields(Config):
        default = getattr(cfg, section.name)
        if isinstance(default, ConfigGroup):
            setattr(cfg, section.name, _read(type(default), args))
    arch = getattr(args, "arch", None)
    if arch:
        cfg.model = _node(REGISTRIES["model"].entry(architecture(arch).model_name), args, arch)
    for kind in PLUGINS:
        choice = getattr(args, kind, None)
        if isinstance(choice, str):
            setattr(cfg, kind, _node(REGISTRIES[kind].entry(choice), args, choice))
    for section in dataclasses.fields(Config):
        _resolve(getattr(cfg, section.name), cfg)
    return cfg


def _read(cls: type[ConfigGroup], args: argparse.Namespace) -> ConfigGroup:
    """A group from the namespace, with :func:`II` defaults still unresolved."""
    values = {}
    for f in dataclasses.fields(cls):
        default = default_of(f)
        value = getattr(args, f.name, default)
        # A flag that refers elsewhere parses to None when it is not given.
        values[f.name] = default if value is None and reference_of(default) else value
    group = cls(**values)
    for name, value in values.items():
        if reference_of(value):
            setattr(group, name, value)  # resolved when all groups are there
    return group


def _node(entry: Entry, args: argparse.Namespace, name: str) -> Any:
    node = argparse.Namespace(**vars(args)) if entry.group is None else _read(entry.group, args)
    node._name = name
    return node


def _resolve(node: Any, cfg: Config) -> None:
    """Replace every ``${group.field}`` in ``node`` by the value it points to (None where there is no such group)."""
    if not isinstance(node, ConfigGroup):
        return
    for f in dataclasses.fields(node):
        path = reference_of(getattr(node, f.name))
        if path is not None:
            value: Any = cfg
            for part in path.split("."):
                value = getattr(value, part, None)
            setattr(node, f.name, None if reference_of(value) else value)


def config_from_dict(sections: dict[str, Any]) -> Config:
    """The options that a checkpoint holds. Options that this version does not know are left out.

    Raises:
        ConfigError: a plug-in it was trained with is not registered (give --user-dir).
    """
    cfg = Config()
    for section in dataclasses.fields(Config):
        default, node = getattr(cfg, section.name), sections.get(section.name)
        if isinstance(default, ConfigGroup):
            setattr(cfg, section.name, group_from(type(default), node or {}))
        elif isinstance(node, argparse.Namespace):
            setattr(cfg, section.name, argparse.Namespace(**vars(node)))
        elif isinstance(node, dict):
            setattr(cfg, section.name, _node_from_dict(section.name, node))
        else:
            setattr(cfg, section.name, node)
    return cfg


def _node_from_dict(kind: str, node: dict[str, Any]) -> Any:
    name = node.get("_name")
    if name is None:
        return argparse.Namespace(**node)
    entry = REGISTRIES[kind].entry(architecture(name).model_name if kind == "model" else name)
    return argparse.Namespace(**node) if entry.group is None else group_from(entry.group, node)
