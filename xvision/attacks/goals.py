"""What an attack must reach: a decision that is wrong in a way that counts. Shapes: B rows, K logits, F findings.

Every attack works on a goal's margin, which is above 0 where the decision is broken, so that one logit, two logits with a
threshold, several classes, an ordinal scale and several findings are attacked alike. A row that has nothing to break
(a direction that is not declared) has margin minus infinity and is never broken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch

from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.decision import Decision, shifted_logits

LossName = Literal["margin", "cross_entropy", "dlr"]
"""margin: the goal's own. cross_entropy: of the right answer. dlr: difference of logits ratio (Croce and Hein 2020)."""


class Goal(ABC):
    """What counts as broken, for each of B rows; frozen, on the device of the images."""

    target: torch.Tensor
    """(B,) the one way of breaking that a row's loss aims at, a column of ``ways``; -1 for any."""

    @abstractmethod
    def rows(self, index: torch.Tensor) -> Self:
        """The goal of some rows."""

    @abstractmethod
    def ways(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, M) differentiable; above 0 where that way of breaking has succeeded, -inf where it does not count."""

    @abstractmethod
    def broken(self, logits: torch.Tensor) -> torch.Tensor:
        """(B,) bool, the deployed decision is wrong in a way that counts; a NaN or infinite logit is no decision."""

    @abstractmethod
    def cross_entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """(B,) minus the log-probability that the decision is not broken."""

    @abstractmethod
    def dlr(self, logits: torch.Tensor) -> torch.Tensor | None:
        """(B,) the margin relative to a spread of the logits; None where there are too few logits for it."""

    def margin(self, logits: torch.Tensor) -> torch.Tensor:
        """(B,) the largest way, or the one aimed at; differentiable; above 0 exactly where broken (ties aside)."""
        every = self.ways(logits)
        best = every.amax(dim=1)
        aimed = every.gather(1, self.target.clamp(min=0)[:, None]).squeeze(1)
        return torch.where(self.target >= 0, aimed, best)

    def loss(self, name: LossName, logits: torch.Tensor) -> torch.Tensor:
        """(B,) what a gradient attack climbs; dlr falls back to the margin where there are too few logits."""
        if name == "cross_entropy":
            return self.cross_entropy(logits)
        ratio = self.dlr(logits) if name == "dlr" else None
        return self.margin(logits) if ratio is None else ratio

    def possible(self, logits: torch.Tensor) -> torch.Tensor:
        """(B,) bool, rows that have something to break at all."""
        return (self.ways(logits) > -torch.inf).any(dim=1)

    def aimed(self, target: torch.Tensor) -> Self:
        """The same goal, the loss aiming at one way per row; what counts as broken stays as it is."""
        return replace(self, target=target)  # type: ignore[type-var]  # every subclass is a frozen dataclass


@dataclass(frozen=True, eq=False)
class ClassGoal(Goal):
    """One class is decided. wrong: (B, K) bool, the decided classes that count as a break; ways: one per class.

    A model with one logit z counts as the two classes (0, z).
    """

    wrong: torch.Tensor
    decision: Decision
    target: torch.Tensor

    def rows(self, index: torch.Tensor) -> ClassGoal:
        return replace(self, wrong=self.wrong[index], target=self.target[index])

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, K) logits whose argmax is the deployed decision."""
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        if logits.shape != self.wrong.shape:
            raise ModelError(
                f"the model gave logits of shape {tuple(logits.shape)} for a goal of shape {tuple(self.wrong.shape)}"
            )
        return shifted_logits(logits, self.decision)

    def ways(self, logits: torch.Tensor) -> torch.Tensor:
        scores = self.scores(logits)
        kept = scores.masked_fill(self.wrong, -torch.inf).amax(dim=1, keepdim=True)
        return (scores - kept).masked_fill(~self.wrong, -torch.inf)

    def broken(self, logits: torch.Tensor) -> torch.Tensor:
        scores = self.scores(logits)
        decided = scores.argmax(dim=1, keepdim=True)
        return torch.isfinite(logits).all(dim=1) & self.wrong.gather(1, decided).squeeze(1)

    def cross_entropy(self, logits: torch.Tensor) -> torch.Tensor:
        scores = self.scores(logits)
        wrong = scores.masked_fill(~self.wrong, -torch.inf).logsumexp(dim=1)
        right = scores.masked_fill(self.wrong, -torch.inf).logsumexp(dim=1)
        return torch.nn.functional.softplus(wrong - right)  # has a slope where 1 - probability is 0 in float32

    def dlr(self, logits: torch.Tensor) -> torch.Tensor | None:
        scores = self.scores(logits)
        if scores.shape[1] < 4:
            return None
        ordered = scores.sort(dim=1, descending=True).values
        plain = ordered[:, 0] - ordered[:, 2]
        aimed = ordered[:, 0] - 0.5 * (ordered[:, 2] + ordered[:, 3])
        return self.margin(logits) / (torch.where(self.target >= 0, aimed, plain) + 1e-12)


