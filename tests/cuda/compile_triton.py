"""Compiles the Triton kernels for GPUs that are not here: ``python compile_triton.py FOLDER`` writes a cubin for each.

A program of its own, because Triton decides when it is imported whether kernels are interpreted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pyseq.kernels import adam, attention, cross_entropy, decode_attention, grad_norm

CAPABILITIES = (80, 90, 100)


class Case(NamedTuple):
    """A kernel, the types of its arguments (the rest are constants: those of ``constants``, or None), and its warps."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    aligned: tuple[str, ...] = ("logits", "grad")  # arguments that are multiples of 16, if the kernel has them


def cross_entropy_cases() -> Iterator[Case]:
    scalars = dict.fromkeys(("cols", "grad_loss_stride", "ignore_index"), "i32")
    scalars |= dict.fromkeys(("row_stride", "grad_stride"), "i64")
    scalars |= dict.fromkeys(("uniform_grad_loss", "nll_weight", "smooth_weight", "z_loss", "soft_cap"), "fp32")
    rows = {"target": "*i64", "grad_loss": "*fp32", "loss": "*fp32", "nll": "*fp32", "correct": "*i8", "stats": "*fp32"}
    weights = {"class_weight": "*fp32", "weight_total": "*fp64"}
    for dtype, size in (("bf16", 2), ("fp32", 4), ("fp16", 2)):
        group = 16 // size
        common = {**rows, **scalars, "logits": "*" + dtype, "grad": "*" + dtype, "factor": "*fp32"}
        for full in (False, True):
            name = f"{dtype}-{'full' if full else 'plain'}"
            types = common | (weights if full else {})
            flags = {"GROUP": group, "WEIGHT": full, "CAP": full, "SMOOTH": full, "GRADIENT": True, "BY_ROW": True}
            for cols in (1000, 8000, 50257):
                block, num_warps, whole = cross_entropy.launch(cols + group - 1, size)
                constants = flags | {"BLOCK": block, "WHOLE": whole}
                yield Case(f"{name}-{cols}", cross_entropy._rows_kernel, types, constants, num_warps)
            block, num_warps, _ = cross_entropy.gradient_launch(32000)
            yield Case(name, cross_entropy._gradient_kernel, types, flags | {"BLOCK": block}, num_warps)
        yield Case(dtype, cross_entropy._scale_kernel, common, {"GROUP": group, "BLOCK": block}, num_warps)


def grad_norm_cases() -> Iterator[Case]:
    chunk, block, num_warps = grad_norm.launch(200_000_000)
    types = {"table": "*i64", "partial": "*fp64", "rows": "i32", "steps": "i32"}
    yield Case("", grad_norm._chunk_kernel, types, {"ALIGNED": True, "CHUNK": chunk, "BLOCK": block}, num_warps)
    types = {"partial": "*fp64", "chunks": "i32", "scale_bits": "i64", "max_norm_bits": "i64"}
    block = {"BLOCK": grad_norm.FINAL_BLOCK}
    yield Case("squares", grad_norm._finish_kernel, {**types, "squares": "*fp64"}, block, 8)
    yield Case("norm", grad_norm._finish_kernel, {**types, "scale": "*fp32", "out": "*fp32"}, block, 8)


def adam_cases() -> Iterator[Case]:
    bits = ("beta1_bits", "beta2_bits", "log1_bits", "log2_bits", "eps_bits", "weight_decay_bits", "lr_bits")
    pointers = ("factors", "step", "lr", "factor", "grad_scale", "found_inf")
    types = {**dict.fromkeys(bits, "i64"), **dict.fromkeys(pointers, "*fp32")}
    flags = {"DECOUPLED": True, "CORRECTED_EPS": True, "MAXIMIZE": False}
    yield Case("", adam._begin_kernel, types, flags, 1)
    types = {"table": "*i64", "factors": "*fp32", "rows": "i32", "steps": "i32", "seed": "i64"}
    for param, grad, state, extra in (
        (tl.float32, tl.float32, tl.float32, None),
        (tl.bfloat16, tl.bfloat16, tl.float32, tl.int16),
        (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.float32),
        (tl.float16, tl.float32, tl.float32, None),
    ):
        aligned = param != tl.float16
        block, num_warps = adam.launch(4 if param == tl.float32 else 2, aligned)
        dtypes = {"PARAM": param, "GRAD": grad, "STATE": state, "EXTRA": extra}
        rest = {"AMSGRAD": state == tl.bfloat16, "ZERO_GRADS": True, "ALIGNED": aligned, "BLOCK": block}
        name = "-".join(str(dtype) for dtype in dtypes.values())
        yield Case(name, adam._update_kernel, types, {**dtypes, **rest}, num_warps)


