"""The transformer decoder.

Sizes: B sentences, T target and S source positions, C = decoder embedding dimension, V symbols.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyseq.models.incremental_decoder import IncrementalDecoder
from pyseq.models.linear_output import LinearOutput, linear_output_of
from pyseq.models.transformer.common import drop_idle_mask, layer_list
from pyseq.models.transformer.step_decoding import PreparedWeights, StepDecoding, can_step
from pyseq.modules import (
    Dropout,
    LayerNorm,
    PositionalEmbedding,
    TransformerDecoderLayer,
    checkpoint_activations,
    xavier_linear,
)
from pyseq.modules.causal_mask import future_mask, mark_causal
from pyseq.modules.linear import is_hooked
from pyseq.modules.packing import PackedMask, Packing
from pyseq.modules.transformer_config import TransformerConfig
from pyseq.utils import inherits

if TYPE_CHECKING:
    from pyseq.data.dictionary import Dictionary


class TransformerDecoder(IncrementalDecoder):
    """Token and position embeddings, ``decoder_layers`` layers, and the projection onto the dictionary.

    Args:
        args: a :class:`TransformerConfig`, or a namespace with its options.
        dictionary: the target dictionary.
        embed_tokens: the token embeddings.
        no_encoder_attn: leave out the attention to the encoder (a language model).
        output_projection: used instead of a new one.
    """

    version: Tensor

    def __init__(
        self,
        args: Any,
        dictionary: Dictionary,
        embed_tokens: nn.Embedding,
        no_encoder_attn: bool = False,
        output_projection: nn.Module | None = None,
    ) -> None:
        self.args = args
        self.cfg = cfg = TransformerConfig.from_namespace(args)
        super().__init__(dictionary)
        self.register_buffer("version", torch.tensor([3.0]))
        self._future_mask = torch.empty(0, 0)
        self.dropout_module = Dropout(cfg.dropout, module_name=type(self).__name__)
        self.decoder_layerdrop = cfg.decoder_layerdrop
        self.share_input_output_embed = cfg.share_decoder_input_output_embed
        self.cross_self_attention = cfg.cross_self_attention
        self.left_pad_target = cfg.left_pad_target
        self.need_attn = False
        self.cuda_graphs = False
        self._prepared = PreparedWeights()

        input_dim, dim = embed_tokens.embedding_dim, cfg.decoder_embed_dim
        self.embed_dim = dim
        self.output_embed_dim = cfg.decoder_output_dim
        self.padding_idx: int = dictionary.pad()
        self.max_target_positions = cfg.max_target_positions
        self.embed_tokens = embed_tokens
        self.embed_scale = 1.0 if cfg.no_scale_embedding else math.sqrt(dim)
        self.project_in_dim = xavier_linear(input_dim, dim, bias=False) if input_dim != dim else None
        self.embed_positions = (
            None
            if cfg.no_token_positional_embeddings
            else PositionalEmbedding(cfg.max_target_positions, dim, self.padding_idx, learned=cfg.decoder_learned_pos)
        )
        self.layernorm_embedding = LayerNorm(dim) if cfg.layernorm_embedding else None
        self.layers = layer_list(cfg.decoder_layerdrop)
        self.layers.extend([self.build_decoder_layer(cfg, no_encoder_attn) for _ in range(cfg.decoder_layers)])
        self.num_layers = len(self.layers)
        final_norm = cfg.decoder_normalize_before and not cfg.no_decoder_final_norm
        self.layer_norm = LayerNorm(dim) if final_norm else None
        output_dim = self.output_embed_dim
        self.project_out_dim = xavier_linear(dim, output_dim, bias=False) if output_dim != dim else None
        self.output_projection: Any = output_projection
        if output_projection is None:
            self.build_output_projection(cfg, dictionary, embed_tokens)

    def build_output_projection(self, args: Any, dictionary: Dictionary, embed_tokens: nn.Embedding) -> None:
        if self.share_input_output_embed:
            vocab, dim = embed_tokens.weight.shape
            self.output_projection = nn.Linear(dim, vocab, bias=False)
            self.output_projection.weight = embed_tokens.weight
        else:
            self.output_projection = nn.Linear(self.output_embed_dim, len(dictionary), bias=False)
            nn.init.normal_(self.output_projection.weight, mean=0, std=self.output_embed_dim**-0.5)

    def build_decoder_layer(self, args: Any, no_encoder_attn: bool = False) -> nn.Module:
        layer = TransformerDecoderLayer(args, no_encoder_attn)
        return checkpoint_activations(layer) if args.checkpoint_activations else layer

    def forward(  # type: ignore[override]
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: dict[str, Any] | None = None,
        features_only: bool = False,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Decode.

        Args:
            prev_output_tokens: [B x T], the target shifted right by one.
            encoder_out: what the encoder returned.
            incremental_state: if given, only the last of ``prev_output_tokens`` is new: T is 1 in what is returned.
            features_only: return the features that :meth:`output_layer` takes, instead of logits.
            full_context_alignment: let positions attend to later ones.
            alignment_layer: return the attention to the encoder of this layer (default, once asked for: the last).
            alignment_heads: return the mean over this many heads (default, once asked for: all).
            src_lengths, return_all_hiddens: not needed.

        Returns:
            Logits [B x T x V], and a dict of lists: ``attn``, the attention [B x T x S], or None unless
            ``alignment_layer``, ``alignment_heads`` or ``self.need_attn`` asks for it; ``inner_states`` [T x B x C]
            (of a step that :meth:`new_incremental_state` made faster, the last alone).
        """
        x, extra = self.extract_features(
            prev_output_tokens,
            encoder_out=encoder_out,
            incremental_state=incremental_state,
            full_context_alignment=full_context_alignment,
            alignment_layer=alignment_layer,
            alignment_heads=alignment_heads,
        )
        return (x if features_only else self.output_layer(x)), extra

    def extract_features(  # type: ignore[override]
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: dict[str, Any] | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """As :meth:`forward`, but features [B x T x C] instead of logits."""
        return self.extract_features_scriptable(
            prev_output_tokens, encoder_out, incremental_state, full_context_alignment, alignment_layer, alignment_heads
        )

    def extract_features_scriptable(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None,
        incremental_state: dict[str, Any] | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The same as :meth:`extract_features`, for subclasses that override that to call."""
        need_attn = self.need_attn or alignment_layer is not None or alignment_heads is not None
        if alignment_layer is None:
            alignment_layer = self.num_layers - 1
        enc, padding_mask = self._source(encoder_out)
        steps: StepDecoding | None = self.get_incremental_state(incremental_state, "steps")
        if steps is not None:
            if need_attn:
                raise ValueError("set need_attn before new_incremental_state(): this state keeps no attention")
            x = self.forward_embedding(prev_output_tokens, incremental_state).transpose(0, 1)  # 1 x B x C
            x = steps.step(x, enc, padding_mask, prev_output_tokens[:, -1].eq(self.padding_idx))
            return self._end(x), {"attn": [None], "inner_states": [x]}
        causal = incremental_state is None and not full_context_alignment
        self_padding_mask = self.padding_mask(prev_output_tokens, causal, incremental_state is not None)
        x = self.forward_embedding(prev_output_tokens, incremental_state)  # B x T x C

        x = x.transpose(0, 1)  # T x B x C
        self_attn_mask = self.buffered_future_mask(x) if causal else None
        attn: Tensor | None = None
        inner_states = [x]
        for index, layer in enumerate(self.layers):
            wanted = need_attn and index == alignment_layer
            x, layer_attn, _ = layer(
                x,
                enc,
                padding_mask,
                incremental_state,
                self_attn_mask=self_attn_mask,
                self_attn_padding_mask=self_padding_mask,
                need_attn=wanted,
                need_head_weights=wanted,
            )
            inner_states.append(x)
            if wanted and layer_attn is not None:
                attn = layer_attn[:alignment_heads].mean(dim=0)  # B x T x S
        return self._end(x), {"attn": [attn], "inner_states": inner_states}

    def _end(self, x: Tensor) -> Tensor:
        """What follows the layers: [T x B x C] to features [B x T x C]."""
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        x = x.transpose(0, 1)  # B x T x C
        return x if self.project_out_dim is None else self.project_out_dim(x)

    def new_incremental_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if not self.need_attn and not self.training and can_step(self.layers):
            weights, graphs = self._prepared.of(self.layers), self._prepared.graphs if self.cuda_graphs else None
            self.set_incremental_state(state, "steps", StepDecoding(weights, graphs))
        return state

    def reads_encoder_out(self, incremental_state: dict[str, Any]) -> bool:
        return self.get_incremental_state(incremental_state, "steps") is None

    def reorder_incremental_state(self, incremental_state: dict[str, Any], new_order: Tensor) -> dict[str, Any] | None:
        steps: StepDecoding | None = self.get_incremental_state(incremental_state, "steps")
        if steps is not None:
            steps.reorder(new_order)
        return None

    def reorder_incremental_state_scripting(self, incremental_state: dict[str, Any], new_order: Tensor) -> None:
        if len(incremental_state) == 1 and not self.reads_encoder_out(incremental_state):
            self.reorder_incremental_state(incremental_state, new_order)  # no other module has a state
        else:
            super().reorder_incremental_state_scripting(incremental_state, new_order)

    def forward_embedding(self, tokens: Tensor, incremental_state: dict[str, Any] | None = None) -> Tensor:
        """What the first layer gets [B x T x C]; with an incremental state, of the last of ``tokens`` [B x T] alone."""
        places = None
        if self.embed_positions is not None:
            places = self.embed_positions(tokens, incremental_state=incremental_state)
        return self._embed(tokens if incremental_state is None else tokens[:, -1:], places)

    def _embed(self, tokens: Tensor, places: Tensor | None) -> Tensor:
        """The embeddings of ``tokens`` [B x T] with the vectors ``places`` [B x T x C] of where they stand."""
        x = self.embed_scale * self.embed_tokens(tokens)
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        if places is not None:
            x = x + places
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x)

    def forward_packed(
        self, target: Packing, encoder_out: Tensor | None = None, source: Packing | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Features of the N real target tokens of a batch, and the states between the layers.

        Args:
            target: the tokens, shifted right by one.
            encoder_out: what the encoder made of the M real tokens of ``source`` [M x 1 x C].

        Returns:
            [N x 1 x C] each.
        """
        tokens, segments = target.tokens, target.segments
        places = None if self.embed_positions is None else self.embed_positions(tokens, positions=target.positions)
        x = self._embed(tokens, places).transpose(0, 1)  # N x 1 x C
        own: Any = PackedMask(segments, segments, causal=True)
        cross: Any = None if source is None else PackedMask(segments, source.segments)
        states = [x]
        for layer in self.layers:
            x = layer(x, encoder_out, cross, self_attn_padding_mask=own)[0]
            states.append(x)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return x if self.project_out_dim is None else self.project_out_dim(x), states

    @property
    def packs(self) -> bool:
        """Whether :meth:`forward_packed` computes the features that :meth:`forward` does."""
        kept = "forward", "extract_features", "extract_features_scriptable", "forward_embedding", "forward_packed"
        return (
            inherits(self, TransformerDecoder, *kept, "padding_mask", "buffered_future_mask")
            and not (self.need_attn or self.cross_self_attention)
            and all(getattr(layer, "packs", False) for layer in self.layers)
        )

    @staticmethod
    def _source(encoder_out: dict[str, list[Tensor]] | None) -> tuple[Tensor | None, Tensor | None]:
        """The encoder's output [S x B x C] and its padding mask [B x S], None if nothing is padded."""
        if encoder_out is None or not encoder_out["encoder_out"]:
            return None, None
        masks = encoder_out["encoder_padding_mask"]
        return encoder_out["encoder_out"][0], drop_idle_mask(masks[0]) if masks else None

    def padding_mask(self, tokens: Tensor, causal: bool, incremental: bool) -> Tensor | None:
        """The padding mask for self-attention over ``tokens`` [B x T], or None if there is no need for one.

        The mask is [B x T], True at padding; if incremental, [B x 1], for the last token alone.
        Padding after a sentence is hidden from it by the future mask, and what its own positions get is of no
        consequence. Padding before or within one must be masked. On a GPU, which the host would have to wait for to
        find such padding, ``left_pad_target`` says whether there is any.
        """
        mask = tokens.eq(self.padding_idx)
        if incremental:
            mask = mask[:, -1:]
        if self.cross_self_attention or not (causal or incremental):
            return drop_idle_mask(mask)
        if mask.device.type != "cpu" or torch.compiler.is_compiling():
            return mask if self.left_pad_target else None
        hides = mask.any() if incremental else (mask[:, :-1] & ~mask[:, 1:]).any()
        return mask if hides else None

    def buffered_future_mask(self, tensor: Tensor) -> Tensor:
        """-inf above the diagonal [T x T], for ``tensor`` [T x B x C]."""
        size = tensor.size(0)
        if torch.compiler.is_compiling():  # would compile anew whenever the kept mask grows
            return mark_causal(future_mask(size, tensor.dtype, tensor.device))
        kept = self._future_mask
        if kept.size(0) < size or kept.dtype != tensor.dtype or kept.device != tensor.device:
            self._future_mask = kept = future_mask(size, tensor.dtype, tensor.device)
        return mark_causal(kept[:size, :size])

    def output_layer(self, features: Tensor) -> Tensor:
        """Features [B x T x C] to logits [B x T x V]."""
        return self.output_projection(features)

    def linear_output(self) -> LinearOutput | None:
        kept = "forward", "output_layer", "get_normalized_probs"
        if not inherits(self, TransformerDecoder, *kept) or is_hooked(self) or self.adaptive_softmax is not None:
            return None
        return linear_output_of(self.output_projection)

    def max_positions(self) -> int:
        """The longest target, in tokens."""
        if self.embed_positions is None:
            return self.max_target_positions
        return min(self.max_target_positions, self.embed_positions.max_positions)

    def make_generation_fast_(self, need_attn: bool = False, **kwargs: Any) -> None:
        self.need_attn = need_attn

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        state_dict.pop(f"{name}.embed_positions._float_tensor", None)
        state_dict.pop(f"{name}.embed_positions.weights", None)
        projection = f"{name}.output_projection.weight"
        if projection not in state_dict:
            if self.share_input_output_embed and f"{name}.embed_tokens.weight" in state_dict:
                state_dict[projection] = state_dict[f"{name}.embed_tokens.weight"]
            elif f"{name}.embed_out" in state_dict:
                state_dict[projection] = state_dict.pop(f"{name}.embed_out")
        version = f"{name}.version"
        if version not in state_dict or state_dict[version].item() <= 2:
            # Models of that time had no norm after the last layer.
            self.layer_norm = None
            state_dict[version] = torch.tensor([1.0])