@dataclass(frozen=True, eq=False)
class FindingGoal(Goal):
    """Several findings are decided, each at its own threshold; ways: one per finding.

    present: (B, F) bool, the true findings. counts: (B, F) bool, findings whose change counts. offsets: (F,) log-odds of the
    thresholds. A row is broken as soon as one finding that counts is decided wrongly.
    """

    present: torch.Tensor
    counts: torch.Tensor
    offsets: torch.Tensor
    target: torch.Tensor

    def rows(self, index: torch.Tensor) -> FindingGoal:
        return replace(self, present=self.present[index], counts=self.counts[index], target=self.target[index])

    def ways(self, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape != self.present.shape:
            raise ModelError(
                f"the model gave logits of shape {tuple(logits.shape)} for findings of shape {tuple(self.present.shape)}"
            )
        above = logits - self.offsets
        return torch.where(self.present, -above, above).masked_fill(~self.counts, -torch.inf)

    def broken(self, logits: torch.Tensor) -> torch.Tensor:
        decided = logits >= self.offsets
        return torch.isfinite(logits).all(dim=1) & ((decided != self.present) & self.counts).any(dim=1)

    def cross_entropy(self, logits: torch.Tensor) -> torch.Tensor:
        every = torch.nn.functional.softplus(self.ways(logits))
        aimed = every.gather(1, self.target.clamp(min=0)[:, None]).squeeze(1)
        return torch.where(self.target >= 0, aimed, every.sum(dim=1))

    def dlr(self, logits: torch.Tensor) -> torch.Tensor | None:
        return None


def class_goal(labels: torch.Tensor, classes: int, decision: Decision) -> ClassGoal:
    """The goal for true classes (B,) under a decision: its directions and, on an ordinal scale, its distance.

    Raises DataError for a label outside the classes and ConfigError for a direction without a healthy class.
    """
    if bool((labels < 0).any()) or bool((labels >= classes).any()):
        raise DataError(f"found a label outside 0 to {classes - 1}, the classes of the model: map the labels")
    columns = torch.arange(classes, device=labels.device)
    wrong = (columns[None, :] - labels[:, None]).abs() >= decision.off_by
    if "any" not in decision.directions:
        wrong &= _directed(labels, columns, decision)
    return ClassGoal(wrong, decision, torch.full_like(labels, -1))


def _directed(labels: torch.Tensor, columns: torch.Tensor, decision: Decision) -> torch.Tensor:
    if decision.healthy is None:
        raise ConfigError(
            f"the directions {', '.join(decision.directions)} need a class without disease: name it as decision.no_disease"
        )
    ill, decided_ill = labels[:, None] != decision.healthy, columns[None, :] != decision.healthy
    missed = ill & ~decided_ill if "missed disease" in decision.directions else torch.zeros_like(ill & decided_ill)
    return missed | (~ill & decided_ill) if "false alarm" in decision.directions else missed


def finding_goal(
    present: torch.Tensor,
    thresholds: Sequence[float],
    *,
    chosen: Sequence[int] | None = None,
    directions: Sequence[str] = ("any",),
) -> FindingGoal:
    """The goal for true findings (B, F) bool, thresholds as probabilities; ``chosen`` findings, all of them unless given."""
    if present.ndim != 2 or len(thresholds) != present.shape[1]:
        raise ConfigError(f"found {len(thresholds)} thresholds for findings of shape {tuple(present.shape)}: one each")
    if any(not 0 < value < 1 for value in thresholds):
        raise ConfigError(f"found the thresholds {list(thresholds)}: each must be strictly between 0 and 1")
    counts = torch.zeros_like(present)
    counts[:, list(range(present.shape[1]) if chosen is None else chosen)] = True
    if "any" not in directions:
        wanted = (present & ("missed disease" in directions)) | (~present & ("false alarm" in directions))
        counts = counts & wanted
    offsets = torch.logit(torch.tensor(thresholds, dtype=torch.float64)).float().to(present.device)
    return FindingGoal(present, counts, offsets, torch.full((len(present),), -1, device=present.device))
