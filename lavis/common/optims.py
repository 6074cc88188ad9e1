"""Learning-rate schedules and the optimizers.

A schedule is a function of (epoch, step within the epoch) and keeps no state, so there is nothing of it
to save. The original's three warm up linearly within epoch 0 only, and change once per epoch after that, so
that a run of one epoch never decays:

    linear_warmup_cosine_lr   (init - min) * (1 + cos(pi * epoch / max_epoch)) / 2 + min
    linear_warmup_step_lr     max(min, init * decay_rate ** epoch)
    constant_lr               init

Two change at every step, over the whole run of T steps. With W steps of warm-up, which may last longer than
an epoch, and t counted over epochs from 0, the share of the decay that is done is p = (t - W) / (T - W):

    linear_warmup_cosine_per_step_lr   (init - min) * (1 + cos(pi * p)) / 2 + min
    linear_warmup_linear_per_step_lr   (init - min) * (1 - p) + min

A step is one batch of each rank; with gradient accumulation a weight update takes several.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from lavis.common import moved
from lavis.common.parameters import ParameterRule, grouped
from lavis.common.registry import registry

__getattr__ = moved.names_of(__name__)


class Scheduler:
    """Base of the schedules: warm-up, and writing the rate into the optimizer.

    Args:
        optimizer: whose groups get `lr`, times the group's own `lr_scale` if it has one.
        max_epoch: number of epochs of the run (inner epochs when a run counts iterations).
        init_lr: the peak rate. min_lr: the floor of the decaying schedules.
        warmup_steps: length of the warm-up in steps.
        warmup_start_lr: rate at step 0 of the warm-up; below zero means `init_lr`, that is no warm-up.
        decay_rate: factor per epoch, for `linear_warmup_step_lr`.
        iters_per_epoch, total_steps: steps of an epoch and of the run (its last epoch may be shorter), for the
            schedules that change at every step; `total_steps` None is max_epoch * iters_per_epoch.

    Raises:
        ValueError: a schedule with `needs_decay_rate` was given none.
    """

    needs_decay_rate: ClassVar[bool] = False

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        init_lr: float,
        max_epoch: int = 1,
        min_lr: float = 0.0,
        warmup_steps: int = 0,
        warmup_start_lr: float = -1,
        decay_rate: float | None = None,
        iters_per_epoch: int = 1,
        total_steps: int | None = None,
        **unused: Any,
    ) -> None:
        self.optimizer = optimizer
        self.init_lr = init_lr
        self.max_epoch = max_epoch
        self.min_lr = min_lr
        self.warmup_steps = warmup_steps
        self.warmup_start_lr = warmup_start_lr if warmup_start_lr >= 0 else init_lr
        if decay_rate is None and self.needs_decay_rate:
            raise ValueError(f"{type(self).__name__} needs decay_rate (run.lr_decay_rate), for example 0.9")
        self.decay_rate = decay_rate
        self.iters_per_epoch = iters_per_epoch
        self.total_steps = max_epoch * iters_per_epoch if total_steps is None else total_steps

    def decayed(self, epoch: int) -> float:
        """Rate after the warm-up, at an epoch counted from 0."""
        raise NotImplementedError

    def lr(self, cur_epoch: int, cur_step: int) -> float:
        """Rate at a step of an epoch, both counted from 0."""
        if cur_epoch == 0:
            rise = (self.init_lr - self.warmup_start_lr) * cur_step / max(self.warmup_steps, 1)
            return min(self.init_lr, self.warmup_start_lr + rise)
        return self.decayed(cur_epoch)

    def step(self, cur_epoch: int, cur_step: int) -> float:
        """Write the rate of this step into the optimizer's groups; returns it, without any `lr_scale`."""
        lr = self.lr(cur_epoch, cur_step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr


@registry.register_lr_scheduler("linear_warmup_cosine_lr")
class LinearWarmupCosineLRScheduler(Scheduler):
    """Half a cosine from `init_lr` to `min_lr` over `max_epoch` epochs."""

    def decayed(self, epoch: int) -> float:
        wave = 0.5 * (1.0 + math.cos(math.pi * epoch / self.max_epoch))
        return (self.init_lr - self.min_lr) * wave + self.min_lr


@registry.register_lr_scheduler("linear_warmup_step_lr")
class LinearWarmupStepLRScheduler(Scheduler):
    """`init_lr` times `decay_rate` once per epoch, not below `min_lr`."""

    needs_decay_rate = True

    def decayed(self, epoch: int) -> float:
        assert self.decay_rate is not None
        return max(self.min_lr, self.init_lr * self.decay_rate**epoch)


@registry.register_lr_scheduler("constant_lr")
class ConstantLRScheduler(Scheduler):
    """`init_lr`, after the warm-up if there is one."""

    def decayed(self, epoch: int) -> float:
        return self.init_lr


class PerStepScheduler(Scheduler):
    """Base of the schedules that change at every step of the run: linear warm-up, then decay to `min_lr`."""

    def decay(self, done: float) -> float:
        """The share of `init_lr - min_lr` that is left when the share `done` (0 to 1) of the decay is over."""
        raise NotImplementedError

    def lr(self, cur_epoch: int, cur_step: int) -> float:
        t = cur_epoch * self.iters_per_epoch + cur_step
        if t < self.warmup_steps:
            return self.warmup_start_lr + (self.init_lr - self.warmup_start_lr) * t / self.warmup_steps
        done = (t - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return (self.init_lr - self.min_lr) * self.decay(min(done, 1.0)) + self.min_lr


@registry.register_lr_scheduler("linear_warmup_cosine_per_step_lr")
class LinearWarmupCosinePerStepLRScheduler(PerStepScheduler):
    """Half a cosine from `init_lr` to `min_lr` over the steps after the warm-up."""

    def decay(self, done: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * done))


@registry.register_lr_scheduler("linear_warmup_linear_per_step_lr")
class LinearWarmupLinearPerStepLRScheduler(PerStepScheduler):
    """A straight line from `init_lr` to `min_lr` over the steps after the warm-up."""

    def decay(self, done: float) -> float:
        return 1.0 - done


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: those with weight decay and those without.

    No decay for tensors of fewer than two dimensions, nor for names that contain "bias", "ln" or "bn".
    The groups of models that have no `get_optimizer_params` of their own.
    """
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))
        (plain if exempt else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": weight_decay, "lr_scale": lr_scale},
        {"params": plain, "weight_decay": 0.0, "lr_scale": lr_scale},
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: nn.Module) -> set[torch.Tensor]:
    """The trainable weights of linear layers that are neither embeddings nor heads: for `Muon`."""
    return {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.requires_grad
        and not any(part in name for part in ("embed", "head", "predictions"))
    }


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Nearly the nearest matrices with orthogonal rows or columns: (N, rows, columns), as many at once.

    Five Newton-Schulz iterations of a quintic (Jordan et al. 2024), which bring every singular value to
    between about 0.7 and 1.2, small ones too.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT.contiguous()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):  # x <- 3.4445 x + (-4.775 a + 2.0315 a²) x, a = x xᵀ; sums in the products' passes
        a = x @ x.mT
        polynomial = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x if wide else x.mT


class Muon(torch.optim.AdamW):
    """Muon for groups that say `muon: True`, AdamW for the others, at one learning rate.

    Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix before it steps, so that directions in
    which the gradient is small move as fast as those in which it is large. The step is scaled to the size
    of Adam's as in Liu et al. 2025 ("Muon is Scalable for LLM Training", section 2.2): 0.2 times the root
    of the longer side. Weight decay is AdamW's.

    Args:
        params: parameter groups.
        arithmetic: the type in which matrices are orthogonalised; bfloat16 is exact enough.
        options: AdamW's.
    """

    momentum = 0.95

    def __init__(self, params: Any, *, arithmetic: torch.dtype = torch.float32, **options: Any) -> None:
        super().__init__(params, **options)
        self.arithmetic = arithmetic

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        every = self.param_groups
        try:
            self.param_groups = [group for group in every if not group["muon"]]
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            if group["muon"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for p in group["params"]:
            if p.grad is not None:
                by_shape.setdefault(p.shape, []).append(p)
        for shape, parameters in by_shape.items():
            steps = []
            for p in parameters:
                assert p.grad is not None
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())  # AdamW's loading looks for it in every state
                    state["momentum_buffer"] = torch.zeros_like(p)
                state["step"] += 1
                state["momentum_buffer"].lerp_(p.grad, 1 - self.momentum)
                steps.append(p.grad.lerp(state["momentum_buffer"], self.momentum))  # Nesterov's
            size = group["lr"] * 0.2 * math.sqrt(max(shape))
            for p, step in zip(
                parameters, orthogonalised(torch.stack(steps).to(self.arithmetic)), strict=True
            ):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step.to(p.dtype), alpha=size)


def build_optimizer(
    model: nn.Module,
    init_lr: float,
    weight_decay: float = 0.05,
    beta2: float = 0.999,
    lr_layer_decay: float = 1.0,
    name: str = "adamw",
    precision: str = "fp32",
    rules: Sequence[ParameterRule] = (),
) -> torch.optim.AdamW:
    """The optimizer of a model's parameter groups.

    Args:
        model: asked for `get_optimizer_params(weight_decay, lr_scale)`; else grouped by `parameter_groups`.
        init_lr: rate until a schedule sets it.
        weight_decay: of the decayed group.
        beta2: second-moment decay; the first is 0.9.
        lr_layer_decay: handed to the model as `lr_scale`; the factors it puts into its groups are applied.
        rules: what holds for some parameters; see `lavis.common.parameters`.
        name: "adamw"; or "muon": `Muon` for the hidden layers' matrices, AdamW for the rest.
        precision: of the run; with "bf16" Muon orthogonalises in bfloat16.

    Raises:
        ValueError: the model has no trainable parameter.
    """
    own = getattr(model, "get_optimizer_params", None)
    if own is not None:
        groups = own(weight_decay, lr_layer_decay)
    elif lr_layer_decay != 1:
        raise ValueError(
            f"run.lr_layer_decay={lr_layer_decay} needs a model with get_optimizer_params; "
            f"{type(model).__name__} has none"
        )
    else:
        groups = parameter_groups(model.named_parameters(), weight_decay)
    groups = grouped([{**group, "params": list(group["params"])} for group in groups], model, rules)
    parameters = [p for group in groups for p in group["params"]]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no trainable parameter: nothing to optimise")
    if name == "muon":
        matrices = hidden_matrices(model)
        split = [
            {**group, "muon": chosen, "params": [p for p in group["params"] if (p in matrices) == chosen]}
            for group in groups
            for chosen in (True, False)
        ]
        return Muon(
            [group for group in split if group["params"]],
            arithmetic=torch.bfloat16 if precision == "bf16" else torch.float32,
            lr=init_lr,
            betas=(0.9, beta2),
        )
    # the fused kernel updates all weights in one pass and is deterministic; MPS keeps torch's own choice
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(groups, lr=init_lr, betas=(0.9, beta2), fused=True if fused else None)
