"""Data: dictionaries, token files, datasets, batches and iterators.

The names below are loaded on first use: reading a dictionary needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULE_OF = {
    "AppendTokenDataset": "token_wrappers",
    "BaseWrapperDataset": "base_wrapper_dataset",
    "BucketPadLengthDataset": "bucket_pad_length_dataset",
    "BufferedIterator": "batch_loader",
    "ConcatDataset": "concat_dataset",
    "CountingIterator": "counting_iterator",
    "Dataset": "dataset",
    "Dictionary": "dictionary",
    "EpochBatchIterator": "iterators",
    "EpochListening": "dataset",
    "GroupedIterator": "counting_iterator",
    "IdDataset": "nested_dictionary_dataset",
    "LMContextWindowDataset": "lm_context_window_dataset",
    "LanguagePairDataset": "language_pair_dataset",
    "LeftPadDataset": "nested_dictionary_dataset",
    "MMapIndexedDataset": "indexed_dataset",
    "MonolingualDataset": "monolingual_dataset",
    "NestedDictionaryDataset": "nested_dictionary_dataset",
    "NumSamplesDataset": "nested_dictionary_dataset",
    "NumelDataset": "nested_dictionary_dataset",
    "PadDataset": "nested_dictionary_dataset",
    "PrependTokenDataset": "token_wrappers",
    "RandomCropDataset": "token_wrappers",
    "RightPadDataset": "nested_dictionary_dataset",
    "ShardedIterator": "counting_iterator",
    "StripTokenDataset": "token_wrappers",
    "TokenBlockDataset": "token_block_dataset",
    "TruncateDataset": "token_wrappers",
    "TruncatedDictionary": "dictionary",
}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
