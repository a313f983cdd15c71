"""Pairs of source and target sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyseq.data.alignments import collate_alignments
from pyseq.data.bucket_pad_length_dataset import BucketPadLengthDataset
from pyseq.data.collation import collate_rows, collate_tokens
from pyseq.data.data_utils import filter_paired_dataset_indices_by_size
from pyseq.data.dataset import Dataset, IndexArray, is_token_file, keeps
from pyseq.data.dictionary import Dictionary
from pyseq.data.indexed_dataset import IndexedDataset
from pyseq.data.ordering import ordered_by
from pyseq.errors import DataError

Batch = dict[str, Any]


def collate(
    samples: Sequence[dict[str, Any]],
    pad_idx: int,
    eos_idx: int,
    left_pad_source: bool = True,
    left_pad_target: bool = False,
    input_feeding: bool = True,
    pad_to_length: dict[str, int] | None = None,
    pad_to_multiple: int = 1,
) -> Batch:
    """Merge samples into a batch, rows in the order of descending source length.

    Args:
        samples: dicts with ``id`` (int) and ``source`` (1-d tensor), and perhaps ``target``, ``prev_output_tokens``
            (1-d tensors), ``alignment`` (pairs of source and target position, flat or ``[k, 2]``), ``constraints``
            (1-d tensor).
        eos_idx: put in front of the target to make ``prev_output_tokens``.
        input_feeding: whether to make ``prev_output_tokens``.
        pad_to_length: least width, ``{"source": s, "target": t}``.
        pad_to_multiple: widths are rounded up to a multiple of this.

    Returns:
        A dict of

        - ``id`` LongTensor [B], ``nsentences`` int, ``ntokens`` int: of the target, or of the source without one;
        - ``net_input``: ``src_tokens`` LongTensor [B, S], ``src_lengths`` LongTensor [B], and with a target and
          ``input_feeding`` ``prev_output_tokens`` LongTensor [B, T], the target with its last token in front;
        - ``target`` LongTensor [B, T] or None;
        - ``alignments`` LongTensor [K, 2] (positions in the flattened source and target), ``align_weights`` [K];
        - ``constraints`` LongTensor [B, C], padded with 0.

        An empty dict if there are no samples.
    """
    if len(samples) == 0:
        return {}
    least = pad_to_length or {}

    def merge(key: str, left_pad: bool, width: int | None, move_eos_to_beginning: bool = False) -> Tensor:
        return collate_tokens(
            [sample[key] for sample in samples],
            pad_idx,
            eos_idx,
            left_pad,
            move_eos_to_beginning,
            pad_to_length=width,
            pad_to_multiple=pad_to_multiple,
        )

    src_tokens = merge("source", left_pad_source, least.get("source"))
    src_lengths, order = descending(src_tokens.ne(pad_idx).sum(dim=1))
    target = prev_output_tokens = None
    if samples[0].get("target") is not None:
        target = merge("target", left_pad_target, least.get("target"))[order]
        if samples[0].get("prev_output_tokens") is not None:
            prev_output_tokens = merge("prev_output_tokens", left_pad_target, None)[order]
        elif input_feeding:
            prev_output_tokens = merge("target", left_pad_target, least.get("target"), True)[order]
    batch = assemble(
        torch.tensor([int(sample["id"]) for sample in samples])[order],
        src_tokens[order],
        src_lengths,
        target,
        prev_output_tokens,
        int(src_lengths.sum() if target is None else target.ne(pad_idx).sum()),
    )
    if samples[0].get("alignment") is not None:
        pairs = [samples[i]["alignment"] for i in order.tolist()]
        batch.update(collate_alignments(pairs, batch, pad_idx, left_pad_source, left_pad_target))
    if samples[0].get("constraints") is not None:
        batch["constraints"] = collate_tokens([sample["constraints"] for sample in samples], 0)[order]
    return batch


def descending(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths [B] in descending order, and the row that each comes from.

    Equal lengths come in the order that torch's sort happens to leave them in: fairseq's rows do too.
    """
    ordered, order = lengths.sort(descending=True)
    return ordered, order


