"""How many rows of logits are made at a time where all of them would take too much memory."""

from __future__ import annotations

CPU_LEAST_CHUNKS = 26  # with the little else that a call allocates, less than 5 % of all logits
CPU_LEAST_ROWS = 90  # of 4 bytes a logit: fewer leave the matrix products waiting for the weights
CPU_LARGE_ROWS = 288  # of 4 bytes a logit: from here on the weights are no longer what the products wait for
CPU_LARGE_ROWS_OF_16_BITS = 384
CPU_TILE = 6  # rows that csrc/cpu/gemm_tiles.h multiplies at a time with AVX2; with AVX-512 twice as many
CPU_CACHED_BYTES = 16 << 20  # what three products and the softmax between them find in the cache again
GPU_LEAST_ROWS = 1024
GPU_MOST_ROWS = 4096  # more do not fill the device better
GPU_MEMORY_SHARE = 1 / 32
GPU_TILE = 128  # rows that a block of a matrix product computes


def chunk_rows(
    rows: int, classes: int, itemsize: int, device_type: str, device_bytes: int = 0, large: bool = False
) -> int:
    """Rows of a chunk of [rows, classes] logits, at least 1 and at most ``rows``.

    On the CPU a chunk is whole tiles, less than 5 % of the logits, and stays in the cache, unless that would be fewer
    than 90 rows of fp32, or 180 of 16 bits, whose products are twice as fast. A large chunk may take more than 5 %, and
    has at least 288 rows of fp32, or 384, even if those do not stay in the cache. On other devices it has 4,096 rows,
    or as many as fit in 1/32 of the memory, but no fewer than 1,024.

    Args:
        rows: of all logits.
        classes: the width of the logits.
        itemsize: bytes of a logit.
        device_type: ``"cpu"``, ``"cuda"``, ...
        device_bytes: memory of the device, where known; of no consequence on the CPU.
        large: faster on the CPU, for who has the memory; of no consequence on other devices.
    """
    if rows <= 1:
        return 1
    row_bytes = max(classes * itemsize, 1)
    if device_type == "cpu":
        wanted = max(1 if large else CPU_LEAST_CHUNKS, _ceil_div(rows * row_bytes, CPU_CACHED_BYTES))
        if large:
            least = CPU_LARGE_ROWS_OF_16_BITS if itemsize == 2 else CPU_LARGE_ROWS
        else:
            least = CPU_LEAST_ROWS * max(4 // itemsize, 1)
        even = _ceil_div(rows, min(wanted, max(rows // least, 1)))
        if even == rows:
            return rows
        # Rounded up, no few rows are left over, which would take all of the weights for themselves.
        return (_ceil_div(even, CPU_TILE) if large else even // CPU_TILE) * CPU_TILE
    most = GPU_MOST_ROWS
    if device_bytes:
        fitting = int(device_bytes * GPU_MEMORY_SHARE) // row_bytes // GPU_TILE * GPU_TILE
        most = min(most, max(fitting, GPU_LEAST_ROWS))
    if rows <= most:
        return rows
    even = _ceil_div(rows, _ceil_div(rows, most))
    return _ceil_div(even, GPU_TILE) * GPU_TILE


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
