"""What one update needs besides the model: device, precision, optimizer, schedule, averaging and clipping."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyseq import metrics, utils
from pyseq.config.config import Config
from pyseq.config.groups import OptimizationConfig
from pyseq.errors import TrainingError
from pyseq.optim import build_optimizer
from pyseq.optim.lr_scheduler import build_lr_scheduler
from pyseq.training import distributed
from pyseq.training.memory import OutOfMemoryError, is_out_of_memory, out_of_memory_message
from pyseq.training.precision import BFloat16, Precision

logger = logging.getLogger(__name__)

Sample = dict[str, Any]
UNCHECKED = 100  # updates whose gradient norms may wait to be looked at


class Update:
    """One update in the making: its micro-batches, their sample sizes and logging outputs."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.current: Sample | None = None  # the micro-batch that is being worked on
        self.sample_size: Any = 0
        self.logging_outputs: list[dict[str, Any]] = []
        self.tokens, self.cells = count_tokens(samples)

    def add(self, sample_size: Any, logging_output: dict[str, Any]) -> None:
        self.sample_size = self.sample_size + sample_size
        self.logging_outputs.append(logging_output)


class Trainer:
    """Owns the model on its device and everything that changes it.

    Args:
        cfg: the run's options.
        task, model, criterion: as built by the task, on the CPU.
    """

    def __init__(self, cfg: Config, task: Any, model: nn.Module, criterion: nn.Module) -> None:
        self.cfg, self.task = cfg, task
        self.use_cuda = torch.cuda.is_available() and not cfg.common.cpu
        distributed.init(cfg.distributed_training, self.use_cuda)
        self.device = torch.device("cuda", cfg.distributed_training.device_id) if self.use_cuda else torch.device("cpu")
        self.model, self.criterion = model.to(self.device), criterion.to(self.device)
        self.module = nn.ModuleList([self.model, self.criterion])
        distributed.broadcast_parameters(self.module.parameters())
        precision = BFloat16 if cfg.common.bf16 else Precision
        self.precision = precision(self.module, joined=self.use_cuda, keep_gradients=cfg.common.cuda_graphs)
        self.optimizer = build_optimizer(cfg.optimizer, self.precision.optimizer_parameters())
        if cfg.common.cuda_graphs:
            self.optimizer.use_cuda_graphs()
        self.lr_scheduler = build_lr_scheduler(cfg.lr_scheduler, self.optimizer)
        self.num_updates = 0
        self.reading_waits = self.use_cuda
        self._unchecked: list[tuple[int, Tensor]] = []  # updates and their gradient norms, not yet looked at
        self.start_time = time.perf_counter()
        self.previous_training_time = 0.0
        self.lr_scheduler.step_update(0)

    # The update: the loop calls these by name.

    @contextmanager
    def update(self, samples: list[Sample]) -> Iterator[Update]:
        """Seed, clear the gradients, and after the body's step count the update and log it.

        Every update draws its random numbers from ``seed + num_updates``, so a resumed run draws the same.

        Raises:
            TrainingError: out of memory; or gradients of an update before were not finite.
        """
        if not self.reading_waits or len(self._unchecked) >= UNCHECKED:
            self.check_gradients()
        utils.set_torch_seed(self.cfg.common.seed + self.num_updates)
        self.model.train()
        self.criterion.train()
        self.optimizer.zero_grad()
        self.precision.drop_gradients()
        metrics.log_start_time("train_wall", priority=800, round=0)
        update = Update([sample for sample in samples if sample])
        try:
            yield update
        except (RuntimeError, MemoryError) as error:
            self._explain_out_of_memory(error, update.current, f"update {self.num_updates + 1}", self.cfg.optimization)
            raise
        self.precision.after_step()
        self.set_num_updates(self.num_updates + 1)
        metrics.log_stop_time("train_wall")

    def batches(self, update: Update) -> Iterator[Sample]:
        """The update's micro-batches on the device; their gradients are collected as each is done with."""
        for sample in update.samples:
            update.current = sample
            yield self.prepare_sample(sample)
            self.precision.collect_gradients()
        update.current = None

    def _explain_out_of_memory(
        self, error: BaseException, sample: Sample | None, doing: str, optimization: OptimizationConfig | None
    ) -> None:
        """Raise OutOfMemoryError if ``error`` says that memory ran out."""
        if is_out_of_memory(error):
            message = out_of_memory_message(error, sample, doing, self.cfg.dataset, optimization)
            raise OutOfMemoryError(message) from None

    def average_and_clip_gradients(self, update: Update) -> None:
        """Sum gradients over ranks, divide by the sample size of the whole update, clip by norm, log.

        An optimizer that applies the factors itself also leaves the parameters alone where the norm is not finite.
        Then nobody has to wait for the norm here; :meth:`check_gradients` looks at it later.
        """
        distributed.all_reduce_gradients(self.optimizer.params)
        can_be_summed = self.task.logging_outputs_can_be_summed(self.criterion)
        outputs, sample_size = distributed.sum_logging_outputs(
            update.logging_outputs, update.sample_size, can_be_summed, self.device
        )
        self.optimizer.multiply_grads(reciprocal(sample_size))
        self.optimizer.joined_grads = self.precision.joined_gradients()
        if self.cfg.common.cuda_graphs and self.optimizer.joined_grads is None:
            warnings.warn(
                "--cuda-graphs: an update is not replayed where parameters have no gradient, or lie in memory that "
                "something else holds, too",
                stacklevel=2,
            )
        grad_norm = self.optimizer.clip_grad_norm(self.cfg.optimization.clip_norm)
        self._unchecked.append((self.num_updates + 1, grad_norm))
        if not self.optimizer.supports_step_with_factor:
            self.check_gradients()
        self.task.reduce_metrics(outputs, self.criterion)
        self._log_update(update, grad_norm)

    def check_gradients(self) -> None:
        """Raise TrainingError if gradients were not finite in an update since the last call; waits for the device.

        It names the parameters whose gradients are not finite now, which on a CPU are those of the update in question.
        Called before the next update on a CPU; on a GPU at the log interval; before a checkpoint; and in the end.
        """
        unchecked, self._unchecked = self._unchecked, []
        norms = torch.stack([norm for _, norm in unchecked]).tolist() if unchecked else []
        for (update, _), norm in zip(unchecked, norms):
            if not math.isfinite(norm):
                names = [
                    name
                    for (name, _), p in zip(self._trained_parameters(), self.optimizer.params, strict=True)
                    if p.grad is not None and not torch.isfinite(p.grad).all()
                ]
                raise TrainingError(
                    f"the gradient norm is {norm} at update {update}: non-finite gradients in {len(names)} parameters "
                    f"({', '.join(names[:5]) or 'none: the norm overflowed'}). Lower --lr, lengthen the warm-up, or "
                    "set --clip-norm; the last checkpoint is intact."
                )

    def _trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(n.split(".", 1)[1], p) for n, p in self.module.named_parameters() if p.requires_grad]

    def _log_update(self, update: Update, grad_norm: Tensor) -> None:
        metrics.log_speed("ups", 1.0, priority=100, round=2)
        metrics.log_scalar("gnorm", grad_norm, priority=400, round=3)
        max_norm = self.cfg.optimization.clip_norm
        if max_norm > 0:
            clipped = torch.where(grad_norm > max_norm, 100.0, 0.0)
            metrics.log_scalar("clip", clipped, priority=500, round=1)
        metrics.log_speed("tps", update.tokens, priority=810, round=0)
        metrics.log_scalar("_tokens", update.tokens)
        metrics.log_scalar("_cells", update.cells)
        metrics.log_derived("pad", padding_percent, priority=820)
        if self.use_cuda:
            used = torch.cuda.max_memory_allocated(self.device) / 2**30
            metrics.log_scalar("gb_used", used, weight=0, priority=1500, round=1)
        every = self.cfg.common.empty_cache_freq
        if self.use_cuda and every > 0 and (self.num_updates + every - 1) % every == 0:
            torch.cuda.empty_cache()

    @torch.no_grad()
    def valid_step(self, sample: Sample) -> None:
        """Add one validation batch to the open metrics. An empty batch (a rank that ran out) still takes part."""
        self.model.eval()
        self.criterion.eval()
        outputs: list[dict[str, Any]] = []
        sample_size: Any = 0
        if sample:
            try:
                _, sample_size, output = self.task.valid_step(self.prepare_sample(sample), self.model, self.criterion)
            except (RuntimeError, MemoryError) as error:
                self._explain_out_of_memory(error, sample, "validation", None)
                raise
            outputs = [output]
        can_be_summed = self.task.logging_outputs_can_be_summed(self.criterion)
        outputs, _ = distributed.sum_logging_outputs(outputs, sample_size, can_be_summed, self.device)
        self.task.reduce_metrics(outputs, self.criterion)

    def prepare_sample(self, sample: Sample) -> Sample:
        if self.use_cuda:
            sample = utils.move_to_device(sample, self.device)
        prepared: Sample = self.precision.prepare_sample(sample)
        return prepared

    # Counters, schedule, time.

    def set_num_updates(self, num_updates: int) -> None:
        self.num_updates = num_updates
        metrics.log_scalar("num_updates", num_updates, weight=0, priority=200)
        metrics.log_scalar("lr", self.optimizer.get_lr(), weight=0, priority=300)

    def training_time(self) -> float:
        """Seconds of training so far, those of earlier runs of the same job included."""
        return time.perf_counter() - self.start_time + self.previous_training_time

    # State.

    def state_dict(self) -> dict[str, Any]:
        """fairseq's checkpoint layout, where its tensors are, less ``extra_state``; weights in fp32.

        Raises:
            TrainingError: the gradients of the last update were not finite.
        """
        self.check_gradients()
        precision = self.precision
        criterion_state = precision.full_state_dict(self.criterion)
        state = {
            "args": None,
            "cfg": self.cfg.to_dict(),
            "model": precision.full_state_dict(self.model),
            "criterion": criterion_state or None,
            "optimizer_history": [
                {
                    "criterion_name": type(self.criterion).__name__,
                    "optimizer_name": optimizer_name(self.optimizer),
                    "lr_scheduler_state": self.lr_scheduler.state_dict(),
                    "num_updates": self.num_updates,
                }
            ],
            "task_state": self.task.state_dict(),
            "extra_state": {"metrics": metrics.state_dict(), "previous_training_time": self.training_time()},
        }
        if not self.cfg.checkpoint.no_save_optimizer_state:
            state["last_optimizer_state"] = self.optimizer.state_dict()
        return state

    def load_model_state(self, state: dict[str, Any]) -> None:
        """Read the weights of a checkpoint (already on the CPU) into model and criterion."""
        self.model.load_state_dict(state["model"], strict=True, model_cfg=self.cfg.model)  # type: ignore[call-arg]
        self.precision.load_full(self.model, state["model"])
        if state.get("criterion"):
            self.criterion.load_state_dict(state["criterion"], strict=True)
            self.precision.load_full(self.criterion, state["criterion"])


