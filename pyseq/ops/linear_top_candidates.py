"""The best next tokens: of each row of logits ``x @ weight.T + bias`` the k largest and the log-sum-exp.

The core makes logits a block at a time and reads each once, in the cache. Log-probabilities of the k tokens are
``values - log_sum_exp``.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyseq.ops import dispatch
from pyseq.ops.packed_linear import PackedLinear, check_packed

dispatch.register_operation("linear_top_candidates", cpp=frozenset({torch.float32}), library=True)


class TopCandidates(NamedTuple):
    """Of each of R rows."""

    values: Tensor  # R x k logits, descending; among equals the lower token comes first
    tokens: Tensor  # R x k, int64
    log_sum_exp: Tensor  # R


def linear_top_candidates(
    x: Tensor, weights: PackedLinear, k: int, adjustments: dict[int, float] | None = None, filler: int = 0
) -> TopCandidates:
    """The ``k`` largest logits of each row.

    Args:
        x: [R x depth], fp32.
        weights: of V columns.
        k: 1 to V.
        adjustments: added to the logits of these tokens before they are compared; the log-sum-exp is without it.
        filler: stands for a token where nothing but -inf is left. A logit of nan counts as -inf.

    Raises:
        ValueError, TypeError: arguments do not fit.
    """
    check_packed(weights, x)
    if not 1 <= k <= weights.columns:
        raise ValueError(f"k is {k}, and there are {weights.columns} tokens")
    adjustments = {} if adjustments is None else adjustments
    if any(not 0 <= token < weights.columns for token in adjustments):
        raise ValueError(f"a token to adjust is not one of {weights.columns}")
    if dispatch.choose("linear_top_candidates", x.device.type, x.dtype) == "torch":
        return reference(x, weights, k, adjustments, filler)
    return _cpp(x.contiguous(), weights, k, adjustments, filler)


def reference(x: Tensor, weights: PackedLinear, k: int, adjustments: dict[int, float], filler: int) -> TopCandidates:
    """In plain torch: what the kernel computes."""
    logits = weights.reference(x)
    log_sum_exp = logits.logsumexp(dim=-1)
    for token, value in adjustments.items():
        logits[:, token] += value
    logits.masked_fill_(logits.isnan(), -math.inf)
    values, tokens = (t[:, :k] for t in logits.sort(dim=-1, descending=True, stable=True))
    return TopCandidates(values, tokens.masked_fill(values == -math.inf, filler), log_sum_exp)


@functools.lru_cache(maxsize=16)
def _adjusted(adjustments: tuple[tuple[int, float], ...]) -> tuple[Tensor, Tensor]:
    """Tokens and what is added to their logits, which a search asks for at every step."""
    tokens, values = ([pair[i] for pair in adjustments] for i in range(2))
    return torch.tensor(tokens, dtype=torch.int64), torch.tensor(values, dtype=torch.float32)


def _cpp(x: Tensor, weights: PackedLinear, k: int, adjustments: dict[int, float], filler: int) -> TopCandidates:
    rows = x.size(0)
    adjusted, added = _adjusted(tuple(sorted(adjustments.items())))
    out = TopCandidates(x.new_empty(rows, k), x.new_empty(rows, k, dtype=torch.int64), x.new_empty(rows))
    dispatch.required_core().linear_top_candidates(
        x.data_ptr(),
        rows,
        *weights.addresses(),
        weights.depth,
        weights.columns,
        weights.bf16,
        k,
        adjusted.data_ptr(),
        added.data_ptr(),
        adjusted.numel(),
        filler,
        *(t.data_ptr() for t in out),
        torch.get_num_threads(),
    )
    return out