def assemble(
    ids: Tensor,
    src_tokens: Tensor,
    src_lengths: Tensor,
    target: Tensor | None,
    prev_output_tokens: Tensor | None,
    ntokens: int,
) -> Batch:
    """The batch of these parts; see :func:`collate`."""
    net_input = {"src_tokens": src_tokens, "src_lengths": src_lengths}
    if prev_output_tokens is not None:
        net_input["prev_output_tokens"] = prev_output_tokens
    return {"id": ids, "nsentences": len(ids), "ntokens": ntokens, "net_input": net_input, "target": target}


class LanguagePairDataset(Dataset):
    """Source sentences with their translations, or without.

    Args:
        src: source sentences, 1-d tensors by index (a dataset or a list).
        src_sizes: their lengths.
        src_dict: their dictionary.
        tgt, tgt_sizes, tgt_dict: the same of the targets.
        left_pad_source, left_pad_target: the side of the padding.
        shuffle: whether samples of equal length are visited in random order.
        input_feeding: whether batches have ``prev_output_tokens``, the decoder's input under teacher forcing.
        remove_eos_from_source: take the end-of-sentence symbol off the source if it has one.
        append_eos_to_target: give the target one if it has none.
        align_dataset: alignment of each pair, flat pairs of positions.
        constraints: 1-d tensor of each sample, for constrained decoding.
        append_bos: put the beginning-of-sentence symbol in front of both sides if they have none.
        eos: the symbol that begins ``prev_output_tokens``; the source dictionary's by default.
        num_buckets: pad the samples to this many lengths at most, and batch by them; 0: do not.
        src_lang_id, tgt_lang_id: put into batches as ``net_input.src_lang_id`` and ``tgt_lang_id`` [B, 1].
        pad_to_multiple: widths of batches are rounded up to a multiple of this.

    Raises:
        DataError: source and target differ in number, or their dictionaries in the special symbols.
    """

    def __init__(
        self,
        src: Any,
        src_sizes: Any,
        src_dict: Dictionary,
        tgt: Any = None,
        tgt_sizes: Any = None,
        tgt_dict: Dictionary | None = None,
        left_pad_source: bool = True,
        left_pad_target: bool = False,
        shuffle: bool = True,
        input_feeding: bool = True,
        remove_eos_from_source: bool = False,
        append_eos_to_target: bool = False,
        align_dataset: Any = None,
        constraints: Any = None,
        append_bos: bool = False,
        eos: int | None = None,
        num_buckets: int = 0,
        src_lang_id: int | None = None,
        tgt_lang_id: int | None = None,
        pad_to_multiple: int = 1,
    ) -> None:
        super().__init__()
        check_pair(src, src_sizes, src_dict, tgt, tgt_sizes, tgt_dict)
        if align_dataset is not None and tgt_sizes is None:
            raise DataError("alignments need both a source and a target")
        self.src, self.src_sizes, self.src_dict = src, np.asarray(src_sizes), src_dict
        self.tgt, self.tgt_dict = tgt, tgt_dict
        self.tgt_sizes: npt.NDArray[Any] | None = None if tgt_sizes is None else np.asarray(tgt_sizes)
        self.left_pad_source, self.left_pad_target = left_pad_source, left_pad_target
        self.shuffle, self.input_feeding = shuffle, input_feeding
        self.remove_eos_from_source, self.append_eos_to_target = remove_eos_from_source, append_eos_to_target
        self.align_dataset, self.constraints = align_dataset, constraints
        self.append_bos = append_bos
        self.eos = src_dict.eos() if eos is None else eos
        self.src_lang_id, self.tgt_lang_id = src_lang_id, tgt_lang_id
        self.pad_to_multiple = pad_to_multiple
        self.buckets: list[tuple[None, int]] | None = None
        if num_buckets > 0:
            self.make_buckets(num_buckets)

    @cached_property
    def sizes(self) -> npt.NDArray[Any]:
        """Lengths as they were without buckets: ``(N,)``, or ``(N, 2)`` with a target."""
        return self.src_sizes if self.tgt_sizes is None else np.stack([self.src_sizes, self.tgt_sizes], axis=1)

    def make_buckets(self, num_buckets: int) -> None:
        """Pad both sides to ``num_buckets`` lengths at most, from here on."""
        self.sizes = self.sizes  # found now, before the sides change
        pad = self.src_dict.pad()
        self.src = BucketPadLengthDataset(self.src, self.src_sizes, num_buckets, pad, self.left_pad_source)
        self.src_sizes = self.src.sizes
        if self.tgt is not None:
            self.tgt = BucketPadLengthDataset(self.tgt, self.tgt_sizes, num_buckets, pad, self.left_pad_target)
            self.tgt_sizes = self.tgt.sizes
        self.bucketed_num_tokens = self.num_tokens_vec(np.arange(len(self))).astype(np.int64)
        self.buckets = [(None, int(tokens)) for tokens in np.unique(self.bucketed_num_tokens)]

    def get_batch_shapes(self) -> Any:
        return self.buckets

    def __len__(self) -> int:
        return len(self.src)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = self.src[index]
        target = None if self.tgt is None else self.tgt[index]
        tgt_dict = self.tgt_dict or self.src_dict
        if self.append_eos_to_target and target is not None:
            target = with_last(target, tgt_dict.eos())
        if self.append_bos:
            source = with_first(source, self.src_dict.bos())
            target = None if target is None else with_first(target, tgt_dict.bos())
        if self.remove_eos_from_source and len(source) and source[-1] == self.src_dict.eos():
            source = source[:-1]
        sample = {"id": index, "source": source, "target": target}
        if self.align_dataset is not None:
            sample["alignment"] = self.align_dataset[index]
        if self.constraints is not None:
            sample["constraints"] = self.constraints[index]
        return sample

    def collater(self, samples: list[Any], pad_to_length: dict[str, int] | None = None) -> Batch:
        """A batch of :meth:`__getitem__`'s samples; see :func:`collate`."""
        batch = collate(
            samples,
            pad_idx=self.src_dict.pad(),
            eos_idx=self.eos,
            left_pad_source=self.left_pad_source,
            left_pad_target=self.left_pad_target,
            input_feeding=self.input_feeding,
            pad_to_length=pad_to_length,
            pad_to_multiple=self.pad_to_multiple,
        )
        return self.with_languages(batch)

    def with_languages(self, batch: Batch) -> Batch:
        if batch and self.src_lang_id is not None:
            batch["net_input"]["src_lang_id"] = torch.full((batch["nsentences"], 1), self.src_lang_id)
        if batch and self.tgt_lang_id is not None:
            batch["tgt_lang_id"] = torch.full((batch["nsentences"], 1), self.tgt_lang_id)
        return batch

    def collate_indices(self, indices: Sequence[int] | IndexArray) -> Batch:
        batch = self.collate_from_files(np.asarray(indices, dtype=np.int64)) if self.is_plain and len(indices) else None
        return super().collate_indices(indices) if batch is None else batch

    @property
    def is_plain(self) -> bool:
        """Whether a batch is nothing but rows of two token files."""
        return (
            keeps(self, LanguagePairDataset, "__getitem__", "collater")
            and is_token_file(self.src)
            and (self.tgt is None or is_token_file(self.tgt))
            and self.align_dataset is None
            and self.constraints is None
            and not (self.append_bos or self.append_eos_to_target or self.remove_eos_from_source)
        )

    def collate_from_files(self, indices: IndexArray) -> Batch | None:
        """:meth:`collate_indices` straight from the token files; None if padding symbols stand in the text itself."""
        pad = self.src_dict.pad()

        def rows(side: IndexedDataset, ids: IndexArray, left_pad: bool, move_eos_to_beginning: bool) -> Tensor:
            return collate_rows(
                side.buffer,
                side.starts[ids],
                side.sizes[ids],
                pad,
                self.eos,
                left_pad,
                move_eos_to_beginning,
                pad_to_multiple=self.pad_to_multiple,
            )

        src_lengths, order = descending(torch.from_numpy(self.src.sizes[indices].astype(np.int64)))
        ids = indices[order.numpy()]
        src_tokens = rows(self.src, ids, self.left_pad_source, False)
        ntokens = int(src_lengths.sum())
        if int(src_tokens.ne(pad).sum()) != ntokens:
            return None
        target = prev_output_tokens = None
        if self.tgt is not None:
            target = rows(self.tgt, ids, self.left_pad_target, False)
            ntokens = int(target.ne(pad).sum())
            if self.input_feeding:
                prev_output_tokens = rows(self.tgt, ids, self.left_pad_target, True)
        batch = assemble(torch.from_numpy(ids), src_tokens, src_lengths, target, prev_output_tokens, ntokens)
        return self.with_languages(batch)

    def num_tokens(self, index: int) -> int:
        return int(self.num_tokens_vec(np.array([index]))[0])

    def num_tokens_vec(self, indices: IndexArray) -> npt.NDArray[Any]:
        lengths = self.src_sizes[indices]
        return lengths if self.tgt_sizes is None else np.maximum(lengths, self.tgt_sizes[indices])

    def size(self, index: int) -> tuple[Any, Any]:
        return self.src_sizes[index], 0 if self.tgt_sizes is None else self.tgt_sizes[index]

    def ordered_indices(self) -> IndexArray:
        """By source length, then target length, then at random; with buckets by padded length, then at random."""
        count = len(self)
        indices = np.random.permutation(count).astype(np.int64) if self.shuffle else np.arange(count, dtype=np.int64)
        if self.buckets is not None:
            return ordered_by(indices, self.bucketed_num_tokens)
        if self.tgt_sizes is not None:
            indices = ordered_by(indices, self.tgt_sizes)
        return ordered_by(indices, self.src_sizes)

    def filter_indices_by_size(self, indices: IndexArray, max_sizes: Any) -> tuple[IndexArray, list[int]]:
        return filter_paired_dataset_indices_by_size(self.src_sizes, self.tgt_sizes, indices, max_sizes)

    @property
    def parts(self) -> list[Any]:
        return [part for part in (self.src, self.tgt, self.align_dataset) if part is not None]

    @property
    def supports_prefetch(self) -> bool:
        sides = [side for side in (self.src, self.tgt) if side is not None]
        return all(getattr(side, "supports_prefetch", False) for side in sides)

    def prefetch(self, indices: Iterable[int]) -> None:
        wanted = list(indices)
        for part in self.parts:
            if hasattr(part, "prefetch"):
                part.prefetch(wanted)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return all(getattr(part, "can_reuse_epoch_itr_across_epochs", True) for part in self.parts)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        for part in self.parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)


