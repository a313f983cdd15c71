"""The bases of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyseq.config.flags import add_group_arguments
from pyseq.errors import CheckpointError
from pyseq.models.decoder import Decoder
from pyseq.models.encoder import Encoder
from pyseq.models.linear_output import LinearOutput
from pyseq.models.state_dict import describe_misfit, prune_layers, upgrade_children
from pyseq.modules.linear import is_hooked
from pyseq.registry import Optioned
from pyseq.utils import inherits

if TYPE_CHECKING:
    from typing_extensions import Self


class BaseModel(nn.Module, Optioned):
    """A model: a plug-in subclasses this or one of the classes below and registers with ``register_model``."""

    # Compute without padding: True or False, or None for where that is faster. See :meth:`can_pack`.
    pack_sequences: bool | None = None

    def __init__(self) -> None:
        super().__init__()
        self._is_generation_fast = False

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add the model's options to an argparse group. A model registered with a dataclass has them from there.

        What is not given stays out of the namespace, so that the architecture can fill it in.
        """
        if cls.config_group is not None:
            add_group_arguments(parser, cls.config_group, suppress_defaults=True)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> Self:
        """Make the model.

        Args:
            args: the model's dataclass; without one, the namespace of all options, filled in by the architecture.
            task: what it is for; its dictionaries say how many symbols there are.
        """
        raise NotImplementedError(f"{cls.__name__} has no build_model(cls, args, task)")

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return {}

    def get_targets(self, sample: dict[str, Any], net_output: Any) -> Tensor:
        """The target tokens [B x T] of a batch."""
        return sample["target"]

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: dict[str, Any] | None = None) -> Tensor:
        """Probabilities, or their logarithms, of what ``forward`` returned, in fp32."""
        decoder = getattr(self, "decoder", None)
        if decoder is not None:
            return decoder.get_normalized_probs(net_output, log_probs, sample)
        if torch.is_tensor(net_output):
            return _normalized(net_output, log_probs)
        raise NotImplementedError(f"{type(self).__name__} has no get_normalized_probs")

    def get_logits(self, net_output: Any, sample: dict[str, Any] | None = None) -> Tensor | None:
        """The logits [... x V], if :meth:`get_normalized_probs` is their plain softmax; else None.

        A criterion with the logits needs no log-probabilities. A model or decoder that overrides
        ``get_normalized_probs``, or whose softmax is adaptive, gives None.
        """
        if type(self).get_normalized_probs is not BaseModel.get_normalized_probs:
            return None
        decoder = getattr(self, "decoder", None)
        if decoder is None:
            return net_output if torch.is_tensor(net_output) else None
        plain = getattr(type(decoder), "get_normalized_probs", None) is Decoder.get_normalized_probs
        return net_output[0] if plain and decoder.adaptive_softmax is None else None

    def can_pack(self) -> bool:
        """Whether ``forward`` can leave out the padding of a batch, where ``pack_sequences`` asks for it."""
        return False

    def linear_output(self) -> LinearOutput | None:
        """Weight and bias of the output layer, if the model can do without it; else None, and the model has logits.

        A model that gives them takes ``features_only=True`` in ``forward``, and then returns features [... x C] as the
        first part of its output instead of logits. The logits are ``features @ weight.T + bias``, the probabilities
        their plain softmax, and the targets those of the batch. A criterion can then multiply by the weight itself, a
        few rows at a time. A plug-in with a ``forward`` of its own offers this by overriding the method.
        """
        return None

    def _linear_output_of_decoder(self, base: type) -> LinearOutput | None:
        """That of the decoder, if ``forward`` and what follows it are those of the class ``base``."""
        kept = "forward", "output_layer", "get_normalized_probs", "get_logits", "get_targets"
        if not inherits(self, base, *kept) or is_hooked(self):
            return None
        offered = getattr(self.decoder, "linear_output", None)
        return None if offered is None else offered()

    def extract_features(self, *args: Any, **kwargs: Any) -> Any:
        """As ``forward``, without the output layer."""
        return self(*args, **kwargs)

    def max_positions(self) -> Any:
        """The longest input: a number, a tuple of one a side, or None for no limit."""
        return None

    def load_state_dict(  # type: ignore[override]
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        model_cfg: Any = None,
        args: Any = None,
        assign: bool = False,
    ) -> Any:
        """Load parameters; those of old checkpoints are brought up to date first. ``state_dict`` is not changed.

        Args:
            state_dict: parameters and buffers by name.
            strict: insist that the names are exactly those of this model.
            model_cfg: the model's options. Its ``*_layers_to_keep`` select layers of a deeper model, and are reset.
            args: the same, for callers that pass a namespace.
            assign: see ``nn.Module.load_state_dict``.

        Raises:
            CheckpointError: the parameters are those of another model.
        """
        state = dict(state_dict)
        self.upgrade_state_dict(state)
        state = prune_layers(state, args if model_cfg is None else model_cfg)
        try:
            return super().load_state_dict(state, strict=strict, assign=assign)
        except RuntimeError as error:
            misfit = describe_misfit(self, state)
            if not misfit:
                raise
            raise CheckpointError(misfit) from error

    def upgrade_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Bring an old checkpoint's parameters up to date, in place."""
        self.upgrade_state_dict_named(state_dict, "")

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """The same for entries below ``name``: every sub-module is asked."""
        upgrade_children(self, state_dict, name)

    def set_num_updates(self, num_updates: int) -> None:
        """Tell every module below that wants to know how many updates were made."""
        self._tell("set_num_updates", num_updates)

    def set_epoch(self, epoch: int) -> None:
        """Tell every module below that wants to know which epoch it is."""
        self._tell("set_epoch", epoch)

    def _tell(self, hook: str, value: int) -> None:
        for module in self.modules():
            listener = getattr(module, hook, None)
            if module is not self and listener is not None:
                listener(value)

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Make the model ready to generate, for good, by the options ``cfg.generation``."""
        generation = getattr(cfg, "generation", cfg)
        options: dict[str, Any] = {
            "beamable_mm_beam_size": getattr(generation, "beam", 5),
            "need_attn": bool(getattr(generation, "print_alignment", None)),
        }
        if getattr(generation, "retain_dropout", False):
            options["retain_dropout"] = True
            options["retain_dropout_modules"] = getattr(generation, "retain_dropout_modules", None)
        self.make_generation_fast_(**options)

    def make_generation_fast_(self, **kwargs: Any) -> None:
        """Let every module below make itself ready to generate; training is no longer possible."""
        if self._is_generation_fast:
            return
        self._is_generation_fast = True
        for name, module in self.named_modules():
            prepare = getattr(module, "make_generation_fast_", None)
            if module is not self and prepare is not None and not isinstance(module, BaseModel):
                prepare(name=name, **kwargs)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        if mode and self._is_generation_fast:
            _refuse_training()
        return super().train(mode)


def _refuse_training() -> NoReturn:
    raise RuntimeError("this model was made ready for generation and cannot be trained any more; load it again")


def _normalized(logits: Tensor, log_probs: bool) -> Tensor:
    softmax = F.log_softmax if log_probs else F.softmax
    return softmax(logits, dim=-1, dtype=torch.float32)


def _require(owner: nn.Module, part: Any, base: type) -> None:
    if not isinstance(part, base):
        raise TypeError(f"{type(owner).__name__} needs a {base.__name__}, got a {type(part).__name__}")


class EncoderDecoderModel(BaseModel):
    """Sequence to sequence: an encoder and a decoder."""

    encoder: Any
    decoder: Any

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        _require(self, encoder, Encoder)
        _require(self, decoder, Decoder)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor, **kwargs: Any) -> Any:
        """What the decoder returns: logits [B x T x V] and anything else.

        Args:
            src_tokens: [B x S].
            src_lengths: [B].
            prev_output_tokens: [B x T], the target shifted right by one.
        """
        encoder_out = self.encoder(src_tokens, src_lengths=src_lengths, **kwargs)
        return self.decoder(prev_output_tokens, encoder_out=encoder_out, **kwargs)

    def forward_decoder(self, prev_output_tokens: Tensor, **kwargs: Any) -> Any:
        return self.decoder(prev_output_tokens, **kwargs)

    def extract_features(
        self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor, **kwargs: Any
    ) -> Any:
        """Features [B x T x C], which ``output_layer`` turns into logits, and anything else."""
        encoder_out = self.encoder(src_tokens, src_lengths=src_lengths, **kwargs)
        return self.decoder.extract_features(prev_output_tokens, encoder_out=encoder_out, **kwargs)

    def output_layer(self, features: Tensor, **kwargs: Any) -> Tensor:
        return self.decoder.output_layer(features, **kwargs)

    def max_positions(self) -> tuple[Any, Any]:
        return self.encoder.max_positions(), self.decoder.max_positions()

    def max_decoder_positions(self) -> Any:
        return self.decoder.max_positions()


class LanguageModel(BaseModel):
    """A decoder alone."""

    decoder: Any

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        _require(self, decoder, Decoder)

    def forward(self, src_tokens: Tensor, **kwargs: Any) -> Any:
        """Logits [B x T x V] and anything else. ``src_tokens`` [B x T] is the target shifted right by one."""
        return self.decoder(src_tokens, **kwargs)

    def forward_decoder(self, prev_output_tokens: Tensor, **kwargs: Any) -> Any:
        return self.decoder(prev_output_tokens, **kwargs)

    def extract_features(self, src_tokens: Tensor, **kwargs: Any) -> Any:
        """Features [B x T x C], which ``output_layer`` turns into logits, and anything else."""
        return self.decoder.extract_features(src_tokens, **kwargs)

    def output_layer(self, features: Tensor, **kwargs: Any) -> Tensor:
        return self.decoder.output_layer(features, **kwargs)

    def max_positions(self) -> Any:
        return self.decoder.max_positions()

    def max_decoder_positions(self) -> Any:
        return self.decoder.max_positions()

    @property
    def supported_targets(self) -> set[str]:
        return {"future"}


class EncoderModel(BaseModel):
    """An encoder alone, which returns logits as ``encoder_out``."""

    encoder: Any

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        _require(self, encoder, Encoder)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **kwargs: Any) -> Any:
        """What the encoder returns. ``src_tokens`` is [B x S], ``src_lengths`` [B]."""
        return self.encoder(src_tokens, src_lengths, **kwargs)

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: dict[str, Any] | None = None) -> Tensor:
        logits = net_output["encoder_out"]
        if not torch.is_tensor(logits):
            raise NotImplementedError(f"{type(self).__name__} has no get_normalized_probs")
        return _normalized(logits, log_probs)

    def max_positions(self) -> Any:
        return self.encoder.max_positions()
