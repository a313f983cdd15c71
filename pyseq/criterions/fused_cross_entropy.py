"""Cross-entropy for training loops of one's own: a module in place of :class:`torch.nn.CrossEntropyLoss`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import _reduction

from pyseq import ops


class FusedCrossEntropy(nn.Module):
    """Takes what :class:`torch.nn.CrossEntropyLoss` takes, and the keywords of :func:`pyseq.ops.cross_entropy`.

    It is not a criterion of the trainer, which has its own.

    Args:
        weight: [C] class weights; a buffer.
        size_average, ignore_index, reduce, reduction, label_smoothing: as in torch.
        smoothing_form, z_loss, soft_cap, inplace, class_dim: see :func:`pyseq.ops.cross_entropy`.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: ops.Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        smoothing_form: ops.SmoothingForm = "torch",
        z_loss: float = 0.0,
        soft_cap: float | None = None,
        inplace: ops.Inplace | None = None,
        class_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        if size_average is not None or reduce is not None:
            reduction = _reduction.legacy_get_string(size_average, reduce)  # type: ignore[assignment]
        self.ignore_index = ignore_index
        self.reduction: ops.Reduction = reduction
        self.label_smoothing = label_smoothing
        self.smoothing_form: ops.SmoothingForm = smoothing_form
        self.z_loss = z_loss
        self.soft_cap = soft_cap
        self.inplace: ops.Inplace | None = inplace
        self.class_dim = class_dim

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``input`` [N, C, ...] and ``target`` [N, ...]: 0-d, or of the target's shape."""
        return ops.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            smoothing_form=self.smoothing_form,
            z_loss=self.z_loss,
            soft_cap=self.soft_cap,
            inplace=self.inplace,
            class_dim=self.class_dim,
        )

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, reduction={self.reduction}, label_smoothing={self.label_smoothing}"
