"""Multi-head attention (Vaswani et al., 2017, section 3.2) with a key/value cache for generation.

Sizes: T queries, S keys, B sentences, H heads, D = C / H. Tensors come and go as T x B x C.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyseq.errors import ConfigError
from pyseq.modules.causal_mask import is_causal
from pyseq.modules.dropout import Dropout
from pyseq.modules.incremental_state import IncrementalState
from pyseq.modules.linear import Linear, side_by_side, stacked
from pyseq.modules.packing import PackedMask
from pyseq.ops import cross_attention, self_attention

Cache = dict[str, "Tensor | None"]


class MultiheadAttention(nn.Module, IncrementalState):
    """Attention of queries over keys and values.

    Args:
        embed_dim: C, the size of queries and of the output.
        num_heads: H, a divisor of ``embed_dim``.
        kdim, vdim: size of keys and values, if not C.
        dropout: probability of dropping an attention weight.
        bias: whether the projections have biases.
        add_bias_kv: attend to one more, learned, key and value.
        add_zero_attn: attend to one more key and value of zeros.
        self_attention: keys and values are the queries.
        encoder_decoder_attention: keys are the values.
        q_noise, qn_block_size: quantisation noise, which is not available: ``q_noise`` must be 0.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kdim: int | None = None,
        vdim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        self_attention: bool = False,
        encoder_decoder_attention: bool = False,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads != 0:
            raise ConfigError(f"{num_heads} attention heads do not divide an embedding of dimension {embed_dim}")
        if q_noise:
            raise ConfigError("quantisation noise is not available")
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.qkv_same_dim = self.kdim == embed_dim and self.vdim == embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout_module = Dropout(dropout, module_name=type(self).__name__)
        self.self_attention = self_attention
        self.encoder_decoder_attention = encoder_decoder_attention
        self.beam_size = 1

        # The order of definition is the order of parameters in optimizer states.
        self.k_proj = Linear(self.kdim, embed_dim, bias=bias)
        self.v_proj = Linear(self.vdim, embed_dim, bias=bias)
        self.q_proj = Linear(embed_dim, embed_dim, bias=bias)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias)
        self.bias_k = nn.Parameter(torch.empty(1, 1, embed_dim)) if add_bias_kv else None
        self.bias_v = nn.Parameter(torch.empty(1, 1, embed_dim)) if add_bias_kv else None
        self.add_zero_attn = add_zero_attn
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # 1 / sqrt(2) is the gain that one Xavier draw of the three stacked C x C matrices would have.
        gain = 1 / math.sqrt(2) if self.qkv_same_dim else 1.0
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            nn.init.xavier_uniform_(projection.weight, gain=gain)
        nn.init.xavier_uniform_(self.out_proj.weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                nn.init.xavier_normal_(extra)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | PackedMask | None = None,
        incremental_state: dict[str, Any] | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: [T x B x C].
            key, value: [S x B x C]; ignored in self-attention, and when ``static_kv`` finds them in the cache.
            key_padding_mask: [B x S], True at keys to leave out. A query whose keys are all left out gets zeros.
                Or what packed queries [T x 1 x C] see of packed keys; the weights are None then.
            incremental_state: keys and values are appended to those it holds, and stored in it.
            need_weights: return the attention weights too, which costs the fused kernel.
            static_kv: keys and values are the same at every step; they are projected once.
            attn_mask: [T x S], added to the scores; bool: True leaves out.
            before_softmax: return (scores [B*H x T x S], values [B*H x S x D]) instead.
            need_head_weights: return the weights of each head.

        Returns:
            The output [T x B x C], and the weights: [B x T x S], the mean over heads; or [H x B x T x S]; or None.
        """
        if isinstance(key_padding_mask, PackedMask):
            return self._attend_packed(query, key, key_padding_mask), None
        tgt_len, bsz, _ = query.size()
        projected = None
        if self.self_attention and incremental_state is None:
            q, *projected = map(self._split_heads, side_by_side(query, self.q_proj, self.k_proj, self.v_proj))
        else:  # steps have too few rows to be worth a copy of the weights
            q = self._split_heads(self.q_proj(query))  # B x H x T x D
        k, v, key_padding_mask = self._keys_and_values(
            query, key, value, key_padding_mask, incremental_state, static_kv, projected
        )  # B x H x S x D
        k, v, key_padding_mask, attn_mask = self._append_extra_keys(k, v, key_padding_mask, attn_mask)
        beam = 1 if k.size(0) == bsz else bsz // k.size(0)
        if beam > 1:
            # The hypotheses of a sentence share its keys: they are further queries of one attention.
            q = q.unflatten(0, (-1, beam)).transpose(1, 2).flatten(2, 3)  # B/beam x H x beam*T x D

        weights = None
        if before_softmax or need_weights or need_head_weights:
            scores = self._scores(q, k, merge_masks(attn_mask, key_padding_mask, q.dtype))
            if before_softmax:
                return scores.flatten(0, 1), v.flatten(0, 1)
            weights = self._softmax(scores)  # B x H x T x S
            out = torch.matmul(self.dropout_module(weights.to(v.dtype)), v)
        else:
            causal = key_padding_mask is None and is_causal(attn_mask)
            if causal and q.size(2) != k.size(2):  # as a statement: torch.compile would make it a symbol
                causal = False
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=None if causal else merge_masks(attn_mask, key_padding_mask, q.dtype),
                dropout_p=self.dropout_module.active_p,
                is_causal=causal,
            )  # B x H x T x D
        out = self._split_beams(out, beam).transpose(1, 2).reshape(bsz, tgt_len, self.embed_dim)
        attn = self.out_proj(out.transpose(0, 1))  # T x B x C
        if weights is None:
            return attn, None
        weights = self._split_beams(weights, beam).transpose(0, 1)  # H x B x T x S
        return attn, weights if need_head_weights else weights.mean(dim=0)

    @property
    def packs(self) -> bool:
        """Whether this attention takes packed sequences."""
        return type(self).forward is MultiheadAttention.forward and self.bias_k is None and not self.add_zero_attn

    def _attend_packed(self, query: Tensor, key: Tensor | None, mask: PackedMask) -> Tensor:
        """Attention of T x 1 x C queries over S x 1 x C keys."""
        sizes = self.num_heads, self.head_dim
        options: dict[str, Any] = {"scale": self.scaling, "p": self.dropout_module.active_p}
        if self.self_attention:
            kvq = stacked(query, self.k_proj, self.v_proj, self.q_proj).view(-1, 3, *sizes)
            out = self_attention(kvq, mask.keys, causal=mask.causal, **options)  # T x H x D
        else:
            assert key is not None, "attention without keys"
            kv = stacked(key, self.k_proj, self.v_proj).view(-1, 2, *sizes)
            out = cross_attention(self.q_proj(query).view(-1, *sizes), kv, mask.queries, mask.keys, **options)
        result: Tensor = self.out_proj(out.view(query.size(0), 1, -1))
        return result

    def _split_heads(self, x: Tensor) -> Tensor:
        """T x B x C -> B x H x T x D, as a view."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).permute(1, 2, 0, 3)

    @staticmethod
    def _split_beams(x: Tensor, beam: int) -> Tensor:
        """B/beam x H x beam*T x D -> B x H x T x D."""
        return x if beam == 1 else x.unflatten(2, (beam, -1)).transpose(1, 2).flatten(0, 1)

    def _scores(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        scores = torch.matmul(q * self.scaling, k.transpose(2, 3))  # B x H x T x S
        if mask is None:
            return scores
        return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask

    @staticmethod
    def _softmax(scores: Tensor) -> Tensor:
        """In fp32 or wider; rows without a key become zeros, as in the fused kernel."""
        blind = (scores == float("-inf")).all(dim=-1, keepdim=True)
        # Filled before the softmax too: its gradient at a row of -inf is NaN, which times 0 stays NaN.
        scores = scores.masked_fill(blind, 0)
        weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        return weights.masked_fill(blind, 0)

    def _keys_and_values(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None,
        incremental_state: dict[str, Any] | None,
        static_kv: bool,
        projected: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values [B x H x S x D] and their padding mask, those in the cache included.

        ``projected``: what :attr:`k_proj` and :attr:`v_proj` have made of the query, if that has been done.
        """
        cache = {} if incremental_state is None else self._get_input_buffer(incremental_state)
        prev_key, prev_value = cache.get("prev_key"), cache.get("prev_value")
        prev_mask = cache.get("prev_key_padding_mask")
        if static_kv and prev_key is not None and prev_value is not None:
            return prev_key, prev_value, prev_mask

        if self.self_attention:
            key = value = query
        elif self.encoder_decoder_attention:
            key, key_padding_mask = self._one_per_sentence(key, key_padding_mask, query.size(1))
            value = key
        assert key is not None and value is not None, "attention without keys"
        if projected is not None:
            k, v = projected
        elif key is value and incremental_state is None:
            k, v = map(self._split_heads, side_by_side(key, self.k_proj, self.v_proj))
        else:
            k, v = self._split_heads(self.k_proj(key)), self._split_heads(self.v_proj(value))
        if prev_key is not None and prev_value is not None:
            key_padding_mask = append_padding_mask(prev_mask, key_padding_mask, k.size(0), prev_key.size(2), k.size(2))
            k, v = torch.cat([prev_key, k], dim=2), torch.cat([prev_value, v], dim=2)
        if incremental_state is not None:
            cache = {"prev_key": k, "prev_value": v, "prev_key_padding_mask": key_padding_mask}
            self._set_input_buffer(incremental_state, cache)
        return k, v, key_padding_mask

    def _one_per_sentence(
        self, key: Tensor | None, key_padding_mask: Tensor | None, bsz: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of keys repeated for each of ``beam_size`` hypotheses, those of the first [S x B/beam x C]."""
        if self.beam_size == 1 or key is None or key.size(1) != bsz:
            return key, key_padding_mask
        mask = key_padding_mask
        return key[:, :: self.beam_size], None if mask is None else mask[:: self.beam_size]

    def _append_extra_keys(
        self, k: Tensor, v: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Append the learned key and the zero key, which every query sees."""
        extra = []
        if self.bias_k is not None and self.bias_v is not None:
            extra.append((self._split_heads(self.bias_k), self._split_heads(self.bias_v)))  # 1 x H x 1 x D
        if self.add_zero_attn:
            extra.append((k.new_zeros(1, 1, 1, 1), v.new_zeros(1, 1, 1, 1)))
        for extra_k, extra_v in extra:
            shape = (k.size(0), self.num_heads, 1, self.head_dim)
            k, v = torch.cat([k, extra_k.expand(shape)], dim=2), torch.cat([v, extra_v.expand(shape)], dim=2)
            key_padding_mask = None if key_padding_mask is None else F.pad(key_padding_mask, (0, 1))
            attn_mask = None if attn_mask is None else F.pad(attn_mask, (0, 1))
        return k, v, key_padding_mask, attn_mask

    def _get_input_buffer(self, incremental_state: dict[str, Any] | None) -> Cache:
        """The cache: prev_key and prev_value [B x H x S x D], prev_key_padding_mask [B x S] or None; {} at first."""
        return self.get_incremental_state(incremental_state, "attn_state") or {}

    def _set_input_buffer(self, incremental_state: dict[str, Any], buffer: Cache) -> dict[str, Any] | None:
        return self.set_incremental_state(incremental_state, "attn_state", buffer)

    def set_beam_size(self, beam_size: int) -> None:
        """Say that sentences come ``beam_size`` times in a row: cross-attention then keeps one copy of their keys."""
        self.beam_size = beam_size

    def reorder_incremental_state(self, incremental_state: dict[str, Any], new_order: Tensor) -> dict[str, Any] | None:
        """Keep the rows ``new_order`` [B'] of the cache, in that order.

        With :meth:`set_beam_size`, cross-attention keeps sentences: the hypotheses of one must stay next to each other,
        and while the number of sentences stays the same so must their order.
        """
        cache = self._get_input_buffer(incremental_state)
        prev_key = cache.get("prev_key")
        if prev_key is None:
            return incremental_state
        if self.encoder_decoder_attention and self.beam_size > 1:
            if prev_key.size(0) * self.beam_size == new_order.size(0):
                return incremental_state
            new_order = new_order.view(-1, self.beam_size)[:, 0] // self.beam_size
        kept = {name: None if rows is None else rows.index_select(0, new_order) for name, rows in cache.items()}
        return self._set_input_buffer(incremental_state, kept)

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Split the stacked ``in_proj_weight`` and ``in_proj_bias`` of old checkpoints."""
        prefix = name + "." if name else ""
        for kind in ("weight", "bias"):
            stacked = state_dict.pop(f"{prefix}in_proj_{kind}", None)
            if stacked is not None:
                for part, projection in zip(stacked.chunk(3), ("q_proj", "k_proj", "v_proj")):
                    state_dict[f"{prefix}{projection}.{kind}"] = part


def merge_masks(attn_mask: Tensor | None, key_padding_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """One mask for ``scaled_dot_product_attention``.

    Args:
        attn_mask: [T x S], additive, or bool with True at what to leave out.
        key_padding_mask: [B x S], True at keys to leave out.
        dtype: of the queries.

    Returns:
        Additive, or bool with True at what to keep; broadcasts to [B x H x T x S]. None if there is nothing to mask.
    """
    if key_padding_mask is not None:
        key_padding_mask = key_padding_mask.to(torch.bool)[:, None, None, :]  # B x 1 x 1 x S
    if attn_mask is None:
        return None if key_padding_mask is None else ~key_padding_mask
    if attn_mask.dtype == torch.bool:
        left_out = attn_mask if key_padding_mask is None else attn_mask | key_padding_mask
        return ~left_out
    attn_mask = attn_mask.to(dtype)
    return attn_mask if key_padding_mask is None else attn_mask.masked_fill(key_padding_mask, float("-inf"))


def append_padding_mask(
    previous: Tensor | None, new: Tensor | None, bsz: int, old_len: int, new_len: int
) -> Tensor | None:
    """The padding mask [B x (old_len + new_len)] of cached keys and new ones, either of which may have none."""
    if previous is None and new is None:
        return None
    if previous is None:
        assert new is not None
        previous = new.new_zeros(bsz, old_len)
    if new is None:
        new = previous.new_zeros(bsz, new_len)
    return torch.cat([previous.bool(), new.bool()], dim=1)
