"""What tasks use to load data and cut it into batches, under the names that plug-ins know."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyseq.data.bucket_pad_length_dataset import get_bucketed_sizes, get_buckets
from pyseq.data.collation import collate_tokens
from pyseq.data.concat_dataset import ConcatDataset
from pyseq.data.dataset_impl import make_dataset
from pyseq.data.dictionary import Dictionary
from pyseq.data.filtering import split_by_size
from pyseq.data.fixed_shapes import batch_by_size_and_shape
from pyseq.data.post_process import post_process
from pyseq.data.seeding import numpy_seed
from pyseq.errors import ConfigError, DataError
from pyseq.utils import split_paths

__all__ = [
    "batch_by_size",
    "check_unlisted_valid_subsets",
    "collate_tokens",
    "filter_by_size",
    "filter_paired_dataset_indices_by_size",
    "get_bucketed_sizes",
    "get_buckets",
    "infer_language_pair",
    "load_indexed_dataset",
    "numpy_seed",
    "post_process",
]

IndexArray = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)


def load_indexed_dataset(
    path: str,
    dictionary: Dictionary | None = None,
    dataset_impl: str | None = None,
    combine: bool = False,
) -> Any:
    """Open the dataset with this path prefix.

    Args:
        dictionary: encodes the text of a raw dataset.
        dataset_impl: how it is stored; None finds out.
        combine: also open ``path1``, ``path2``, ... as far as there are such, and join them.

    Returns:
        The dataset, or None if there is none with this prefix.

    Raises:
        DataError: it is damaged, or of another format.
    """
    datasets: list[Any] = []
    for k in itertools.count():
        prefix = f"{path}{k or ''}"
        dataset = make_dataset(prefix, dataset_impl, fix_lua_indexing=True, dictionary=dictionary)
        if dataset is None:
            break
        logger.info("loaded %s examples from: %s", f"{len(dataset):,}", prefix)
        datasets.append(dataset)
        if not combine:
            break
    if len(datasets) > 1:
        return ConcatDataset(datasets)
    return datasets[0] if datasets else None


def infer_language_pair(path: str) -> tuple[str | None, str | None]:
    """Source and target language of the files ``split.src-tgt.lang.*`` in a folder; (None, None) if it has none.

    Raises:
        DataError: there is no such folder.
    """
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise DataError(f"{path}: cannot list the data folder ({error.strerror})") from None
    for name in names:
        parts = name.split(".")
        if len(parts) >= 3 and parts[1].count("-") == 1:
            source, target = parts[1].split("-")
            return source, target
    return None, None


def check_unlisted_valid_subsets(data: str, valid_subset: str) -> None:
    """Raise ConfigError if a data folder has ``valid1``, ``valid2``, ... that ``valid_subset`` does not list.

    To be called unless validation is off, or they are to be combined or ignored.

    Args:
        data: folders, separated by colons.
        valid_subset: names separated by commas, as ``--valid-subset``.
    """
    present = {
        name.split(".")[0]
        for folder in split_paths(data)
        if os.path.isdir(folder)
        for name in os.listdir(folder)
        if re.match(r"valid\d+\.", name)
    }
    ignored = sorted(present - set(valid_subset.split(",")))
    if ignored:
        raise ConfigError(
            f"the data has {', '.join(ignored)}, which --valid-subset {valid_subset} does not name. "
            "Set --combine-val to combine them or --ignore-unused-valid-subsets to ignore them."
        )


def batch_by_size(
    indices: npt.ArrayLike,
    num_tokens_fn: Callable[[int], int],
    num_tokens_vec: npt.NDArray[Any] | None = None,
    max_tokens: int | None = None,
    max_sentences: int | None = None,
    required_batch_size_multiple: int = 1,
    fixed_shapes: Sequence[tuple[int | None, int]] | None = None,
) -> list[IndexArray]:
    """Cut ``indices`` into batches; see :func:`~pyseq.data.fixed_shapes.batch_by_size_and_shape`.

    Args:
        num_tokens_fn: length of a sample; not called if ``num_tokens_vec``, the lengths of all ``indices``, is given.
    """
    ids = np.asarray(indices, dtype=np.int64)
    if num_tokens_vec is None:
        num_tokens_vec = np.fromiter((num_tokens_fn(i) for i in ids.tolist()), dtype=np.int64, count=len(ids))
    return batch_by_size_and_shape(
        ids, num_tokens_vec, max_tokens, max_sentences, required_batch_size_multiple, fixed_shapes
    )


def filter_by_size(indices: IndexArray, dataset: Any, max_positions: Any, raise_exception: bool = False) -> IndexArray:
    """``indices`` without the samples that are longer than ``max_positions``, which a warning counts.

    Raises:
        DataError: there is such a sample, and ``raise_exception``.
    """
    kept, ignored = dataset.filter_indices_by_size(indices, max_positions)
    if not len(ignored):
        return kept
    if raise_exception:
        first = ignored[0]
        raise DataError(
            f"Size of sample #{first} is invalid (={plain(dataset.size(first))}) since max_positions={max_positions}, "
            "skip this example with --skip-invalid-size-inputs-valid-test"
        )
    logger.warning(
        "%s samples have invalid sizes and will be skipped, max_positions=%s, first few sample ids=%s",
        f"{len(ignored):,}",
        max_positions,
        ignored[:10],
    )
    return kept


def plain(size: Any) -> Any:
    """A size in numbers of Python, which read better than numpy's."""
    if isinstance(size, tuple):
        return tuple(plain(side) for side in size)
    return size.item() if isinstance(size, np.generic) else size


def filter_paired_dataset_indices_by_size(
    src_sizes: npt.NDArray[Any],
    tgt_sizes: npt.NDArray[Any] | None,
    indices: npt.ArrayLike,
    max_sizes: Any,
) -> tuple[IndexArray, list[int]]:
    """Separate the pairs whose source or target is too long.

    Args:
        src_sizes, tgt_sizes: of all samples; no targets: only the source counts.
        max_sizes: a number for both sides, or (source, target); None, there or inside, is no limit.

    Returns:
        The indices that remain, in their order, and the list of those left out.
    """
    ids = np.asarray(indices, dtype=np.int64)
    sides = [src_sizes] if tgt_sizes is None else [src_sizes, tgt_sizes]
    limits = max_sizes if isinstance(max_sizes, (tuple, list)) else [max_sizes] * len(sides)
    if all(limit is None or side.max(initial=0) <= limit for side, limit in zip(sides, limits)):
        return ids, []
    return split_by_size(ids, np.stack([side[ids] for side in sides], axis=1), list(limits)[: len(sides)])
