"""Text for language models: each sample predicts its own next tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyseq.data.collation import collate_rows, collate_tokens
from pyseq.data.dataset import Dataset, IndexArray, keeps
from pyseq.data.dictionary import Dictionary
from pyseq.data.ordering import ordered_by
from pyseq.data.token_block_dataset import BlockRows, TokenBlockDataset
from pyseq.errors import ConfigError

Batch = dict[str, Any]


def collate(
    samples: Sequence[dict[str, Any]],
    pad_idx: int,
    eos_idx: int,
    fixed_pad_length: int | None = None,
    pad_to_bsz: int | None = None,
) -> Batch:
    """Merge samples into a batch, padded on the right.

    Args:
        samples: dicts with ``id`` (int), ``source`` (1-d tensor) and ``target`` (1-d tensor, a list of them, or None).
        fixed_pad_length: least width.
        pad_to_bsz: least number of rows; further rows are padding.

    Returns:
        A dict of ``id`` LongTensor [n], ``nsentences`` n, ``ntokens`` (of all sources), ``net_input`` with
        ``src_tokens`` LongTensor [B, T] and ``src_lengths`` LongTensor [n], ``target`` LongTensor [B, T] (a list of
        them if samples have several, ``src_tokens`` if they have none). An empty dict if there are no samples.
    """
    if len(samples) == 0:
        return {}

    def merge(values: list[Tensor]) -> Tensor:
        return collate_tokens(values, pad_idx, eos_idx, pad_to_length=fixed_pad_length, pad_to_bsz=pad_to_bsz)

    src_tokens = merge([sample["source"] for sample in samples])
    target: Any = src_tokens
    if isinstance(samples[0]["target"], list):
        target = [merge(list(views)) for views in zip(*(sample["target"] for sample in samples))]
    elif samples[0]["target"] is not None:
        target = merge([sample["target"] for sample in samples])
    lengths = torch.tensor([sample["source"].numel() for sample in samples])
    return assemble(torch.tensor([int(sample["id"]) for sample in samples]), src_tokens, lengths, target)


def assemble(ids: Tensor, src_tokens: Tensor, src_lengths: Tensor, target: Any) -> Batch:
    """The batch of these parts; see :func:`collate`."""
    return {
        "id": ids,
        "nsentences": len(ids),
        "ntokens": int(src_lengths.sum()),
        "net_input": {"src_tokens": src_tokens, "src_lengths": src_lengths},
        "target": target,
    }


class MonolingualDataset(Dataset):
    """Text with the targets of a language model.

    Args:
        dataset: samples are (source, target, past target), as those of a
            :class:`~pyseq.data.token_block_dataset.TokenBlockDataset` with targets; 1-d tensors if ``targets`` is None.
        sizes: length of each sample.
        src_vocab, tgt_vocab: dictionaries; target tokens beyond the end of ``tgt_vocab`` become its unknown word.
        add_eos_for_other_targets: end the source with eos if it does not, for the targets "self" and "past".
        shuffle: whether samples of equal length are visited in random order.
        targets: of "self" (the source), "future" (the next token) and "past" (the one before); several make the target
            a list.
        add_bos_token: put the beginning-of-sentence symbol in front of source and target.
        fixed_pad_length: least width of a batch.
        pad_to_bsz: least number of rows of a batch.
        src_lang_idx, tgt_lang_idx: taken for the sake of callers that give them.

    Raises:
        ConfigError: a target is not known.
    """

    def __init__(
        self,
        dataset: Any,
        sizes: Any,
        src_vocab: Dictionary,
        tgt_vocab: Dictionary | None = None,
        add_eos_for_other_targets: bool = False,
        shuffle: bool = False,
        targets: Sequence[str] | None = None,
        add_bos_token: bool = False,
        fixed_pad_length: int | None = None,
        pad_to_bsz: int | None = None,
        src_lang_idx: int | None = None,
        tgt_lang_idx: int | None = None,
    ) -> None:
        super().__init__()
        unknown = set(targets or ()) - {"self", "future", "past"}
        if unknown:
            raise ConfigError(f"targets must be of 'self', 'future' and 'past', not {sorted(unknown)}")
        self.dataset, self.sizes = dataset, np.asarray(sizes)
        self.vocab = src_vocab
        self.tgt_vocab = src_vocab if tgt_vocab is None else tgt_vocab
        self.add_eos_for_other_targets, self.shuffle = add_eos_for_other_targets, shuffle
        self.targets = list(targets) if targets else None
        self.add_bos_token = add_bos_token
        self.fixed_pad_length, self.pad_to_bsz = fixed_pad_length, pad_to_bsz

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.targets is None:
            views: list[Tensor] = []
            source = self.dataset[index]
        else:
            source, views = self.source_and_targets(*self.dataset[index])
        views = [self.known_to_target(view) for view in views]
        if self.add_bos_token:
            source = prepend(source, self.vocab.bos())
            views = [prepend(view, self.tgt_vocab.bos()) for view in views]
        target: Any = views if len(views) > 1 else (views[0] if views else None)
        return {"id": index, "source": source, "target": target}

    def source_and_targets(self, source: Tensor, future: Tensor, past: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The source, and a target for each of :attr:`targets`; all 1-d, of one length."""
        assert self.targets is not None
        needs_eos = self.add_eos_for_other_targets and ("self" in self.targets or "past" in self.targets)
        if needs_eos and source[-1] != self.vocab.eos():
            pad = source.new_tensor([self.vocab.pad()])
            past = torch.cat([pad, past[1:], source[-1:]])
            source = torch.cat([source, source.new_tensor([self.vocab.eos()])])
            future = torch.cat([future, pad])
        views = {"self": source, "future": future, "past": past}
        return source, [views[name] for name in self.targets]

    def known_to_target(self, target: Tensor) -> Tensor:
        if len(self.tgt_vocab) == len(self.vocab):
            return target
        return target.masked_fill(target.ge(len(self.tgt_vocab)), self.tgt_vocab.unk())

    def collater(self, samples: list[Any]) -> Batch:
        """A batch of :meth:`__getitem__`'s samples; see :func:`collate`."""
        return collate(samples, self.vocab.pad(), self.vocab.eos(), self.fixed_pad_length, self.pad_to_bsz)

    def collate_indices(self, indices: Sequence[int] | IndexArray) -> Batch:
        if len(indices) and self.predicts_next_token_of_blocks:
            ids = np.asarray(indices, dtype=np.int64)
            rows = self.dataset.rows(ids)
            if rows is not None and rows.lengths.all():
                return self.collate_from_file(ids, rows)
        return super().collate_indices(indices)

    @property
    def predicts_next_token_of_blocks(self) -> bool:
        """Whether the target is a block of a corpus and the source that block shifted right, and nothing else."""
        return (
            keeps(self, MonolingualDataset, "__getitem__", "collater", "source_and_targets", "known_to_target")
            and isinstance(self.dataset, TokenBlockDataset)
            and keeps(self.dataset, TokenBlockDataset, "__getitem__")
            and self.dataset.include_targets
            and self.targets == ["future"]
            and not self.add_bos_token
            and len(self.tgt_vocab) == len(self.vocab)
        )

    def collate_from_file(self, ids: IndexArray, rows: BlockRows) -> Batch:
        """:meth:`collate_indices` straight from the token file."""
        pad = self.vocab.pad()
        tokens, starts, lengths, at_sentence_start = rows
        target = collate_rows(
            tokens, starts, lengths, pad, pad_to_length=self.fixed_pad_length, pad_to_bsz=self.pad_to_bsz
        )
        # The token before a block, where the same sentence has one: never the one before the file.
        before = tokens[np.where(at_sentence_start, starts, starts - 1)].astype(np.int64)
        count, src_lengths = len(ids), torch.from_numpy(lengths)
        source = torch.full_like(target, pad)
        source[:count, 0] = torch.from_numpy(np.where(at_sentence_start, self.dataset.eos, before))
        source[:, 1:] = target[:, :-1]
        shorter = torch.nonzero(src_lengths < target.size(1)).squeeze(1)
        source[shorter, src_lengths[shorter]] = pad
        return assemble(torch.from_numpy(ids), source, src_lengths, target)

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    def num_tokens_vec(self, indices: IndexArray) -> npt.NDArray[Any]:
        return self.sizes[indices]

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def ordered_indices(self) -> IndexArray:
        """By length, then at random (or as they come)."""
        indices = np.arange(len(self), dtype=np.int64)
        if self.shuffle:
            place = np.random.permutation(len(self))  # of each sample among those of its length
            indices[place] = np.arange(len(self))
        return ordered_by(indices, self.sizes)

    @property
    def supports_prefetch(self) -> bool:
        return getattr(self.dataset, "supports_prefetch", False)

    def prefetch(self, indices: Iterable[int]) -> None:
        self.dataset.prefetch(indices)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return getattr(self.dataset, "can_reuse_epoch_itr_across_epochs", True)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def prepend(tokens: Tensor, symbol: int) -> Tensor:
    """``tokens`` [n] behind ``symbol``."""
    return torch.cat([tokens.new_tensor([symbol]), tokens])
