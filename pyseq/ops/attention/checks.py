"""What a caller of attention can get wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from pyseq.ops.attention.definition import Segments
from pyseq.ops.dropout import check_seed


def check_self(kvq: Tensor, segments: Segments, p: float, seed: Tensor | None) -> None:
    _check_packed("kvq", kvq, 4, 3, "[tokens, 3 (key, value, query), heads, D]")
    _check_common(kvq, p, seed)
    _check_segments("segments", segments, kvq)


def check_cross(
    query: Tensor, kv: Tensor, query_segments: Segments, key_segments: Segments, p: float, seed: Tensor | None
) -> None:
    _check_packed("query", query, 3, None, "[tokens, heads, D]")
    _check_packed("kv", kv, 4, 2, "[tokens, 2 (key, value), heads, D]")
    if query.shape[1:] != kv.shape[2:]:
        raise ValueError(f"query {tuple(query.shape)} and kv {tuple(kv.shape)} differ in heads or D")
    if query.dtype != kv.dtype or query.device != kv.device:
        raise TypeError(f"query ({query.dtype}, {query.device}) and kv ({kv.dtype}, {kv.device}) differ")
    _check_common(query, p, seed)
    _check_segments("query_segments", query_segments, query)
    _check_segments("key_segments", key_segments, kv)
    if query_segments.offsets.shape != key_segments.offsets.shape:
        queries, keys = (segments.offsets.numel() - 1 for segments in (query_segments, key_segments))
        raise ValueError(f"there are {queries} segments of queries, but {keys} of keys")


def check_offsets(name: str, offsets: Tensor, longest: int, tokens: int) -> None:
    """Raise where offsets that can be looked at without waiting for a device do not cover the tokens."""
    if offsets.device.type != "cpu":
        return
    places = offsets.tolist()
    sizes = [end - begin for begin, end in zip(places, places[1:])]
    if places[0] != 0 or places[-1] != tokens or min(sizes, default=0) < 0:
        raise ValueError(
            f"the offsets of {name} must begin with 0, never fall, and end with the number of tokens ({tokens}); "
            f"they are {_some(places)}"
        )
    if max(sizes, default=0) > longest:
        raise ValueError(f"{name} has a segment of {max(sizes)} tokens, but says that the longest has {longest}")


def _some(places: list[int]) -> str:
    return str(places) if len(places) <= 8 else f"[{', '.join(map(str, places[:6]))}, ..., {places[-1]}]"


def _check_packed(name: str, tensor: Tensor, dims: int, parts: int | None, shape: str) -> None:
    if tensor.dim() != dims or (parts is not None and tensor.size(1) != parts):
        raise ValueError(f"{name} must be {shape}, not {list(tensor.shape)}")
    if tensor.size(-1) == 0 or tensor.size(-2) == 0:
        raise ValueError(f"{name} {list(tensor.shape)} has no heads, or heads without a dimension")
    if not tensor.is_floating_point():
        raise TypeError(f"attention is for floating-point tensors, not {tensor.dtype}")


def _check_common(tensor: Tensor, p: float, seed: Tensor | None) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"the dropout probability must be in [0, 1], not {p}")
    check_seed(seed, tensor)


def _check_segments(name: str, segments: Segments, tensor: Tensor) -> None:
    offsets = segments.offsets
    if offsets.dtype != torch.int32 or offsets.dim() != 1 or offsets.numel() == 0 or not offsets.is_contiguous():
        raise TypeError(
            f"the offsets of {name} must be contiguous int32 [segments + 1], not {list(offsets.shape)} {offsets.dtype}"
        )
    if offsets.device != tensor.device:
        raise TypeError(f"the offsets of {name} are on {offsets.device}, but the data on {tensor.device}")