def with_last(tokens: Tensor, symbol: int) -> Tensor:
    """``tokens`` [n], with ``symbol`` at the end if it is not there."""
    if len(tokens) and tokens[-1] == symbol:
        return tokens
    return torch.cat([tokens, tokens.new_tensor([symbol])])


def with_first(tokens: Tensor, symbol: int) -> Tensor:
    """``tokens`` [n], with ``symbol`` at the beginning if it is not there."""
    if len(tokens) and tokens[0] == symbol:
        return tokens
    return torch.cat([tokens.new_tensor([symbol]), tokens])


def check_pair(src: Any, src_sizes: Any, src_dict: Dictionary, tgt: Any, tgt_sizes: Any, tgt_dict: Any) -> None:
    """Raise DataError unless both sides have as many sentences, as many sizes, and the same special symbols."""
    if tgt is not None and len(src) != len(tgt):
        raise DataError(
            f"source has {len(src):,} sentences and target {len(tgt):,}: they must be translations of each other, "
            "line by line. Preprocess both files again."
        )
    for side, name, sizes in ((src, "source", src_sizes), (tgt, "target", tgt_sizes)):
        if side is not None and sizes is not None and len(side) != len(sizes):
            raise DataError(f"{name}: {len(side):,} sentences but {len(sizes):,} sizes")
    if tgt_dict is not None:
        for symbol in ("pad", "eos", "unk"):
            ids = getattr(src_dict, symbol)(), getattr(tgt_dict, symbol)()
            if ids[0] != ids[1]:
                raise DataError(f"the {symbol} symbol is {ids[0]} in the source dictionary, {ids[1]} in the target's")
