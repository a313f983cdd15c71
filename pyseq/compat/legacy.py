"""Bases of fairseq's plug-ins from before dataclasses: they read the flat namespace of all options, ``self.args``."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from pyseq.criterions import Criterion
from pyseq.optim import Optimizer
from pyseq.optim.lr_scheduler import LRScheduler


class LegacyCriterion(Criterion):
    def __init__(self, args: Namespace, task: Any) -> None:
        super().__init__(task)
        self.args = args

    @classmethod
    def build_criterion(cls, args: Namespace, task: Any) -> LegacyCriterion:
        return cls(args, task)


class LegacyOptimizer(Optimizer):
    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        self.args = args


class LegacyLRScheduler(LRScheduler):
    def __init__(self, args: Namespace, optimizer: Optimizer) -> None:
        super().__init__(args, optimizer)
        self.args = args