def reciprocal(sample_size: Any) -> Any:
    """1 / ``sample_size``, or 1 where it is 0. A tensor stays on its device."""
    if torch.is_tensor(sample_size):
        return torch.where(sample_size == 0, 1.0, sample_size).reciprocal()
    return 1.0 / (sample_size or 1.0)


def optimizer_name(optimizer: Any) -> str:
    """The name under which fairseq would have saved this optimizer."""
    return str(getattr(optimizer, "checkpoint_name", type(optimizer).__name__))


def count_tokens(samples: list[Sample]) -> tuple[int, int]:
    """Real tokens, and cells of the padded tensors, source and target together; counted before they leave the host."""
    tokens = cells = 0
    for sample in samples:
        inputs = sample.get("net_input", {})
        lengths = inputs.get("src_lengths")
        source, target = inputs.get("src_tokens"), inputs.get("prev_output_tokens")
        if torch.is_tensor(source) and torch.is_tensor(lengths):
            tokens += int(lengths.sum())
            cells += source.numel()
        if torch.is_tensor(target):
            tokens += int(sample.get("ntokens", 0))
            cells += target.numel()
    return tokens, cells


def padding_percent(meters: metrics.MetersDict) -> float:
    tokens, cells = meters["_tokens"].sum, meters["_cells"].sum  # type: ignore[attr-defined]
    return round(100 * (1 - tokens / cells), 1) if cells else 0.0
