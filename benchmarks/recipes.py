"""What is trained, and the ways to train it: command lines for pyseq-train, and what is switched in them."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from .harness import Unavailable

QUIET = shlex.split("--no-save --disable-validation --log-format none --seed 1")

# Multi30k; published with BLEU 41.02 by Wu et al., 2021
TINY = shlex.split(
    "--source-lang en --target-lang de --arch transformer_iwslt_de_en --encoder-layers 4 --decoder-layers 4 "
    "--encoder-embed-dim 128 --decoder-embed-dim 128 --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256 "
    "--encoder-attention-heads 4 --decoder-attention-heads 4 --dropout 0.3 --share-all-embeddings "
    "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --optimizer adam --adam-betas '(0.9,0.98)' "
    "--lr-scheduler inverse_sqrt --lr 0.005 --warmup-updates 2000 --max-tokens 4096 --clip-norm 25"
)
IWSLT = shlex.split(
    "--source-lang en --target-lang de --arch transformer_iwslt_de_en --dropout 0.3 --share-all-embeddings "
    "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --optimizer adam --adam-betas '(0.9,0.98)' "
    "--lr-scheduler inverse_sqrt --lr 5e-4 --warmup-updates 4000 --max-tokens 4096 --clip-norm 1"
)
LM = shlex.split(
    "--task language_modeling --arch transformer_lm --decoder-layers 6 --decoder-embed-dim 512 "
    "--decoder-ffn-embed-dim 2048 --decoder-attention-heads 8 --share-decoder-input-output-embed --dropout 0.1 "
    "--criterion cross_entropy --optimizer adam --adam-betas '(0.9,0.98)' --weight-decay 0.01 --clip-norm 1 "
    "--lr-scheduler inverse_sqrt --lr 5e-4 --warmup-updates 4000 --tokens-per-sample 256 --max-tokens 2048"
)
BIG = shlex.split(
    "--source-lang en --target-lang de --arch transformer_vaswani_wmt_en_de_big --share-all-embeddings --dropout 0.3 "
    "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --optimizer adam --adam-betas '(0.9,0.98)' "
    "--lr-scheduler inverse_sqrt --lr 5e-4 --warmup-updates 4000 --max-tokens 16384 --clip-norm 1"
)
GPT2_MEDIUM = shlex.split(
    "--task language_modeling --arch transformer_lm_gpt2_medium --share-decoder-input-output-embed "
    "--criterion cross_entropy --optimizer adam --adam-betas '(0.9,0.98)' --weight-decay 0.01 --clip-norm 1 "
    "--lr-scheduler inverse_sqrt --lr 2e-4 --warmup-updates 2000 --tokens-per-sample 1024 --max-tokens 16384"
)
# Sizes for a smoke run, after the recipe's own
SMALL_PAIRS = shlex.split(
    "--encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16 --decoder-embed-dim 16 --encoder-ffn-embed-dim 32 "
    "--decoder-ffn-embed-dim 32 --encoder-attention-heads 2 --decoder-attention-heads 2 --max-tokens 200"
)
SMALL_LM = shlex.split(
    "--decoder-layers 1 --decoder-embed-dim 16 --decoder-input-dim 16 --decoder-output-dim 16 "
    "--decoder-ffn-embed-dim 32 --decoder-attention-heads 2 --tokens-per-sample 16 --max-tokens 200"
)
# For the comparison before the timing: nothing random, a learning rate that changes weights, small batches
CHECK_UPDATES = 6
CHECK = shlex.split(
    f"--dropout 0 --attention-dropout 0 --activation-dropout 0 --warmup-updates 4 --clip-norm 1 "
    f"--max-update {CHECK_UPDATES}"
)

# glibc, told by its own variables to keep large blocks: spares a peer's temporaries their page faults
TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}


@dataclass(frozen=True)
class Variant:
    """A way to run pyseq: flags and environment over those of the recipe."""

    name: str
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    bf16: bool = False


DEFAULT = Variant("pyseq")
# The reference path: operations by torch, and no fused path of the model. The one place that says how to ask for it.
ALL_OFF = Variant("pyseq, every fused path off", (), {"PYSEQ_BACKEND": "torch"})
BF16 = Variant("pyseq, --bf16", ("--bf16",), bf16=True)
PACKED = Variant("pyseq, --packed", ("--packed",))
PACKED_BF16 = Variant("pyseq, --packed --bf16", ("--packed", "--bf16"), bf16=True)
COMPILED = Variant("pyseq, --compile", ("--compile",))
GRAPHED = Variant("pyseq, --cuda-graphs", ("--cuda-graphs",))


def with_bf16(variant: Variant) -> Variant:
    return Variant(f"{variant.name}, bf16", (*variant.flags, "--bf16"), variant.environment, bf16=True)


@functools.cache
def need_flags(arguments: tuple[str, ...], flags: tuple[str, ...]) -> None:
    """Raises Unavailable for flags that this pyseq-train does not know."""
    from pyseq.cli.plugins import load_plugins
    from pyseq.config.parser import get_training_parser, parse_args_and_arch

    load_plugins()
    _, unknown = parse_args_and_arch(get_training_parser(), ["data", *arguments, *flags], parse_known=True)
    missing = [flag for flag in flags if flag in unknown]
    if missing:
        raise Unavailable(f"this pyseq-train has no {', '.join(missing)}")
