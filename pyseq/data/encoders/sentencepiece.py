"""SentencePiece subwords: the first piece of a word begins with U+2581."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyseq.config.group import ConfigGroup
from pyseq.data.encoders import register_bpe
from pyseq.data.encoders.requirements import existing_file, required
from pyseq.data.post_process import post_process
from pyseq.errors import ConfigError

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


@dataclass
class SentencePieceConfig(ConfigGroup):
    """The model, and sampling of segmentations as regularisation (Kudo 2018, https://arxiv.org/abs/1804.10959)."""

    sentencepiece_model: str | None = field(default=None, metadata={"help": "path to the sentencepiece model"})
    sentencepiece_enable_sampling: bool = field(default=False, metadata={"help": "sample a segmentation"})
    sentencepiece_alpha: float | None = field(
        default=None, metadata={"help": "smoothing of unigram sampling, or merge probability of BPE dropout"}
    )


@register_bpe("sentencepiece", dataclass=SentencePieceConfig)
class SentencePieceBPE:
    """Raises ConfigError if sentencepiece is not installed, or the model is missing or damaged."""

    def __init__(self, cfg: SentencePieceConfig) -> None:
        self.cfg = cfg
        model = existing_file(cfg.sentencepiece_model, "--sentencepiece-model", "--bpe sentencepiece")
        package = required("sentencepiece", "--bpe sentencepiece")
        self.processor = package.SentencePieceProcessor()
        try:
            self.processor.Load(model)
        except (RuntimeError, OSError) as error:
            raise ConfigError(f"--sentencepiece-model {model}: not a sentencepiece model ({error})") from error

    def encode(self, x: str) -> str:
        sampling = {}
        if self.cfg.sentencepiece_enable_sampling:
            sampling = {"enable_sampling": True, "nbest_size": -1, "alpha": self.cfg.sentencepiece_alpha}
        return " ".join(self.processor.Encode(x, out_type=str, **sampling))

    def decode(self, x: str) -> str:
        return post_process(x, "sentencepiece")

    def is_beginning_of_word(self, x: str) -> bool:
        """Whether a piece begins a word; special symbols, which the model has too, do."""
        return x in SPECIAL or x.startswith("\u2581")
