"""Losses against torch's own, parts against the whole, and group weights against the published update."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from xvision.recipe import TrainingPlan
from xvision.training.objectives import GroupWeights, balanced_weights, batch_weight, example_losses

PLAN = TrainingPlan()
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(12, 3, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 2, 0, 0, 0, 1, 2, 2, 0, 0, 1])
MANY = (torch.rand(12, 3, generator=GENERATOR) < 0.4).float()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_summed_and_divided_it_is_the_mean_of_torch(weighted: bool, smoothing: float) -> None:
    balance = balanced_weights(LABELS.numpy(), 3) if weighted else None
    weights = None if balance is None else torch.from_numpy(balance)
    losses = example_losses(LOGITS, LABELS, replace(PLAN, label_smoothing=smoothing), weights)
    expected = F.cross_entropy(LOGITS, LABELS, weight=weights, label_smoothing=smoothing)
    assert float(losses.sum() / batch_weight(LABELS.numpy(), balance)) == pytest.approx(float(expected), rel=1e-6)


def test_focal_loss_by_hand() -> None:
    """At p = 3/4 and γ = 2 the loss is (1/4)² · ln(4/3); at γ = 0 it is cross-entropy."""
    logits = torch.log(torch.tensor([[0.25, 0.75]]))
    plan = replace(PLAN, loss="focal")
    assert float(example_losses(logits, torch.tensor([1]), plan)) == pytest.approx(np.log(4 / 3) / 16, rel=1e-5)
    plain = example_losses(LOGITS, LABELS, PLAN)
    assert torch.allclose(example_losses(LOGITS, LABELS, replace(plan, focal_gamma=0.0)), plain)


def test_several_findings_are_so_many_binary_losses() -> None:
    losses = example_losses(LOGITS, MANY, PLAN)
    assert torch.allclose(losses, F.binary_cross_entropy_with_logits(LOGITS, MANY, reduction="none").mean(1))
    weights = balanced_weights(MANY.numpy(), 3)
    weighted = example_losses(LOGITS, MANY, PLAN, torch.from_numpy(weights))
    terms = -(MANY * torch.from_numpy(weights) * F.logsigmoid(LOGITS) + (1 - MANY) * F.logsigmoid(-LOGITS))
    assert torch.allclose(weighted, terms.mean(1))
    focal = example_losses(torch.zeros(1, 3), MANY[:1], replace(PLAN, loss="focal"))
    assert float(focal) == pytest.approx(0.25 * np.log(2), rel=1e-6)


def test_class_weights_are_inverse_to_the_counts() -> None:
    np.testing.assert_allclose(balanced_weights(np.array([0, 0, 0, 1]), 2), [4 / 6, 2.0])
    np.testing.assert_allclose(
        balanced_weights(np.array([[1, 0], [0, 0], [0, 0], [0, 0]], dtype=np.float32), 2), [3, 4]
    )


def test_group_weights_follow_the_published_update() -> None:
    """q_g ∝ q_g · exp(η · mean loss of g) (Sagawa et al., 2020, algorithm 1); an absent group keeps its share."""
    groups = GroupWeights(3, 0.5, torch.device("cpu"))
    counts = torch.tensor([2, 1, 0])
    weights = groups.example_weights(torch.tensor([0, 0, 1]), counts)
    assert weights.tolist() == pytest.approx([0.25, 0.25, 0.5])
    groups.update(torch.tensor([2.0, 3.0, 0.0]), counts)
    grown = np.exp(0.5 * np.array([1.0, 3.0, 0.0]))
    assert groups.weights.tolist() == pytest.approx((grown / grown.sum()).tolist())
