"""The size of chunks is a function of sizes alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyseq.ops.chunks import (
    CPU_CACHED_BYTES,
    CPU_LARGE_ROWS,
    CPU_LARGE_ROWS_OF_16_BITS,
    CPU_LEAST_ROWS,
    CPU_TILE,
    GPU_LEAST_ROWS,
    GPU_MOST_ROWS,
    chunk_rows,
)

GIB = 1 << 30


@pytest.mark.parametrize(("rows", "classes"), [(4096, 10_000), (2048, 32_000), (16_384, 50_257)])
def test_a_chunk_on_the_cpu_is_a_small_share(rows: int, classes: int) -> None:
    chunk = chunk_rows(rows, classes, 4, "cpu")
    assert CPU_LEAST_ROWS <= chunk < rows / 22, "the little else that a call allocates must fit into 5 %, too"
    assert chunk % CPU_TILE == 0, "a product of some rows of a tile takes as long as one of all"


@pytest.mark.parametrize(
    ("rows", "classes", "itemsize"), [(2048, 33_280, 4), (2048, 33_280, 2), (4096, 10_000, 4), (4096, 50_257, 2)]
)
def test_a_large_chunk_stays_in_the_cache_if_that_is_no_small_one(rows: int, classes: int, itemsize: int) -> None:
    chunk = chunk_rows(rows, classes, itemsize, "cpu", large=True)
    least = CPU_LARGE_ROWS_OF_16_BITS if itemsize == 2 else CPU_LARGE_ROWS
    assert least <= chunk <= max(CPU_CACHED_BYTES // (classes * itemsize), 1.5 * least)
    assert chunk % CPU_TILE == 0 and chunk >= 2 * chunk_rows(rows, classes, itemsize, "cpu")
    assert rows % chunk == 0 or rows % chunk > 0.8 * chunk, (
        "a few rows at the end would cost the reading of all weights"
    )


@pytest.mark.parametrize("rows", [1, 2, 89, 90, 91, 179])
def test_few_rows_are_one_chunk(rows: int) -> None:
    for device in ("cpu", "cuda"):
        assert chunk_rows(rows, 128_256, 4, device, GIB) == rows
    assert chunk_rows(2 * rows, 128_256, 2, "cpu") == 2 * rows


def test_a_gpu_gets_chunks_that_fill_it() -> None:
    assert chunk_rows(8192, 131_072, 2, "cuda", 139 * GIB) == 4096
    assert chunk_rows(4096, 131_072, 2, "cuda", 139 * GIB) == 4096
    assert chunk_rows(8192, 131_072, 2, "cuda", 24 * GIB) == 2816, "less memory, smaller chunks"
    assert chunk_rows(8192, 1 << 20, 2, "cuda", 8 * GIB) == GPU_LEAST_ROWS, "never so small that it starves"
    assert chunk_rows(5000, 32_000, 2, "cuda", 139 * GIB) == 2560, "even chunks, not one of 4096 and one of 904"
    assert chunk_rows(8192, 32_000, 2, "xpu") == 4096


@given(
    rows=st.integers(0, 1 << 20),
    classes=st.integers(0, 1 << 18),
    itemsize=st.sampled_from([2, 4, 8]),
    device=st.sampled_from(["cpu", "cuda", "mps"]),
    device_bytes=st.integers(0, 1 << 40),
)
def test_every_size_gives_chunks_that_work(
    rows: int, classes: int, itemsize: int, device: str, device_bytes: int
) -> None:
    chunk = chunk_rows(rows, classes, itemsize, device, device_bytes)
    assert 1 <= chunk <= max(rows, 1)
    if device == "cpu":
        least = CPU_LEAST_ROWS * (2 if itemsize == 2 else 1)
        assert min(rows, least) <= chunk <= max(-(-rows // 26), 2 * least)
    else:
        assert min(rows, GPU_LEAST_ROWS) // 2 <= chunk <= GPU_MOST_ROWS
