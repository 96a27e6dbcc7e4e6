"""Adversarial training in L∞: images moved against the loss before they are learned from. Epsilon in [0, 1] pixel units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from xvision.recipe import AttackPlan

Logits = Callable[[torch.Tensor], torch.Tensor]
Losses = Callable[[torch.Tensor], torch.Tensor]
"""Logits (B, K) → losses (B,)."""


def robust_losses(logits: Logits, losses: Losses, pixels: torch.Tensor, plan: AttackPlan) -> torch.Tensor:
    """(B,) losses on moved images, or clean losses plus the TRADES penalty; with method "none" the clean losses."""
    if plan.method == "none":
        return losses(logits(pixels))
    if plan.method == "trades":
        return _trades(logits, losses, pixels, plan)
    steps, size = (
        (1, 1.25 * plan.epsilon) if plan.method == "fgsm-rs" else (plan.steps, 2.5 * plan.epsilon / plan.steps)
    )
    moved = _ascend(lambda images: losses(logits(images)).sum(), pixels, plan.epsilon, steps, size)
    return losses(logits(moved))


def _trades(logits: Logits, losses: Losses, pixels: torch.Tensor, plan: AttackPlan) -> torch.Tensor:
    """Clean loss and β times the divergence between the answers to clean and moved images (Zhang et al., 2019)."""
    with torch.no_grad():
        fixed = F.log_softmax(logits(pixels).float(), dim=1)
    moved = _ascend(
        lambda images: _divergence(fixed, logits(images)).sum(), pixels, plan.epsilon, plan.steps,
        2.5 * plan.epsilon / plan.steps,
    )  # fmt: skip
    both = logits(torch.cat((pixels, moved)))
    clean, attacked = both.chunk(2)
    return losses(clean) + plan.beta * _divergence(F.log_softmax(clean.float(), dim=1), attacked)


def _divergence(log_probabilities: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """(B,) Kullback-Leibler divergence from the first to the second."""
    other = F.log_softmax(logits.float(), dim=1)
    return (log_probabilities.exp() * (log_probabilities - other)).sum(dim=1)


def _ascend(
    objective: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, epsilon: float, steps: int, size: float
) -> torch.Tensor:
    """Signed gradient steps from a random start, inside the ball and inside [0, 1]; parameters get no gradient."""
    low, high = (pixels - epsilon).clamp(min=0), (pixels + epsilon).clamp(max=1)
    moved = pixels + torch.empty_like(pixels).uniform_(-epsilon, epsilon)
    for _ in range(steps):
        moved = moved.clamp(low, high).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(moved), moved)
        moved = moved.detach() + size * gradient.sign()
    return moved.clamp(low, high).detach()
