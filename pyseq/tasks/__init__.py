"""Tasks put data, model and criterion together: the fifth kind of plug-in."""

from __future__ import annotations

from typing import Any

from pyseq.config.group import ConfigGroup, group_from
from pyseq.registry import Registry, choice_of, import_siblings
from pyseq.tasks.task import LegacyTask, Task

TASKS = Registry("task", Task, default="translation", required=True)
register_task = TASKS.register


def setup_task(cfg: Any, **kwargs: Any) -> Task:
    """Build the task that ``cfg`` (its config node, or a flat namespace with ``task``) chooses.

    Raises:
        ConfigError: no such task.
        DataError: its data (dictionaries) cannot be read.
    """
    entry = TASKS.entry(choice_of(cfg, "task") or "translation")
    if entry.group is not None and not isinstance(cfg, ConfigGroup):
        cfg = group_from(entry.group, cfg)
    task: Task = entry.cls.setup_task(cfg, **kwargs)  # type: ignore[attr-defined]
    return task


def get_task(name: str) -> type:
    return TASKS.entry(name).cls


import_siblings(__file__, __name__)

__all__ = ["TASKS", "LegacyTask", "Task", "get_task", "register_task", "setup_task"]
