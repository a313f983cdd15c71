"""Adam and AdamW in the place of torch.optim's, with averaging, unscaling and clipping done by the update itself."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyseq.errors import ConfigError
from pyseq.ops.adam import EpsMode, Rule, scalars_on, update_
from pyseq.ops.grad_norm import grad_norm, norm_of
from pyseq.optim.adam_state import Masters, State, StatePolicy, complete, load
from pyseq.optim.buckets import Arrangement, Bucket, Signature, part_ways
from pyseq.optim.clip_grad import measure
from pyseq.optim.not_compiled import not_compiled
from pyseq.optim.sharded import local, placed_like
from pyseq.optim.unseen_state import UnseenStateOptimizer

_GRAD, _DTYPE = operator.attrgetter("grad"), operator.attrgetter("dtype")  # half the time of a list comprehension


class SparseGradientError(ConfigError, RuntimeError):
    """A gradient is sparse, and the optimizer takes dense ones only."""


class FusedAdam(UnseenStateOptimizer):
    """:class:`torch.optim.Adam` (and, as :class:`FusedAdamW`, AdamW): the same arguments, groups, hooks and state_dict.

    A step reads and writes every parameter, gradient and state once. It neither waits for the device nor changes
    gradients, and can be captured in a CUDA graph after a first step outside (an ``lr`` that is to change has to be
    a tensor then). The formulas are at the head of pyseq/ops/adam.py, the state at that of pyseq/optim/adam_state.py.

    Args:
        params: as torch.optim takes them: parameters, (name, parameter) pairs or groups. fp32, fp64, bf16 or fp16, on
            any devices, mixed as you like; DTensors (FSDP2) are updated shard by shard.
        lr: a number, or a tensor of one element. It is read on its device; on the CPU, once a step.
        betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay: as in torch.optim.Adam.
        foreach, capturable, fused: accepted; they choose between forms of torch's optimizer of which there is one here.
        differentiable: cannot be True.
        eps_mode: "torch" adds eps to the bias-corrected sqrt(v), "fairseq" to the uncorrected one.
        masters: what is kept beside 16-bit parameters, so that small updates are not lost in rounding: "whole" (an fp32
            copy), "remainder" (bf16 only: the 16 bits that the parameter lacks of it), "none"; "auto" is "remainder"
            for bf16 and "whole" for fp16. Writing to such a parameter does not change a whole master. torch cannot put
            the remainders of DTensors together (int16 has no collectives): unsharded checkpoints need "whole".
        state_dtype: of exp_avg and exp_avg_sq. torch.bfloat16 halves them, with stochastic rounding.
        seed: of that rounding. The same seed and values give the same bits on every device.

    Attributes:
        grad_norm: the norm that the last ``step(max_norm=...)`` found, fp32, 0-d, on the device; None before.

    Raises:
        ValueError, TypeError: a setting is out of range; parameters are complex or not floating-point.
        RuntimeError: ``differentiable``, or both ``fused`` and ``foreach``.
    """

    grad_norm: Tensor | None = None

    _step_supports_amp_scaling = True  # GradScaler then sets grad_scale and found_inf, and leaves the rest to step()
    supports_memory_efficient_fp16 = True
    supports_flat_params = True
    supports_step_with_factor = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        eps_mode: EpsMode = "torch",
        masters: Masters = "auto",
        state_dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        if fused and foreach:
            raise RuntimeError("`fused` and `foreach` cannot both be True")
        if eps_mode not in ("torch", "fairseq"):
            raise ValueError(f"eps_mode must be 'torch' or 'fairseq', not {eps_mode!r}")
        self.eps_mode, self.seed = eps_mode, seed
        self.policy = StatePolicy(masters, state_dtype)
        self._arranged: Arrangement | None = None
        # The order of the keys is that of the groups in a checkpoint.
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)
        self._state_was_seen = False  # it is new and empty

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_settings(group)
            for param in group["params"]:
                self.policy.check(param.dtype)
        except (TypeError, ValueError, RuntimeError):
            self.param_groups.pop()
            raise

    @not_compiled
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        max_norm: float | None = None,
        factor: Tensor | float | None = None,
        found_inf: Tensor | None = None,
        zero_grads: bool = False,
    ) -> Any:
        """Update the parameters. Those without a gradient, and their states, stay as they are.

        Args:
            closure: recomputes the loss.
            max_norm: the gradients, taken together, are clipped to this 2-norm as they are read; ``inf`` only measures.
                Then :attr:`grad_norm` is the norm from before, and where it is not finite nothing is updated.
            factor: multiplies the gradients as they are read, before they are clipped. A tensor has one element.
            found_inf: a tensor of one element. Where it is not 0, nothing is updated, nor is the step counted.
            zero_grads: leave gradients of zeros, for less than ``zero_grad(set_to_none=False)`` takes.

        Returns:
            What ``closure`` returns.

        Raises:
            SparseGradientError: a gradient is sparse.
            ValueError, TypeError: settings are out of range; a gradient's dtype, shape or device does not fit.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step(max_norm, factor, found_inf, zero_grads)
        return loss

    def _step(
        self, max_norm: float | None, factor: Tensor | float | None, found_inf: Tensor | None, zero_grads: bool
    ) -> None:
        followed = self._follow()
        buckets, grads = self._arrange() if followed is None else followed
        factor, grad_scale, found_inf = self._gradient_factors(
            buckets, grads, followed is not None, max_norm, factor, found_inf
        )
        for number, (bucket, own) in enumerate(zip(buckets, grads)):
            parts = (
                [local(placed_like(grad, param)) for grad, param in zip(own, bucket.owners)] if bucket.sharded else own
            )
            if followed is None:
                bucket.look_up()
            self._update(bucket, parts, number, factor, grad_scale, found_inf, zero_grads, followed is not None)
            if zero_grads and bucket.sharded:
                for grad in own:  # what was updated from is a copy where the gradient was spread differently
                    local(grad).zero_()

    def _gradient_factors(
        self,
        buckets: list[Bucket],
        grads: Sequence[Sequence[Tensor]],
        followed: bool,
        max_norm: float | None,
        factor: Tensor | float | None,
        found_inf: Tensor | None,
    ) -> tuple[Tensor | float | None, Tensor | None, Tensor | None]:
        """What multiplies the gradients, what divides them, and whether the step is left out."""
        grad_scale = getattr(self, "grad_scale", None)
        found_inf = _either(found_inf, getattr(self, "found_inf", None))
        if max_norm is None:
            return factor, grad_scale, found_inf
        scale = 1.0 if factor is None else factor
        scale = scale if grad_scale is None else scale / grad_scale
        there = grads[0] if len(grads) == 1 else [grad for own in grads for grad in own]
        limit = max_norm if max_norm < math.inf else None
        if len(buckets) != 1 or buckets[0].sharded:
            norm = measure(there, max_norm=max_norm, scale=scale)
        elif followed:
            norm = norm_of(there, buckets[0].plan.gradients(), limit, scale)
        else:  # what sorts gradients by device and mesh takes longer than the norm of small ones
            norm = grad_norm(there, max_norm=limit, scale=scale)
        self.grad_norm = norm.norm
        return norm.factor, None, _either(found_inf, norm.found_inf)

    def _update(
        self,
        bucket: Bucket,
        grads: Sequence[Tensor],
        number: int,
        factor: Tensor | float | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        zero_grads: bool,
        followed: bool,
    ) -> None:
        columns, group, step = bucket.columns, bucket.group, bucket.states[0]["step"]
        beta1, beta2 = map(float, group["betas"])
        lists = (
            bucket.params,
            grads,
            columns["exp_avg"],
            columns["exp_avg_sq"],
            columns["max_exp_avg_sq"] if group["amsgrad"] else None,
            columns.get("master", columns.get("remainder")),
        )
        rule = Rule(
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            group["decoupled_weight_decay"],
            self.eps_mode,
            group["maximize"],
            zero_grads,
            self.seed + number,
        )
        if isinstance(factor, (int, float)):
            factor = torch.full((), factor, device=step.device)
        scalars = scalars_on(step, _number_or_tensor(group["lr"]), factor, grad_scale, found_inf)
        update_(lists, rule, scalars, bucket.plan, followed)
        if bucket.sharded:  # autograd looks at the DTensors, and has been told of their local parts only
            torch.autograd.graph.increment_version(bucket.owners)

    def _follow(self) -> tuple[list[Bucket], Sequence[Sequence[Tensor]]] | None:
        """As :meth:`_arrange`, where nothing but gradients can have changed since the last step; else None."""
        if self._arranged is None or self._state_was_seen:
            return None
        signature, buckets, idle = self._arranged
        if not signature.same_parameters(self.param_groups):
            return None
        grads = []
        for bucket in buckets:
            own = bucket.follow()
            if own is None:
                return None
            grads.append(own)
        return None if any(param.grad is not None for param in idle) else (buckets, grads)

    def settled_memory(self) -> list[Tensor] | None:
        """What stands for all memory that a step would touch now: the same objects as long as nothing has moved.

        None where the next step has to look it up first: before the first one, after a state was loaded or looked at,
        and where parameters or the kind of gradients have changed.
        """
        followed = self._follow()
        return None if followed is None else [bucket.plan.table for bucket in followed[0]]

    def _arrange(self) -> tuple[list[Bucket], Sequence[Sequence[Tensor]]]:
        """The buckets of all parameters that have a gradient, and the gradients of each bucket."""
        params = [param for group in self.param_groups for param in group["params"]]
        grads = list(map(_GRAD, params))
        groups = [(list(group["params"]), group["amsgrad"]) for group in self.param_groups]
        signature = Signature(groups, self._state_objects(), _dtypes(grads))
        if self._arranged is None or not signature.matches(self._arranged.signature):
            buckets = self._new_buckets(params, grads)
            idle = [param for param, grad in zip(params, grads) if grad is None]
            self._arranged = Arrangement(signature._replace(states=self._state_objects()), buckets, idle)
        buckets = self._arranged.buckets
        return buckets, [[grads[i] for i in bucket.indices] for bucket in buckets]

    def _state_objects(self) -> list[Any]:
        return [*self._state, *self._state.values()]

    def _new_buckets(self, params: list[Tensor], grads: list[Any]) -> list[Bucket]:
        group_of = [number for number, group in enumerate(self.param_groups) for _ in group["params"]]
        alike: dict[Any, list[int]] = {}
        for i, (number, param, grad) in enumerate(zip(group_of, params, grads)):
            if grad is not None:
                self._check_gradient(i, param, grad)
                alike.setdefault((number, param.device, param.dtype, grad.dtype), []).append(i)
        buckets: dict[Any, Bucket] = {}
        for key, indices in alike.items():
            group = self.param_groups[key[0]]
            self._complete([params[i] for i in indices], group["amsgrad"])
            if self.policy.state_dtype == torch.float32:  # bf16 states are rounded by the place in the list
                indices.sort(key=lambda i: local(params[i]).data_ptr())  # neighbours in memory are one stretch
            for i in indices:
                state = self._state[params[i]]
                bucket = buckets.setdefault((*key, id(state["step"]), state["exp_avg"].dtype), Bucket(group))
                bucket.add(i, params[i], state)
        found = list(buckets.values())
        part_ways(found, [self._state[p] for p, grad in zip(params, grads) if grad is None and self._state.get(p)])
        return found

    def _complete(self, params: list[Tensor], amsgrad: bool) -> None:
        """Give parameters of one dtype on one device the state that they lack."""
        states = [self._state[param] for param in params]
        fresh = [state for state in states if "step" not in state]
        if fresh:
            step = torch.zeros((), dtype=torch.float32, device=local(params[0]).device)
            for state in fresh:
                state["step"] = step
        complete(params, states, self.policy.columns(params[0].dtype, amsgrad))

    def _check_gradient(self, i: int, param: Tensor, grad: Tensor) -> None:
        if grad.layout is not torch.strided:
            raise SparseGradientError(
                f"parameter {i}, of shape {tuple(param.shape)}, has a sparse gradient, and {type(self).__name__} takes "
                "dense ones only: make the embedding with sparse=False, or optimize it by SGD"
            )

    # State in and out.

    def _handed_out(self, packed: dict[str, Any]) -> dict[str, Any]:
        """With a step for every parameter of its own, as torch counts each by itself."""
        packed = super()._handed_out(packed)
        holders: dict[int, list[Any]] = {}
        for key, state in packed["state"].items():
            if "step" in state:
                holders.setdefault(state["step"].data_ptr(), []).append(key)
        for keys in holders.values():
            steps = packed["state"][keys[0]]["step"].expand(len(keys)).clone().unbind()
            for key, step in zip(keys, steps):
                packed["state"][key]["step"] = step
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state of this class or of torch.optim.Adam(W), as a copy.

        Raises:
            StateMismatchError: it does not fit the parameters, or bits would be lost. Nothing is changed then.
            ValueError: it has other groups.
        """
        # torch casts states to the parameter's dtype on the way to __setstate__, unless it does not see that they are
        # tensors. The seal comes last, so that a user's hooks see what is saved.
        handle = self.register_load_state_dict_pre_hook(_seal)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        own = {"eps_mode": self.eps_mode, "seed": self.seed, "policy": self.policy}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({key: value for key, value in state.items() if key != "state"})
        self._state, self._state_was_seen = self._opened(state)
        self._arranged = None
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def _opened(self, state: dict[str, Any]) -> tuple[defaultdict[Tensor, Any], bool]:
        """The states, and whether others may hold them; those that are sealed as copies in our form."""
        held = state["state"]
        opened = defaultdict(dict, {k: v.value if isinstance(v, Sealed) else v for k, v in held.items()})
        if not any(isinstance(value, Sealed) for value in held.values()):
            return opened, len(opened) > 0
        for group in state["param_groups"]:
            params = [param for param in group["params"] if param in opened]
            opened.update(zip(params, load(self.policy, params, [opened[param] for param in params])))
        return opened, False


class FusedAdamW(FusedAdam):
    """:class:`torch.optim.AdamW`: :class:`FusedAdam` with decoupled weight decay, of 0.01 by default."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        if "decoupled_weight_decay" in options:
            raise TypeError("FusedAdamW has no decoupled_weight_decay: it is FusedAdam with it")
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True, **options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


