"""The decision that is deployed, which every analysis judges: a threshold on a probability, or the most probable class.

Shapes: N cases, K classes. Directions that count (missed disease, false alarm) follow from ``healthy``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from scipy.special import softmax

from xvision.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch

Logits = TypeVar("Logits", np.ndarray, "torch.Tensor")

Direction = Literal["any", "missed disease", "false alarm"]

TIE = 1e-6
"""Log-odds this close below the threshold's count as at the threshold: a probability given as 0.70 must pass 0.7."""


@dataclass(frozen=True)
class Decision:
    """How logits become a decision.

    positive: index of the positive class of a binary model; the case is positive when its softmax probability is at
    least ``threshold``. Both None: the most probable class. declared: stated by who deploys the model, not assumed
    here.

    What counts as broken by an attack: directions, "missed disease" (ill, decided healthy), "false alarm" (healthy,
    decided ill) or "any" wrong decision; off_by, for classes in order (a grade), how many grades off. no_disease: the
    class without disease where it was stated; a binary model may be positive for it ("No Finding").
    """

    positive: int | None = None
    threshold: float | None = None
    declared: bool = False
    directions: tuple[Direction, ...] = ("any",)
    off_by: int = 1
    no_disease: int | None = None

    def __post_init__(self) -> None:
        if (self.positive is None) != (self.threshold is None):
            raise ConfigError(
                f"a decision has positive class {self.positive} and threshold {self.threshold}; give both or neither"
            )
        if self.positive not in (None, 0, 1):
            raise ConfigError(f"positive class {self.positive} is not one of the two classes 0 and 1 of a binary model")
        if self.positive is not None and self.no_disease not in (None, 0, 1):
            raise ConfigError(f"class without disease {self.no_disease} is not one of the two classes 0 and 1")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ConfigError(
                f"decision threshold {self.threshold} is not strictly between 0 and 1; 0.5 is the most probable class"
            )
        if not self.directions or self.off_by < 1:
            raise ConfigError(
                f"found the directions {list(self.directions)} and off_by = {self.off_by}: name at least one direction"
                " and a distance of at least 1"
            )
        if self.off_by > 1 and (self.positive is not None or self.directions != ("any",)):
            raise ConfigError(
                "off_by counts grades in any direction, so it needs more than two classes and no directions"
            )

    @property
    def healthy(self) -> int | None:
        """The class without disease: the one stated; of a binary model without that, the one that is not positive."""
        return self.no_disease if self.no_disease is not None or self.positive is None else 1 - self.positive


def shifted_logits(logits: Logits, decision: Decision) -> Logits:
    """Logits (N, K) moved so that their argmax is the deployed decision, with the same gradients of every difference.

    NumPy or torch, on any device; attacks and maps use it so that they aim at the deployed decision. With a threshold t
    the positive logit minus the other one is reduced by log(t / (1 - t)), and the other logit is set to 0. Raises
    ModelError when a threshold meets other than two classes.
    """
    if decision.positive is None or decision.threshold is None:
        return logits
    if logits.shape[-1] != 2:
        raise ModelError(f"a threshold decides between two classes, but the logits have shape {tuple(logits.shape)}")
    other = 1 - decision.positive
    shifted: Logits = logits - logits[..., other : other + 1]
    shifted[..., decision.positive] += TIE - math.log(decision.threshold / (1 - decision.threshold))
    return shifted


def decide(logits: np.ndarray, decision: Decision) -> np.ndarray:
    """The class decided (N,) for logits (N, K); ties between most probable classes go to the first."""
    return np.asarray(shifted_logits(_finite(logits), decision).argmax(axis=-1))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax (N, K) in float64, without overflow for logits of any size."""
    return np.asarray(softmax(_finite(logits), axis=-1))


def _finite(logits: np.ndarray) -> np.ndarray:
    values = np.asarray(logits, float)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ModelError(f"logits have shape {values.shape}; give one row per case and at least two classes")
    wrong = int((~np.isfinite(values)).any(axis=1).sum())
    if wrong:
        raise ModelError(f"logits of {wrong} of {len(values)} cases are not finite; find the images that cause it")
    return values
