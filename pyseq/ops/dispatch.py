"""Which back end runs an operation: ``torch`` (the reference), ``cpp`` (CPU), ``triton`` or ``cuda``.

The choice depends on the device, the dtype and what is installed. It is made once for each of them and told in one log
line. ``PYSEQ_BACKEND=torch`` in the environment, or ``with pyseq.ops.backend("torch"):``, forces one; one that is not
there is then an error. ``python -m pyseq.ops`` prints what is there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch

from pyseq.errors import ConfigError, nearest

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "cpp", "triton", "cuda")
PREFERENCE = {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}  # best first
ENVIRONMENT_VARIABLE = "PYSEQ_BACKEND"

# The dtypes that the core is told by number; the numbers are those of csrc/cpu/dtype.h.
DTYPE_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
KERNEL_DTYPES = frozenset(DTYPE_NUMBERS)
LEAST_CAPABILITY = 8  # of a GPU: the oldest that CMakeLists.txt compiles csrc/cuda for is sm_80


@dataclass(frozen=True)
class Status:
    """Whether a back end can be used on this machine, and what it is or why it cannot."""

    available: bool
    detail: str


def _always(backend: str) -> bool:
    return True


@dataclass(frozen=True)
class Operation:
    """An operation and the dtypes that each of its back ends takes. ``torch`` takes every floating dtype."""

    name: str
    dtypes: Mapping[str, frozenset[torch.dtype]]
    pays: Callable[[str], bool] = _always  # whether a back end that takes it is chosen without being forced
    library: bool = False  # back ends without a kernel leave it to torch, whose libraries are made for it


OPERATIONS: dict[str, Operation] = {}
_forced: str | None = None


def register_operation(
    name: str, *, pays: Callable[[str], bool] = _always, library: bool = False, **dtypes: frozenset[torch.dtype]
) -> None:
    """Declare the operation ``name``; a keyword for each back end other than torch gives the dtypes that it takes.

    Args:
        pays: of an available back end, whether it is chosen without being forced.
        library: a forced back end that has no kernel leaves this operation to torch; else that is an error.
    """
    OPERATIONS[name] = Operation(name, dtypes, pays, library)


@functools.cache
def core() -> ModuleType | None:
    """``pyseq._core.ops``, or None where the core was not built."""
    try:
        native: ModuleType = importlib.import_module("pyseq._core").ops
    except (ImportError, AttributeError):
        return None
    beside = torch_module()
    if beside is not None:
        native.use_tensor_access(beside.tensor_access())
    return native


def required_core() -> ModuleType:
    """``pyseq._core.ops``. Raises ConfigError where the core was not built."""
    native = core()
    if native is None:
        raise ConfigError(status("cpp").detail)
    return native


def multiplies_bf16() -> bool:
    """Whether the core has products of bf16 numbers for this processor."""
    native = core()
    return native is not None and bool(native.has_bf16_products())


@functools.cache
def torch_module() -> ModuleType | None:
    """``pyseq._torch``, or None where it was not built for exactly this torch: it relies on what is inside torch."""
    try:
        native = importlib.import_module("pyseq._torch")
    except ImportError:
        return None
    return native if native.torch_version == torch.__version__ else None


@functools.cache
def cuda() -> ModuleType | None:
    """``pyseq._cuda``, or None where it was not built or cannot be loaded."""
    try:
        return importlib.import_module("pyseq._cuda")
    except ImportError:
        return None


def required_cuda() -> ModuleType:
    """``pyseq._cuda``. Raises ConfigError where it was not built, cannot be loaded or sees no device."""
    found = status("cuda")
    native = cuda()
    if native is None or not found.available:
        raise ConfigError(found.detail)
    return native


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def status(backend: str) -> Status:
    """What is known of a back end on this machine."""
    return {"torch": _torch_status, "cpp": _cpp_status, "triton": _triton_status, "cuda": _cuda_status}[backend]()


def _torch_status() -> Status:
    return Status(True, f"torch {torch.__version__}")


def _cpp_status() -> Status:
    native = core()
    if native is None:
        return Status(False, "the compiled core, pyseq._core, is not built: run `pip install .` in the checkout")
    products = " with products of bf16" if native.has_bf16_products() else ""
    return Status(True, f"{native.isa()}{products} (this processor runs {', '.join(native.isas())})")


def _triton_status() -> Status:
    if importlib.util.find_spec("triton") is None:
        return Status(False, "triton is not installed: `pip install triton`")
    if importlib.util.find_spec("pyseq.kernels") is None:
        return Status(False, "pyseq.kernels is not installed: run `pip install .` in the checkout")
    version = importlib.import_module("triton").__version__
    if interpreting():
        return Status(True, f"triton {version}, interpreted on the CPU (TRITON_INTERPRET=1): for tests, not for speed")
    if not torch.cuda.is_available():
        return Status(False, f"triton {version} is installed, but no CUDA device is visible")
    return Status(True, f"triton {version} on {torch.cuda.get_device_name()}")


def _cuda_status() -> Status:
    native = cuda()
    if native is None:
        if importlib.util.find_spec("pyseq._cuda") is None:
            return Status(False, "pyseq._cuda is not built: run `pip install .` in the checkout where nvcc is found")
        return Status(False, "pyseq._cuda is built, but cannot be loaded: run `python -c 'import pyseq._cuda'`")
    version = f"{native.runtime_version // 1000}.{native.runtime_version % 1000 // 10}"
    if not torch.cuda.is_available():
        return Status(False, f"pyseq._cuda is built with CUDA {version}, but no CUDA device is visible to torch")
    major, minor = torch.cuda.get_device_capability()
    if major < LEAST_CAPABILITY:
        return Status(False, f"{torch.cuda.get_device_name()} is of compute capability {major}.{minor}: 8.0 is needed")
    return Status(True, f"CUDA {version} on {torch.cuda.get_device_name()}")


def serves(backend: str, device_type: str) -> bool:
    """Whether a back end, where available, works on tensors of a device type."""
    if backend == "torch":
        return True
    if backend == "triton" and interpreting():
        return device_type == "cpu"
    return device_type == ("cpu" if backend == "cpp" else "cuda")


def takes(operation: str, backend: str, device_type: str, dtype: torch.dtype) -> bool:
    """Whether an available back end runs an operation on tensors of a device type and dtype."""
    if backend == "torch":
        return True
    dtypes = OPERATIONS[operation].dtypes.get(backend, frozenset())
    return status(backend).available and serves(backend, device_type) and dtype in dtypes


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Operations called inside run on back end ``name``, in every thread of the process.

    Raises:
        ConfigError: there is no such back end, or it cannot be used on this machine.
    """
    global _forced
    _check_forced(name, f"pyseq.ops.backend({name!r})")
    outer, _forced = _forced, name
    try:
        yield
    finally:
        _forced = outer


