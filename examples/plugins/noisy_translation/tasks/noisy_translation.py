"""Translation that learns from sources with words missing (word dropout, Iyyer et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pyseq.config import II
from pyseq.data import BaseWrapperDataset, Dictionary
from pyseq.errors import ConfigError
from pyseq.tasks import register_task
from pyseq.tasks.translation import TranslationConfig, TranslationTask


class WordDropout(BaseWrapperDataset):
    """Replaces words of the source by <unk>, other ones in each epoch.

    What is replaced depends on seed, epoch and sample alone, so a run can be repeated, with any number of workers.
    """

    def __init__(self, dataset: Any, dictionary: Dictionary, probability: float, seed: int) -> None:
        super().__init__(dataset)
        self.dictionary, self.probability, self.seed = dictionary, probability, seed
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        source = sample["source"].clone()
        draws = np.random.default_rng((self.seed, self.epoch, index)).random(len(source))
        drop = torch.from_numpy(draws < self.probability) & source.ne(self.dictionary.eos())
        source[drop] = self.dictionary.unk()
        return {**sample, "source": source}


@dataclass
class NoisyTranslationConfig(TranslationConfig):
    """The options of the translation task, and these."""

    word_dropout: float = field(
        default=0.1, metadata={"help": "probability with which a source word is replaced by <unk> in training"}
    )
    seed: int = II("common.seed")


@register_task("noisy_translation", dataclass=NoisyTranslationConfig)
class NoisyTranslationTask(TranslationTask):
    cfg: NoisyTranslationConfig

    def load_dataset(self, split: str, *args: Any, **kwargs: Any) -> None:
        if not 0 <= self.cfg.word_dropout < 1:
            raise ConfigError(f"--word-dropout {self.cfg.word_dropout:g}: must be at least 0 and below 1")
        super().load_dataset(split, *args, **kwargs)
        if split == self.cfg.train_subset:
            dataset = self.datasets[split]
            self.datasets[split] = WordDropout(dataset, self.src_dict, self.cfg.word_dropout, self.cfg.seed)
