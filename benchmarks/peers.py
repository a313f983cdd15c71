"""Other people's implementations, where they are installed. Every function raises ImportError where one is not."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits [N, V], target [N]) -> sum of the losses, 0-d
LinearLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (hidden [N, D], weight [V, D], target [N]) -> the sum


def _module(name: str) -> Any:
    """A module of a package that may be missing or, as compiled packages do, may fail to load."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise
    except Exception as error:
        raise ImportError(f"{name} does not load: {error}") from error


def fairseq_formulation(smoothing: float, ignore_index: int) -> Loss:
    """What fairseq computes: log_softmax in fp32, a gather and a sum over all classes."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        nll = -log_probs.gather(dim=-1, index=target.unsqueeze(-1))
        smooth = -log_probs.sum(dim=-1, keepdim=True)
        ignored = target.unsqueeze(-1).eq(ignore_index)
        nll, smooth = nll.masked_fill(ignored, 0.0).sum(), smooth.masked_fill(ignored, 0.0).sum()
        each = smoothing / (log_probs.size(-1) - 1)
        return (1.0 - smoothing - each) * nll + each * smooth

    return loss


def torch_cross_entropy(smoothing: float, ignore_index: int) -> Loss:
    """F.cross_entropy with its form of smoothing; in fp32 for 16-bit logits, as training code calls it."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.float(), target, label_smoothing=smoothing, ignore_index=ignore_index, reduction="sum"
        )

    return loss


def compiled_cross_entropy(smoothing: float, ignore_index: int) -> Loss:
    compiled: Loss = torch.compile(torch_cross_entropy(smoothing, ignore_index), dynamic=False, fullgraph=True)
    return compiled


def liger_cross_entropy(smoothing: float, ignore_index: int) -> Loss:
    """Writes the gradient over the logits."""
    module = _module("liger_kernel.transformers")
    loss: Loss = module.LigerCrossEntropyLoss(ignore_index=ignore_index, label_smoothing=smoothing, reduction="sum")
    return loss


def flash_attn_cross_entropy(smoothing: float, ignore_index: int) -> Loss:
    module = _module("flash_attn.ops.triton.cross_entropy")

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        rows: Tensor = module.cross_entropy_loss(
            logits, target, label_smoothing=smoothing, ignore_index=ignore_index, inplace_backward=True
        )[0]
        return rows.sum()

    return loss


def quack_cross_entropy(smoothing: float, ignore_index: int) -> Loss:
    """It has no label smoothing."""
    if smoothing:
        raise ImportError("quack has no label smoothing")
    module = _module("quack.cross_entropy")

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        found: Tensor = module.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
        return found

    return loss


def liger_linear_cross_entropy(smoothing: float) -> LinearLoss:
    module = _module("liger_kernel.transformers")
    fused = module.LigerFusedLinearCrossEntropyLoss(label_smoothing=smoothing, reduction="sum")
    return lambda hidden, weight, target: fused(weight, hidden, target)


def torch_linear_cross_entropy(smoothing: float, chunked: bool) -> LinearLoss:
    """torch 2.13's; its chunked path takes no smoothing."""
    fused: Any = getattr(F, "linear_cross_entropy", None)
    if fused is None:
        raise ImportError(f"torch {torch.__version__} has no linear_cross_entropy")
    options = getattr(torch.nn, "LinearCrossEntropyOptions")() if chunked else None  # noqa: B009 (older torch)
    return lambda hidden, weight, target: fused(
        hidden, weight, target, reduction="sum", label_smoothing=smoothing, options=options
    )


def apex_adamw(parameters: list[Tensor], **options: Any) -> Any:
    return _module("apex.optimizers").FusedAdam(parameters, adam_w_mode=True, **options)


def bitsandbytes_adamw(parameters: list[Tensor], **options: Any) -> Any:
    """Its 32-bit AdamW; the 8-bit one computes something else."""
    return _module("bitsandbytes.optim").AdamW(parameters, optim_bits=32, **options)
