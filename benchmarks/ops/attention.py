"""Attention of sequences of different lengths, forward and backward: ours on packed tokens, torch's on padded ones.

The sizes are those of a batch of the tiny recipe and of transformer_iwslt, on a GPU of transformer_big. torch's
scaled_dot_product_attention gets a mask of the padding, as a padded model has to give it. Needed are the operations of
real tokens: six products of 2 L^2 D a head, two forward and four backward; half of that, causal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyseq.ops.attention import Segments, self_attention

from ..harness import Case, Outcome, Side, Work
from ..machine import matrix_yardstick

SEQUENCES, SHORTEST, LONGEST = 150, 8, 32
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def case(
    heads: int, head_dim: int, causal: bool, dtype: torch.dtype = torch.float32, many: int = SEQUENCES
) -> Callable[[torch.device, bool], Work]:
    def build(device: torch.device, quick: bool) -> Work:
        generator = torch.Generator().manual_seed(1)
        lengths = torch.randint(SHORTEST, LONGEST + 1, (4 if quick else many,), generator=generator)
        segments = Segments.from_lengths(lengths, device)
        tokens, longest = int(lengths.sum()), int(lengths.max())
        real = (torch.arange(longest) < lengths.unsqueeze(1)).to(device)  # B x T
        packed = torch.randn(tokens, 3, heads, head_dim, device=device, dtype=dtype).requires_grad_()
        grad = torch.randn(tokens, heads, head_dim, device=device, dtype=dtype)
        padded = torch.zeros(*real.shape, 3, heads, head_dim, device=device, dtype=dtype)
        padded[real] = packed.detach()
        padded.requires_grad_()
        padded_grad = torch.zeros(*real.shape, heads, head_dim, device=device, dtype=dtype)
        padded_grad[real] = grad
        seen = real[:, None, None, :].expand(-1, 1, longest, longest)
        seen = seen & torch.ones(longest, longest, dtype=torch.bool, device=device).tril() if causal else seen

        def ours() -> tuple[Tensor, Tensor]:
            out = self_attention(packed, segments, causal=causal)
            return out.detach(), torch.autograd.grad(out, packed, grad)[0]

        def theirs() -> tuple[Tensor, Tensor]:
            key, value, query = (padded[:, :, i].transpose(1, 2) for i in range(3))
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)
            return out.detach(), torch.autograd.grad(out, padded, padded_grad)[0]

        def outcome_of(run: Callable[[], tuple[Tensor, Tensor]], pick: bool) -> Callable[[], Outcome]:
            return lambda: dict(zip(("output", "gradient"), (t[real] if pick else t for t in run())))

        flops = 12 * int((lengths * lengths).sum()) * heads * head_dim // (2 if causal else 1)
        config = {"sequences": lengths.numel(), "tokens": tokens, "longest": longest, "heads": heads}
        work = Work(
            config | {"head dim": head_dim, "causal": causal, "dtype": str(dtype).removeprefix("torch.")},
            [
                Side("pyseq", ours, outcome=outcome_of(ours, False), flops=flops),
                Side("torch, padded", theirs, outcome=outcome_of(theirs, True), flops=flops),
            ],
            bound=BOUNDS[dtype],
        )
        work.sides.append(matrix_yardstick(device, dtype, quick))
        return work

    return build


CASES = [
    Case("attention/tiny", case(4, 32, causal=False), ("cpu",)),
    Case("attention/tiny-causal", case(4, 32, causal=True), ("cpu",)),
    Case("attention/iwslt", case(4, 128, causal=False), ("cpu",)),
    Case("attention/iwslt-causal", case(4, 128, causal=True), ("cpu",)),
    Case("attention/big-bf16", case(16, 64, causal=False, dtype=torch.bfloat16, many=1000), ("cuda",)),
    Case("attention/big-causal-bf16", case(16, 64, causal=True, dtype=torch.bfloat16, many=1000), ("cuda",)),
]
