"""Adversarial training against closed forms: on a linear model the worst point of the ball is known."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from xvision.recipe import AttackPlan
from xvision.training.robust import robust_losses

WEIGHTS = torch.tensor([0.5, -2.0, 1.0, 0.25])
PIXELS = torch.full((3, 1, 2, 2), 0.5)
LABELS = torch.tensor([0, 1, 1])


def logits(pixels: torch.Tensor) -> torch.Tensor:
    score = pixels.flatten(1) @ WEIGHTS
    return torch.stack((torch.zeros_like(score), score), dim=1)


def losses(found: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(found, LABELS, reduction="none")


@pytest.mark.parametrize("method", ["fgsm-rs", "pgd"])
def test_the_worst_point_of_a_linear_model_is_found(method: str) -> None:
    """Largest loss in the ball: the score moves by ε·‖w‖₁ against the label. One step of 1.25 ε may stop short of it."""
    torch.manual_seed(0)
    found = robust_losses(logits, losses, PIXELS, AttackPlan(method=method, epsilon=0.1))
    against = torch.tensor([1.0, -1.0, -1.0]) * 0.1 * WEIGHTS.abs().sum()
    score = PIXELS.flatten(1) @ WEIGHTS + against
    worst = losses(torch.stack((torch.zeros_like(score), score), dim=1))
    if method == "pgd":
        assert torch.allclose(found, worst, atol=1e-6)
    assert (losses(logits(PIXELS)) < found).all()
    assert (found <= worst + 1e-6).all()


def test_trades_adds_the_divergence_of_the_answers() -> None:
    """β = 0 leaves the clean loss; with β the penalty is β times KL at the farthest point, here known in closed form."""
    torch.manual_seed(0)
    clean = losses(logits(PIXELS))
    none = robust_losses(logits, losses, PIXELS, AttackPlan(method="trades", epsilon=0.1, beta=0.0))
    assert torch.allclose(none, clean)
    found = robust_losses(logits, losses, PIXELS, AttackPlan(method="trades", epsilon=0.1, beta=2.0, steps=20))
    first = F.log_softmax(logits(PIXELS), dim=1)
    far = 0.1 * WEIGHTS.abs().sum()
    candidates = []
    for sign in (-1, 1):
        score = PIXELS.flatten(1) @ WEIGHTS + sign * far
        second = F.log_softmax(torch.stack((torch.zeros_like(score), score), dim=1), dim=1)
        candidates.append((first.exp() * (first - second)).sum(dim=1))
    penalty = (found - clean) / 2
    assert all(min(abs(float(p - c[i])) for c in candidates) < 1e-4 for i, p in enumerate(penalty))


def test_images_stay_in_the_ball_and_in_the_range_and_weights_get_no_gradient() -> None:
    seen: list[torch.Tensor] = []
    scale = torch.ones((), requires_grad=True)

    def watched(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.detach().clone())
        return logits(pixels) * scale

    pixels = torch.tensor([0.0, 0.02, 0.5, 1.0]).view(1, 1, 2, 2).expand(3, 1, 2, 2)
    found = robust_losses(watched, losses, pixels, AttackPlan(method="pgd", epsilon=0.05, steps=3))
    assert scale.grad is None
    assert len(seen) == 4
    for moved in seen:
        assert (moved - pixels).abs().max() <= 0.05 + 1e-6
        assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    found.sum().backward()
    assert scale.grad is not None


def test_without_a_method_the_images_are_left_alone() -> None:
    assert torch.equal(robust_losses(logits, losses, PIXELS, AttackPlan()), losses(logits(PIXELS)))
