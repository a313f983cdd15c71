"""GRU encoder and decoder with attention (Luong et al., 2015, https://arxiv.org/abs/1508.04025)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pyseq import utils
from pyseq.config import ConfigGroup
from pyseq.data import Dictionary
from pyseq.models import Encoder, EncoderDecoderModel, IncrementalDecoder, register_model, register_model_architecture
from pyseq.modules import Embedding


@dataclass
class GRUConfig(ConfigGroup):
    embed_dim: int = field(default=256, metadata={"help": "size of the embeddings"})
    hidden_dim: int = field(default=256, metadata={"help": "size of the hidden states; even"})
    dropout: float = field(default=0.1, metadata={"help": "dropout on embeddings and on the decoder's features"})


class GRUEncoder(Encoder):
    def __init__(self, cfg: GRUConfig, dictionary: Dictionary) -> None:
        super().__init__(dictionary)
        self.padding_idx = dictionary.pad()
        self.embed_tokens = Embedding(len(dictionary), cfg.embed_dim, self.padding_idx)
        self.dropout = nn.Dropout(cfg.dropout)
        self.gru = nn.GRU(cfg.embed_dim, cfg.hidden_dim // 2, bidirectional=True, batch_first=True)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        # Sources come padded on the left; a packed sequence wants its padding on the right.
        tokens = utils.convert_padding_direction(src_tokens, self.padding_idx, left_to_right=True)
        packed = pack_padded_sequence(
            self.dropout(self.embed_tokens(tokens)), src_lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        outputs, last = self.gru(packed)
        outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=tokens.size(1))
        state = last.transpose(0, 1).flatten(1).unsqueeze(0)
        return {"outputs": outputs, "padding_mask": tokens.eq(self.padding_idx), "state": state}  # BSH, BS, 1BH

    def reorder_encoder_out(self, encoder_out: dict[str, Tensor], new_order: Tensor) -> dict[str, Tensor]:
        return {name: value.index_select(1 if name == "state" else 0, new_order) for name, value in encoder_out.items()}


class GRUDecoder(IncrementalDecoder):
    def __init__(self, cfg: GRUConfig, dictionary: Dictionary) -> None:
        super().__init__(dictionary)
        self.embed_tokens = Embedding(len(dictionary), cfg.embed_dim, dictionary.pad())
        self.dropout = nn.Dropout(cfg.dropout)
        self.gru = nn.GRU(cfg.embed_dim, cfg.hidden_dim, batch_first=True)
        self.query = nn.Linear(cfg.hidden_dim, cfg.hidden_dim, bias=False)
        self.combine = nn.Linear(2 * cfg.hidden_dim, cfg.embed_dim)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        state = encoder_out["state"]
        if incremental_state is not None:
            prev_output_tokens = prev_output_tokens[:, -1:]
            state = self.get_incremental_state(incremental_state, "state")
            state = encoder_out["state"] if state is None else state
        hidden, state = self.gru(self.dropout(self.embed_tokens(prev_output_tokens)), state.contiguous())
        self.set_incremental_state(incremental_state, "state", state)
        scores = self.query(hidden) @ encoder_out["outputs"].transpose(1, 2)  # BTS
        weights = scores.masked_fill(encoder_out["padding_mask"].unsqueeze(1), -torch.inf).softmax(-1)
        context = weights @ encoder_out["outputs"]  # BTH
        features = self.dropout(torch.tanh(self.combine(torch.cat([hidden, context], dim=-1))))
        return F.linear(features, self.embed_tokens.weight), {}  # BTV

    def reorder_incremental_state(self, incremental_state: dict[str, Any], new_order: Tensor) -> None:
        state = self.get_incremental_state(incremental_state, "state")
        if state is not None:
            self.set_incremental_state(incremental_state, "state", state.index_select(1, new_order))


@register_model("gru", dataclass=GRUConfig)
class GRUModel(EncoderDecoderModel):
    @classmethod
    def build_model(cls, cfg: GRUConfig, task: Any) -> GRUModel:
        return cls(GRUEncoder(cfg, task.source_dictionary), GRUDecoder(cfg, task.target_dictionary))


@register_model_architecture("gru", "gru_wide")
def gru_wide(args: Any) -> None:
    args.hidden_dim = getattr(args, "hidden_dim", 1024)
