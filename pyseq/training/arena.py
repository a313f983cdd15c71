"""Parameters next to each other in memory, and their gradients too, so that norm and update read one stretch of each.

Adam's moments follow by themselves: they are laid out as the parameters are (pyseq/optim/adam_state.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

ALIGNED = 32  # elements: a cache line of 16-bit numbers, and more of wider ones


class Arena:
    """Parameters of one dtype on one device, as views of one buffer without gaps.

    Attributes:
        parameters: in the order in which they lie.
        buffer: all of their elements.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first = self.parameters[0]
        size = sum(p.numel() for p in self.parameters)
        self.buffer = torch.empty(size, dtype=first.dtype, device=first.device)
        self.gradients: Tensor | None = None  # like buffer
        self._views: Sequence[Tensor] = ()
        with torch.no_grad():
            for parameter, place in zip(self.parameters, self._places(self.buffer)):
                place.copy_(parameter)
                parameter.data = place

    def _places(self, buffer: Tensor) -> Sequence[Tensor]:
        places: Sequence[Tensor] = _unflatten_dense_tensors(buffer, self.parameters)
        return places

    @torch.no_grad()
    def collect(self, sources: Sequence[nn.Parameter]) -> None:
        """Move the gradients of ``sources`` to the parameters of the arena: into one buffer, or onto what is there.

        ``sources`` are the parameters themselves, or those that these are the fp32 masters of.
        """
        if self.gradients is None:
            self.gradients = torch.empty_like(self.buffer)
            self._views = self._places(self.gradients)
        new: tuple[list[Tensor], list[Tensor]] = [], []
        more: tuple[list[Tensor], list[Tensor]] = [], []
        for owner, source, view in zip(self.parameters, sources, self._views):
            gradient = source.grad
            if gradient is None or gradient is view:
                continue
            views, gradients = more if owner.grad is view else new
            views.append(view)
            gradients.append(gradient)
            source.grad = None
            owner.grad = view
        if new[0]:
            torch._foreach_copy_(*new)
        if more[0]:
            torch._foreach_add_(*more)

    def drop_gradients(self) -> None:
        self.gradients, self._views = None, ()

    def whole(self) -> bool:
        """Whether the buffer of gradients is, element by element, the gradients of all parameters."""
        return bool(self._views) and all(p.grad is view for p, view in zip(self.parameters, self._views))


def arrange(module: nn.Module) -> list[Arena]:
    """Lay the trained parameters of ``module`` into arenas, one for each dtype and device.

    The matrices of a block come before its vectors, so that the projections of an attention lie together. Tensors whose
    size would put the next one off a cache line come last. Parameters that share memory with anything else stay where
    they are, as do tensors of other classes, like DTensors.
    """
    together: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in in_order(module.named_parameters()):
        if parameter.requires_grad and can_move(parameter):
            together.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return [Arena(parameters) for parameters in together.values()]


def in_order(named: Iterable[tuple[str, nn.Parameter]]) -> list[nn.Parameter]:
    blocks: dict[str, int] = {}
    keys: list[tuple[bool, int, bool, int]] = []
    parameters: list[nn.Parameter] = []
    for name, parameter in named:
        block = name.rpartition(".")[0].rpartition(".")[0]
        number = blocks.setdefault(block, len(blocks))
        keys.append((parameter.numel() % ALIGNED != 0, number, parameter.dim() < 2, len(keys)))
        parameters.append(parameter)
    return [parameters[key[-1]] for key in sorted(keys)]


def can_move(parameter: nn.Parameter) -> bool:
    """Whether nobody would notice that the parameter lies elsewhere: it alone holds its memory, all of it."""
    if type(parameter) is not nn.Parameter or parameter.layout is not torch.strided or not parameter.is_contiguous():
        return False
    size = parameter.numel() * parameter.element_size()
    return parameter.untyped_storage().nbytes() == size and holders(parameter) == holders(torch.empty(1))


def holders(tensor: Tensor) -> int:
    """How many tensors and other objects hold the tensor's memory."""
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata))
