"""How weights move: which of them decay, how fast they learn at each step, and their moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from xvision.recipe import TrainingPlan

_SCALES = ("ia3_l", "lora_E")
"""Factors that IA3 and AdaLoRA keep as matrices of one column: decay would pull them away from changing nothing."""


def optimiser(model: nn.Module, plan: TrainingPlan) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum over the weights that are trained."""
    groups = parameter_groups(model, plan.weight_decay)
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.learning_rate, momentum=plan.momentum, nesterov=plan.momentum > 0)
    # A shorter memory of squared gradients than the default: with 0.999, training collapsed at twice the learning rate.
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95), fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and filters; none for biases, norms, positions, the read-out token and an adapter's scales."""
    embedded = {
        id(weights) for part in model.modules() if isinstance(part, nn.Embedding) for weights in part.parameters()
    }
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weights in model.named_parameters():
        spared = weights.ndim <= 1 or id(weights) in embedded or any(scale in name for scale in _SCALES)
        if weights.requires_grad:
            (others if spared else decayed).append(weights)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate(step: int, total: int, plan: TrainingPlan) -> float:
    """Linear warm-up over the plan's share of the steps, then half a cosine down to 0."""
    warmup = max(1, round(plan.warmup * total))
    if step < warmup:
        return plan.learning_rate * (step + 1) / warmup
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class MovingAverage:
    """An exponential moving average of the trained weights; early on it forgets faster, so that the start does not linger."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = [weights for weights in model.parameters() if weights.requires_grad]
        self.means = [weights.detach().clone() for weights in self.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """step counts from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.means, list[torch.Tensor](self.weights), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages in place of the weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weights, mean in zip(self.weights, self.means, strict=True):
            held = weights.detach().clone()
            weights.copy_(mean)
            mean.copy_(held)
