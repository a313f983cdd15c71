"""``--bf16``: parameters and arithmetic in bfloat16, weights that the optimizer sees in fp32.

The optimizer updates fp32 master copies; the model's parameters are their rounding. Gradients are added to the masters'
in fp32 after every micro-batch. Checkpoints hold the masters, so a resumed run goes on from the exact weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyseq.training.arena import Arena, arrange
from pyseq.utils import apply_to_sample


class Precision:
    """fp32: the optimizer's parameters are the model's own.

    Args:
        module: the model and the criterion.
        joined: lay parameters next to each other in memory, and copy their gradients together. On a GPU that spares
            launches and tables. On a CPU the copy takes longer than it saves, and a buffer of all gradients finds no
            hole in the heap (docs/architecture.md).
        keep_gradients: that what they are copied to keeps its memory from update to update, as CUDA graphs need it.
    """

    dtype = torch.float32
    reason = "the default; --bf16 halves memory and is faster where the machine multiplies bfloat16"

    def __init__(self, module: nn.Module, joined: bool = False, keep_gradients: bool = False) -> None:
        self.module, self.keep_gradients = module, keep_gradients
        self.arenas = arrange(module) if joined else []

    def optimizer_parameters(self) -> list[Tensor]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def prepare_sample(self, sample: Any) -> Any:
        return sample

    def collect_gradients(self) -> None:
        """Called after each micro-batch's backward."""
        for arena in self.arenas:
            arena.collect(arena.parameters)

    def drop_gradients(self) -> None:
        """Called when the optimizer has dropped the gradients of its parameters."""
        for arena in [] if self.keep_gradients else self.arenas:
            arena.drop_gradients()

    def joined_gradients(self) -> list[Tensor] | None:
        """All gradients of the optimizer's parameters as a few buffers, where that is how they lie."""
        apart = sum(len(arena.parameters) for arena in self.arenas) < len(self.optimizer_parameters())
        if apart or not all(arena.whole() for arena in self.arenas):
            return None
        return [arena.gradients for arena in self.arenas if arena.gradients is not None]

    def after_step(self) -> None:
        """Called after the optimizer has changed its parameters."""

    def full_state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        """The state of ``module`` (the model, or the criterion) for a checkpoint, in fp32."""
        return dict(module.state_dict())

    def after_load(self) -> None:
        """Called after the module's parameters were read from ``state``."""

    def load_full(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        """Restore what rounding lost when ``state`` was loaded into ``module``."""


class BFloat16(Precision):
    """bfloat16 parameters with fp32 masters, in the module's parameter order."""

    dtype = torch.bfloat16
    reason = "--bf16; the optimizer works on fp32 master weights"

    def __init__(self, module: nn.Module, joined: bool = False, keep_gradients: bool = False) -> None:
        super().__init__(module, keep_gradients=keep_gradients)
        masters = [p.detach().float() for p in module.parameters() if p.requires_grad]
        module.to(torch.bfloat16)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.masters = [nn.Parameter(m) for m in masters]
        self.master_of = {id(p): m for p, m in zip(self.parameters, self.masters, strict=True)}
        self.low = arrange(module) if joined else []
        self.arenas = [Arena([self.master_of[id(p)] for p in low.parameters]) for low in self.low]
        laid = {id(p) for low in self.low for p in low.parameters}
        self.apart = [(p, self.master_of[id(p)]) for p in self.parameters if id(p) not in laid]

    def optimizer_parameters(self) -> list[Tensor]:
        return list(self.masters)

    def prepare_sample(self, sample: Any) -> Any:
        return apply_to_sample(lambda t: t.bfloat16() if t.dtype == torch.float32 else t, sample)

    def collect_gradients(self) -> None:
        for low, arena in zip(self.low, self.arenas):
            arena.collect(low.parameters)
        for parameter, master in self.apart:
            if parameter.grad is not None:
                if master.grad is None:
                    master.grad = parameter.grad.float()
                else:
                    master.grad.add_(parameter.grad)
                parameter.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        for low, arena in zip(self.low, self.arenas):
            low.buffer.copy_(arena.buffer)
        for parameter, master in self.apart:
            parameter.copy_(master)

    def full_state_dict(self, module: nn.Module) -> dict[str, Tensor]:
        state = dict(module.state_dict())
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if name in state and id(parameter) in self.master_of:
                state[name] = self.master_of[id(parameter)].detach()
        return {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in state.items()}

    @torch.no_grad()
    def load_full(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if id(parameter) in self.master_of:
                source = state.get(name)
                master = self.master_of[id(parameter)]
                same = source is not None and source.shape == master.shape
                master.copy_(source if same and source is not None else parameter)
