"""The lean loop on pyseq's batches and weights: ``python -m benchmarks.lean_child WARM_UP fp32|bf16 [options]``.

The options are those of pyseq-train. Batches are made before the clock starts, so that the loop never waits for data.
Prints the same figures as train_child.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from torch import Tensor

from .flops import Counter, lengths_of
from .lean_loop import Batch, Sizes, Stopwatch, Training, Transformer, train
from .processes import tell
from .train_child import device_peak, synchronize

UNSUPPORTED = ("attention_dropout", "activation_dropout", "encoder_normalize_before", "decoder_normalize_before")


def build(argv: list[str]) -> tuple[Any, Any, Any]:
    """pyseq's options, task and freshly initialised model."""
    from pyseq import utils
    from pyseq.cli.plugins import load_plugins
    from pyseq.config.config import config_from_args
    from pyseq.config.parser import get_training_parser, parse_args_and_arch
    from pyseq.tasks import setup_task

    load_plugins()
    cfg = config_from_args(parse_args_and_arch(get_training_parser(), argv))
    utils.set_all_seeds(cfg.common.seed)
    task = setup_task(cfg.task)
    return cfg, task, task.build_model(cfg.model)


def samples_of(cfg: Any, task: Any, model: Any) -> list[dict[str, Any]]:
    """The batches of the first updates, as pyseq-train sees them; one batch an update."""
    from pyseq.training.epochs import Epochs

    found: list[dict[str, Any]] = []
    for epoch in Epochs(cfg, task, model):
        found += [sample for (sample,) in itertools.islice(epoch.updates, cfg.optimization.max_update - len(found))]
        if len(found) == cfg.optimization.max_update:
            break
    return found


def sizes_of(cfg: Any, task: Any) -> Sizes:
    model = cfg.model
    strange = [name for name in UNSUPPORTED if getattr(model, name, False)]
    if strange:
        raise SystemExit(f"the lean loop has no {', '.join(strange)}")
    return Sizes(
        symbols=len(task.target_dictionary),
        width=model.decoder_embed_dim,
        inner=model.decoder_ffn_embed_dim,
        heads=model.decoder_attention_heads,
        encoder_layers=getattr(model, "encoder_layers", 0),
        decoder_layers=model.decoder_layers,
        dropout=model.dropout,
        padding=task.target_dictionary.pad(),
    )


def with_weights(model: Transformer, weights: dict[str, Tensor]) -> Transformer:
    """Give the loop's model the weights of pyseq's."""
    own = {"embedding.weight": weights["decoder.embed_tokens.weight"]}
    for name, place in (("encoder", "encoder"), ("decoder", "decoder")):
        for number in range(len(getattr(model, name))):
            own |= {f"{name}.{number}.{key}": v for key, v in _layer(weights, f"{place}.layers.{number}").items()}
    model.load_state_dict(own)
    return model


def _layer(weights: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def take(own: str, *names: str) -> None:
        for kind in ("weight", "bias"):
            found[f"{own}.{kind}"] = torch.cat([weights[f"{layer}.{name}.{kind}"] for name in names])

    take("attention.inputs", *(f"self_attn.{one}_proj" for one in "qkv"))
    take("attention.output", "self_attn.out_proj")
    take("norm", "self_attn_layer_norm")
    if f"{layer}.encoder_attn.q_proj.weight" in weights:
        take("cross.queries", "encoder_attn.q_proj")
        take("cross.inputs", *(f"encoder_attn.{one}_proj" for one in "kv"))
        take("cross.output", "encoder_attn.out_proj")
        take("cross_norm", "encoder_attn_layer_norm")
    for own, name in (("up", "fc1"), ("down", "fc2"), ("last_norm", "final_layer_norm")):
        take(own, name)
    return found


def training_of(cfg: Any, symbols: int, bf16: bool) -> Training:
    """The recipe's optimizer and schedule: inverse_sqrt from a learning rate of 0."""
    warm_up, rate = cfg.lr_scheduler.warmup_updates, cfg.optimization.lr[0]
    smoothing = getattr(cfg.criterion, "label_smoothing", 0.0)
    first, second = _pair(cfg.optimizer.adam_betas)
    return Training(
        learning_rate=lambda update: rate * (update / warm_up if update < warm_up else (warm_up / update) ** 0.5),
        betas=(first, second),
        weight_decay=cfg.optimizer.weight_decay,
        clip_norm=cfg.optimization.clip_norm,
        # fairseq spreads it over the other classes, torch over all
        label_smoothing=smoothing * symbols / (symbols - 1),
        bf16=bf16,
    )


def _pair(betas: Any) -> tuple[float, float]:
    first, second = betas.strip("()[] ").split(",") if isinstance(betas, str) else betas
    return float(first), float(second)


def main(argv: list[str]) -> None:
    warm_up, precision = int(argv[0]), argv[1]
    cfg, task, pyseq_model = build(argv[2:])
    device = torch.device("cuda" if torch.cuda.is_available() and not cfg.common.cpu else "cpu")
    sizes = sizes_of(cfg, task)
    pairs = sizes.encoder_layers > 0
    samples = samples_of(cfg, task, pyseq_model)
    counter = Counter(pyseq_model)
    counts = [counter.of(*lengths_of(sample, sizes.padding, pairs)) for sample in samples]
    batches = [
        Batch(
            sample["net_input"]["src_tokens"].to(device) if pairs else None,
            sample["net_input"]["prev_output_tokens" if pairs else "src_tokens"].to(device),
            sample["target"].to(device),
            int(sample["ntokens"]),
        )
        for sample in samples
    ]
    model = with_weights(Transformer(sizes), pyseq_model.state_dict()).to(device)
    del pyseq_model, samples
    watch = Stopwatch()

    def after(done: int) -> None:
        if done == warm_up:
            synchronize()
            watch.restart()

    losses = train(model, batches, training_of(cfg, sizes.symbols, precision == "bf16"), watch, after)
    synchronize()
    watch.lap("other")
    counted = len(batches) - warm_up
    seconds = watch.last - watch.begin
    tell(
        {
            "seconds": seconds,
            "tokens": sum(batch.tokens for batch in batches[warm_up:]),
            "flops": sum(counts[warm_up:]),
            "updates": counted,
            "parts": {name: spent / counted for name, spent in watch.parts.items()},
            "losses": [float(loss) for loss in losses],
            "device_bytes": device_peak(),
        }
    )


if __name__ == "__main__":
    main(sys.argv[1:])
