"""What is said of arguments that do not fit."""

from __future__ import annotations

import torch
from torch import Tensor

from pyseq.ops.cross_entropy.definition import Options


def check_options(
    logits: Tensor,
    label_smoothing: float,
    smoothing_form: str,
    z_loss: float,
    soft_cap: float | None,
    weight: Tensor | None,
) -> Options:
    """The options of a loss on logits [..., V]. Raises ValueError or TypeError where they do not fit."""
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    if smoothing_form not in ("fairseq", "torch"):
        raise ValueError(f"smoothing_form must be 'fairseq' or 'torch', not {smoothing_form!r}")
    if soft_cap is not None and not 0.0 < soft_cap < float("inf"):
        raise ValueError(f"soft_cap must be positive and finite, or None for no cap, not {soft_cap}")
    if not 0.0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss must be finite and not negative, not {z_loss}")
    if weight is not None:
        weight = _checked_weight(logits, weight)
    return Options(float(label_smoothing), smoothing_form, float(z_loss), float(soft_cap or 0.0), weight)


def _checked_weight(logits: Tensor, weight: Tensor) -> Tensor:
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating-point, not {weight.dtype}")
    if logits.dim() == 0 or weight.shape != logits.shape[-1:]:
        raise ValueError(f"weight is {tuple(weight.shape)}: it must be [V], a number for each class of the logits")
    if weight.device != logits.device:
        raise ValueError(f"logits are on {logits.device}, weight is on {weight.device}")
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return weight.detach().to(dtype).contiguous()


def check_shapes(logits: Tensor, target: Tensor) -> None:
    """Raise ValueError or TypeError unless ``target`` [...] are classes for ``logits`` [..., V]."""
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating-point, not {logits.dtype}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"targets must be class numbers of an integer dtype, not {target.dtype}")
    if logits.dim() == 0 or logits.shape[:-1] != target.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} (classes last) and target {tuple(target.shape)} do not fit: the target has "
            "the dimensions of the logits but the classes"
        )
    if logits.device != target.device:
        raise ValueError(f"logits are on {logits.device}, the target is on {target.device}")
