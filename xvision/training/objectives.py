"""What training makes small: a loss for every image, weighted so that parts of a batch add up to the whole batch."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from xvision.recipe import TrainingPlan


def example_losses(
    logits: torch.Tensor, labels: torch.Tensor, plan: TrainingPlan, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """(B,) losses of logits (B, K): cross-entropy for labels (B,), mean binary cross-entropy for labels (B, K).

    Focal loss multiplies each by (1 − p)^γ, p being the probability given to the truth (Lin et al., 2017). class_weights:
    (K,); in the multi-label case they multiply the positive part. The sum over a batch has to be divided by
    ``batch_weight`` to be its mean.
    """
    logits = logits.float()
    if labels.ndim == 2:
        return _multilabel_losses(logits, labels, plan, class_weights)
    losses = F.cross_entropy(
        logits, labels, weight=class_weights, label_smoothing=plan.label_smoothing, reduction="none"
    )
    if plan.loss == "focal":
        truth = F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0].exp()
        losses = (1 - truth) ** plan.focal_gamma * losses
    return losses


def _multilabel_losses(
    logits: torch.Tensor, labels: torch.Tensor, plan: TrainingPlan, class_weights: torch.Tensor | None
) -> torch.Tensor:
    smooth = plan.label_smoothing
    target = labels * (1 - smooth) + 0.5 * smooth
    losses = F.binary_cross_entropy_with_logits(logits, target, pos_weight=class_weights, reduction="none")
    if plan.loss == "focal":
        truth = torch.sigmoid(torch.where(labels > 0.5, logits, -logits))
        losses = (1 - truth) ** plan.focal_gamma * losses
    return losses.mean(dim=1)


def balanced_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """(K,) float32. Multi-class: N / (K · count). Multi-label: negatives / positives of each finding, at most 100."""
    if labels.ndim == 2:
        positives = labels.sum(axis=0)
        weights: np.ndarray = np.clip((len(labels) - positives) / np.maximum(positives, 1), None, 100)
    else:
        weights = len(labels) / (classes * np.bincount(labels, minlength=classes))
    return weights.astype(np.float32)


def batch_weight(labels: np.ndarray, class_weights: np.ndarray | None) -> float:
    """What the sum of a batch's losses is divided by: the class weights of its images, or their number."""
    return float(len(labels) if class_weights is None or labels.ndim == 2 else class_weights[labels].sum())


class GroupWeights:
    """Group distributionally robust optimisation: the weight of a group grows with its loss (Sagawa et al., 2020).

    The weights used at a step come from the losses before it, so that they do not depend on how a batch is split.
    """

    def __init__(self, groups: int, rate: float, device: torch.device) -> None:
        self.weights = torch.full((groups,), 1.0 / groups, device=device)
        self.rate = rate

    def example_weights(self, groups: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """(B,) weights that make the sum of a batch's losses Σ_g q_g · mean loss of g; counts: (G,) images in the batch."""
        present = self.weights * (counts > 0)
        share = present / present.sum()
        return (share / counts.clamp(min=1))[groups]

    def update(self, sums: torch.Tensor, counts: torch.Tensor) -> None:
        """sums: (G,) losses added up over the batch; groups that are not in it keep their weight."""
        means = sums / counts.clamp(min=1)
        grown = self.weights * torch.exp(self.rate * means)
        self.weights = grown / grown.sum()