class Sealed:
    """A saved state that torch's load_state_dict hands on as it is."""

    def __init__(self, value: State) -> None:
        self.value = value


def _seal(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    return {**state_dict, "state": {key: Sealed(value) for key, value in state_dict["state"].items()}}


def _check_settings(group: dict[str, Any]) -> None:
    """Raise ValueError or RuntimeError for a setting of a group that is out of range."""
    if group["differentiable"]:
        raise RuntimeError("differentiable=True is not supported: the update is one kernel. Take torch.optim.Adam.")
    for name, value in (("lr", group["lr"]), ("betas[0]", group["betas"][0]), ("betas[1]", group["betas"][1])):
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name} must be a number or a tensor of one element, not of shape {tuple(value.shape)}")
    for name in ("lr", "eps", "weight_decay"):
        if _on_host(group[name]) and not group[name] >= 0:
            raise ValueError(f"{name} must not be negative: {group[name]}")
    for i, beta in enumerate(group["betas"]):
        if not 0 <= beta < 1:
            raise ValueError(f"betas[{i}] must be in [0, 1): {beta}")


def _number_or_tensor(lr: float | Tensor) -> float | Tensor:
    """``lr`` as a number where reading it waits for no device."""
    return float(lr) if _on_host(lr) else lr


def _on_host(value: float | Tensor) -> bool:
    return not isinstance(value, Tensor) or value.device.type == "cpu"


def _dtypes(grads: list[Any]) -> list[torch.dtype | None]:
    try:
        return list(map(_DTYPE, grads))
    except AttributeError:
        return [None if grad is None else grad.dtype for grad in grads]


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Not 0 where ``a`` or ``b`` is not."""
    if a is None or b is None:
        return b if a is None else a
    return torch.maximum(a, b.to(a.device, non_blocking=True))