def _check_forced(name: str, where: str) -> None:
    if name not in BACKENDS:
        raise ConfigError(f"{where}: there is no back end '{name}'. {nearest(name, BACKENDS)}")
    found = status(name)
    if not found.available:
        raise ConfigError(f"{where}: back end '{name}' cannot be used here: {found.detail}")


def forced() -> str | None:
    """The back end that the user asked for: by :func:`backend`, else by the environment."""
    return _forced or os.environ.get(ENVIRONMENT_VARIABLE) or None


def choose(operation: str, device_type: str, dtype: torch.dtype) -> str:
    """The back end for an operation on tensors of a device type and dtype.

    Raises:
        ConfigError: a back end is forced that is not there, or that has no kernel for this operation and dtype, where
            torch has no library for it.
    """
    return _remembered(operation, device_type, dtype, _forced)


def _remembered(operation: str, device_type: str, dtype: torch.dtype, forced: str | None) -> str:
    return _decide(operation, device_type, dtype, forced)


# torch.compile calls it, without looking inside, and guards on the arguments. This is all that the decorator
# torch.compiler.assume_constant_result does besides importing the compiler, which takes as long as torch itself.
_remembered.__dict__["_dynamo_marked_constant"] = True


@functools.cache
def _decide(operation: str, device_type: str, dtype: torch.dtype, forced: str | None) -> str:
    where = f"pyseq.ops.backend({forced!r})"
    if forced is None and os.environ.get(ENVIRONMENT_VARIABLE):
        forced = os.environ[ENVIRONMENT_VARIABLE]
        where = f"{ENVIRONMENT_VARIABLE}={forced}"
    kind = f"{device_type}, {str(dtype).removeprefix('torch.')}"
    if forced is not None:
        _check_forced(forced, where)
        chosen, why = forced, f"forced by {where}"
        if not takes(operation, forced, device_type, dtype):
            if not OPERATIONS[operation].library:
                raise ConfigError(f"{where}: back end '{forced}' has no {operation} for ({kind})")
            chosen, why = "torch", f"which '{forced}' leaves it to"
    else:
        candidates = (
            name for name in PREFERENCE.get(device_type, ("torch",)) if takes(operation, name, device_type, dtype)
        )
        chosen = next(name for name in candidates if name == "torch" or OPERATIONS[operation].pays(name))
        why = status(chosen).detail
    logger.info("operation %s (%s): %s back end, %s", operation, kind, chosen, why)
    return chosen


def _torch_module_detail() -> str:
    if torch_module() is not None:
        return "finds tensors for the optimizers, and their memory for pyseq-train"
    if importlib.util.find_spec("pyseq._torch") is None:
        return "not built (works without it: steps over many small tensors take longer, training more memory)"
    return f"not used: built for another torch than {torch.__version__}; run `pip install .` in the checkout again"


def report() -> str:
    """The back ends of this machine and what each operation runs on, as a text for people."""
    lines = ["Back ends:"]
    for name in BACKENDS:
        found = status(name)
        lines.append(f"  {name:<8}{'available' if found.available else 'absent':<11}{found.detail}")
    lines.append(f"CPU threads: {torch.get_num_threads()}")
    lines.append(f"pyseq._torch: {_torch_module_detail()}")
    lines.append(f"{ENVIRONMENT_VARIABLE}: {os.environ.get(ENVIRONMENT_VARIABLE) or 'not set'}")
    lines.append("Operations:")
    for operation in sorted(OPERATIONS):
        for device_type in ["cpu"] + ["cuda"] * torch.cuda.is_available():
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                try:
                    chosen = choose(operation, device_type, dtype)
                except ConfigError as error:
                    chosen = str(error)
                lines.append(f"  {operation:<22}{device_type:<6}{str(dtype).removeprefix('torch.'):<10}{chosen}")
    return "\n".join(lines)
