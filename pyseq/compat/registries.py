"""fairseq's registry dicts, as live views of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyseq.registry
from pyseq.registry import ARCHITECTURES, Registry


class View(Mapping[str, Any]):
    """The names of ``keys()``, each with what ``get`` says of it."""

    def __init__(self, keys: Callable[[], Iterable[str]], get: Callable[[str], Any]) -> None:
        self._keys, self._get = keys, get

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys():
            raise KeyError(key)
        return self._get(key)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._keys()))

    def __len__(self) -> int:
        return len(list(self._keys()))


def classes(kind: str) -> View:
    """Name -> class."""
    return View(lambda: registry(kind).names(), lambda name: registry(kind).entry(name).cls)


def dataclasses(kind: str) -> View:
    """Name -> dataclass, for those that have one."""

    def names() -> list[str]:
        return [name for name in registry(kind).names() if registry(kind).entry(name).group is not None]

    return View(names, lambda name: registry(kind).entry(name).group)


def registry(kind: str) -> Registry:
    return pyseq.registry.REGISTRIES[kind]


def architectures_of(model_name: str) -> list[str]:
    return [arch.name for arch in ARCHITECTURES.values() if arch.model_name == model_name]


def with_architectures() -> list[str]:
    return sorted({arch.model_name for arch in ARCHITECTURES.values()})


MODEL_REGISTRY = classes("model")
MODEL_DATACLASS_REGISTRY = dataclasses("model")
ARCH_MODEL_REGISTRY = View(
    lambda: ARCHITECTURES, lambda arch: registry("model").entry(ARCHITECTURES[arch].model_name).cls
)
ARCH_MODEL_NAME_REGISTRY = View(lambda: ARCHITECTURES, lambda arch: ARCHITECTURES[arch].model_name)
ARCH_MODEL_INV_REGISTRY = View(with_architectures, architectures_of)
ARCH_CONFIG_REGISTRY = View(lambda: ARCHITECTURES, lambda arch: ARCHITECTURES[arch].fill_in)
TASK_REGISTRY, TASK_DATACLASS_REGISTRY = classes("task"), dataclasses("task")
CRITERION_REGISTRY, CRITERION_DATACLASS_REGISTRY = classes("criterion"), dataclasses("criterion")
OPTIMIZER_REGISTRY = classes("optimizer")
LR_SCHEDULER_REGISTRY = classes("lr_scheduler")


def _described(kind: str) -> dict[str, Any]:
    return {"registry": classes(kind), "default": registry(kind).default, "dataclass_registry": dataclasses(kind)}


REGISTRIES = View(lambda: [k for k in pyseq.registry.REGISTRIES if k not in ("model", "task")], _described)


def setup_registry(
    registry_name: str, base_class: type | None = None, default: str | None = None, required: bool = False
) -> tuple[Callable[..., Any], Callable[..., Any], View, View] | None:
    """A registry of a plug-in's own kind: ``build_x, register_x, X_REGISTRY, X_DATACLASS_REGISTRY``.

    No flag chooses from it; None if there is a registry of this name already, as in fairseq.
    """
    kind = registry_name.removeprefix("--").replace("-", "_")
    if kind in pyseq.registry.REGISTRIES:
        return None
    new = Registry(kind, base_class, default, required)
    return new.build, new.register, classes(kind), dataclasses(kind)