def attention_cases() -> Iterator[Case]:
    parts = ("query", "key", "grad", "grad_query", "grad_key")
    strides = tuple(f"{part}{of}_stride" for part in parts for of in ("", "_head"))
    tensors = ("query", "key", "value", "out", "grad_out", "grad_query", "grad_key", "grad_value")
    types = dict.fromkeys(("log_sums", "deltas"), "*fp32") | dict.fromkeys(("query_offsets", "key_offsets"), "*i32")
    types |= dict.fromkeys((*strides, "heads", "head_dim", "across", "limit"), "i32") | {"seed": "*i64"}
    types |= dict.fromkeys(("dropout_scale", "scale"), "fp32")
    aligned = (*tensors, *strides, "head_dim", "log_sums", "deltas", "query_offsets", "key_offsets", "seed")
    for dtype, size in (("bf16", 2), ("fp32", 4), ("fp16", 2)):
        for head_dim in (32, 64, 128):
            for kernel, blocks in (
                (attention._forward_kernel, attention.FORWARD),
                (attention._query_kernel, attention.OF_QUERIES),
                (attention._key_kernel, attention.OF_KEYS),
            ):
                if (dtype, head_dim, kernel) == ("fp32", 128, attention._key_kernel):
                    continue  # spills, as kernels/attention.py says
                queries, keys, lanes, num_warps = attention.launch(blocks, (1024, 1024), head_dim, size)
                flags = {"CAUSAL": True, "DROP": True, "WIDE": False}
                constants = flags | {"QUERIES": queries, "KEYS": keys, "LANES": lanes}
                types |= dict.fromkeys(tensors, "*" + dtype)
                yield Case(f"{dtype}-{head_dim}", kernel, dict(types), constants, num_warps, aligned)


def decoding_cases() -> Iterator[Case]:
    numbers = ("query_stride", "key_stride", "slots_stride", "dim", "head_dim")
    tensors = ("query", "keys_values", "out")
    types = {"slots": "*i32", "length": "*i32", "scale": "fp32"} | dict.fromkeys(numbers, "i32")
    aligned = (*tensors, "slots", "query_stride", "key_stride", "dim", "head_dim")
    for dtype in ("bf16", "fp32"):
        for head_dim in (32, 64, 128):
            lanes, places, num_warps = decode_attention.launch(head_dim)
            constants = {"LANES": lanes, "PLACES": places}
            all_types = types | dict.fromkeys(tensors, "*" + dtype)
            yield Case(f"{dtype}-{head_dim}", decode_attention._attend_kernel, all_types, constants, num_warps, aligned)


def main(folder: Path) -> None:
    for case in (*cross_entropy_cases(), *grad_norm_cases(), *adam_cases(), *attention_cases(), *decoding_cases()):
        names = case.kernel.arg_names
        signature = {argument: case.types.get(argument, "constexpr") for argument in names}
        constants = {argument: case.constants.get(argument) for argument in names if argument not in case.types}
        # As Triton finds them at run time: a tensor's memory begins at a multiple of 16 bytes.
        aligned = {
            (names.index(argument),): [["tt.divisibility", 16]] for argument in case.aligned if argument in names
        }
        for capability in CAPABILITIES:
            source = ASTSource(case.kernel, signature, constexprs=constants, attrs=aligned)
            target = GPUTarget("cuda", capability, 32)
            compiled = triton.compile(source, target=target, options={"num_warps": case.num_warps})
            file = f"{case.kernel.fn.__module__}.{case.kernel.fn.__name__}-{case.name}-sm_{capability}"
            folder.joinpath(file + ".cubin").write_bytes(compiled.asm["cubin"])
            folder.joinpath(file + ".ptx").write_text(compiled.asm["ptx"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
