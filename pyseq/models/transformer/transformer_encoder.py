"""The transformer encoder.

Sizes: B sentences, S source positions, C = encoder embedding dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyseq.models.encoder import Encoder
from pyseq.models.transformer.common import drop_idle_mask, layer_list
from pyseq.models.transformer.packed import can_pack, is_faster
from pyseq.modules import Dropout, LayerNorm, PositionalEmbedding, TransformerEncoderLayer, checkpoint_activations
from pyseq.modules.packing import PackedMask, Packing
from pyseq.modules.transformer_config import TransformerConfig
from pyseq.utils import inherits

if TYPE_CHECKING:
    from pyseq.data.dictionary import Dictionary

EncoderOut = dict[str, list[Tensor]]


class TransformerEncoder(Encoder):
    """Token and position embeddings, then ``encoder_layers`` layers.

    Args:
        args: a :class:`TransformerConfig`, or a namespace with its options.
        dictionary: the source dictionary.
        embed_tokens: the token embeddings.
    """

    version: Tensor

    def __init__(self, args: Any, dictionary: Dictionary, embed_tokens: nn.Embedding) -> None:
        self.args = args
        self.cfg = cfg = TransformerConfig.from_namespace(args)
        super().__init__(dictionary)
        self.register_buffer("version", torch.tensor([3.0]))
        self.dropout_module = Dropout(cfg.dropout, module_name=type(self).__name__)
        self.encoder_layerdrop = cfg.encoder_layerdrop

        dim = embed_tokens.embedding_dim
        self.padding_idx: int = dictionary.pad()
        self.max_source_positions = cfg.max_source_positions
        self.embed_tokens = embed_tokens
        self.embed_scale = 1.0 if cfg.no_scale_embedding else math.sqrt(dim)
        self.embed_positions = (
            None
            if cfg.no_token_positional_embeddings
            else PositionalEmbedding(cfg.max_source_positions, dim, self.padding_idx, learned=cfg.encoder_learned_pos)
        )
        self.layernorm_embedding = LayerNorm(dim) if cfg.layernorm_embedding else None
        self.layers = layer_list(cfg.encoder_layerdrop)
        self.layers.extend([self.build_encoder_layer(cfg) for _ in range(cfg.encoder_layers)])
        self.num_layers = len(self.layers)
        self.layer_norm = LayerNorm(dim) if cfg.encoder_normalize_before else None

    def build_encoder_layer(self, args: Any) -> nn.Module:
        layer = TransformerEncoderLayer(args)
        return checkpoint_activations(layer) if args.checkpoint_activations else layer

    def forward_embedding(self, src_tokens: Tensor, token_embedding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embed.

        Args:
            src_tokens: [B x S].
            token_embedding: [B x S x C], instead of looking the tokens up.

        Returns:
            What the first layer gets, and the scaled token embeddings alone, both [B x S x C].
        """
        return self._embed(src_tokens, token_embedding)

    def _embed(
        self, tokens: Tensor, token_embedding: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if token_embedding is None:
            token_embedding = self.embed_tokens(tokens)
        x = embed = self.embed_scale * token_embedding
        if self.embed_positions is not None:
            x = embed + self.embed_positions(tokens, positions=positions)
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x), embed

    def forward(  # type: ignore[override]
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> EncoderOut:
        """Encode.

        Args:
            src_tokens: [B x S], padded on either side.
            src_lengths: [B]; not needed.
            return_all_hiddens: return the states between the layers too.
            token_embeddings: [B x S x C], instead of looking the tokens up.

        Returns:
            Lists of one tensor: encoder_out [S x B x C], encoder_padding_mask [B x S] (True at padding),
            encoder_embedding [B x S x C], src_lengths [B x 1]. And encoder_states [S x B x C], as many as asked for;
            src_tokens, empty.
        """
        return self.forward_scriptable(src_tokens, src_lengths, return_all_hiddens, token_embeddings)

    def forward_scriptable(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> EncoderOut:
        """The same as :meth:`forward`, for subclasses that override that to call."""
        padding_mask = src_tokens.eq(self.padding_idx)  # B x S
        x, embedding = self.forward_embedding(src_tokens, token_embeddings)  # B x S x C
        mask = drop_idle_mask(padding_mask)
        if mask is not None:
            x = x.masked_fill(mask.unsqueeze(-1), 0)

        x = x.transpose(0, 1)  # S x B x C
        states = [x] if return_all_hiddens else []
        for layer in self.layers:
            x = layer(x, encoder_padding_mask=mask)
            if return_all_hiddens:
                states.append(x)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return self._output(x, padding_mask, embedding, states)

    @staticmethod
    def _output(x: Tensor, padding_mask: Tensor, embedding: Tensor, states: Sequence[Tensor] = ()) -> EncoderOut:
        return {
            "encoder_out": [x],
            "encoder_padding_mask": [padding_mask],
            "encoder_embedding": [embedding],
            "encoder_states": list(states),
            "src_tokens": [],
            "src_lengths": [(~padding_mask).sum(dim=1, dtype=torch.int32).unsqueeze(1)],
        }

    def forward_torchscript(self, net_input: dict[str, Any]) -> EncoderOut:
        """The same as :meth:`forward` of a batch's ``net_input``, without padding where that is faster."""
        tokens = net_input["src_tokens"]
        plain = net_input.keys() <= {"src_tokens", "src_lengths", "prev_output_tokens"}
        compiled = getattr(self, "_compiled_call_impl", None) is not None
        if not plain or compiled or not is_faster(self, tokens) or not can_pack(self, self):
            output: EncoderOut = super().forward_torchscript(net_input)
            return output
        source = Packing(tokens, self.padding_idx)
        x = source.unpack(self.forward_packed(source)).transpose(0, 1)  # S x B x C
        return self._output(x, tokens.eq(self.padding_idx), self.embed_scale * self.embed_tokens(tokens))

    def forward_packed(self, source: Packing) -> Tensor:
        """The output [N x 1 x C] for the N real tokens of a batch."""
        mask: Any = PackedMask(source.segments, source.segments)
        x = self._embed(source.tokens, positions=source.positions)[0].transpose(0, 1)  # N x 1 x C
        for layer in self.layers:
            x = layer(x, encoder_padding_mask=mask)
        return x if self.layer_norm is None else self.layer_norm(x)

    @property
    def packs(self) -> bool:
        """Whether :meth:`forward_packed` computes what :meth:`forward` does."""
        kept = "forward", "forward_scriptable", "forward_embedding", "forward_packed"
        return inherits(self, TransformerEncoder, *kept) and all(
            getattr(layer, "packs", False) for layer in self.layers
        )

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """The sentences ``new_order`` [B'] of an output, in that order."""
        batch_dim = {"encoder_out": 1, "encoder_states": 1}
        return {
            name: [t.index_select(batch_dim.get(name, 0), new_order) for t in tensors]
            for name, tensors in encoder_out.items()
        }

    def max_positions(self) -> int:
        """The longest source, in tokens."""
        if self.embed_positions is None:
            return self.max_source_positions
        return min(self.max_source_positions, self.embed_positions.max_positions)

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        state_dict.pop(f"{name}.embed_positions._float_tensor", None)
        state_dict.pop(f"{name}.embed_positions.weights", None)
        version = f"{name}.version"
        if version not in state_dict or state_dict[version].item() < 2:
            # Models of that time had no norm after the last layer.
            self.layer_norm = None
            state_dict[version] = torch.tensor([1.0])
