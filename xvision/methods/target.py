"""The score that is explained, and gradients of it that leave the model as it was. Shapes: B batch, C H W image, K classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from xvision.errors import DataError, ModelError

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Pixels (B, C, H, W) in [0, 1] to logits (B, K)."""
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Pixels (B, C, H, W) and targets (B,) to the score (B,) that is explained."""


def log_odds(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The score that is explained, (B,): target logit minus log-sum-exp of the other logits, that is log(p / (1 - p)).

    For two classes it is the difference of the two logits. Unlike a probability it does not saturate, so a confident
    prediction keeps its gradient; unlike a bare logit it ignores a shift common to all classes. For a multi-label
    finding with logit z pass the two columns (0, z): its score is then z.

    Raises:
        ModelError: logits that are not (B, K) with at least two classes.
        DataError: a target that is no class of the model.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ModelError(f"the model returned logits of shape {tuple(logits.shape)}: (B, K) with K >= 2 is needed")
    outside = (targets < 0) | (targets >= logits.shape[1])
    if bool(outside.any()):
        raise DataError(
            f"found target {int(targets[outside][0])}: the model has the classes 0 to {logits.shape[1] - 1}"
        )
    chosen = torch.nn.functional.one_hot(targets, logits.shape[1]).bool()
    others = logits.masked_fill(chosen, -torch.inf).logsumexp(dim=1)
    return logits[chosen] - others


def score_of(logits: Logits) -> Score:
    """The log-odds of a model as a function of pixels and targets."""
    return lambda pixels, targets: log_odds(logits(pixels), targets)


def checked(pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of the pixels, cut off from any graph, and the targets beside them; DataError when their shapes differ."""
    if pixels.ndim != 4 or targets.shape != pixels.shape[:1]:
        raise DataError(
            f"found pixels of shape {tuple(pixels.shape)} and targets of shape {tuple(targets.shape)}:"
            " they must be (B, C, H, W) and (B,)"
        )
    return pixels.detach().clone().float(), targets.to(pixels.device, torch.int64)


@contextmanager
def gradients_for_pixels() -> Iterator[None]:
    """Gradients on whatever the caller had set; names the model as the cause when none reaches the pixels."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    except RuntimeError as error:
        if "does not require grad" not in str(error) and "not have been used in the graph" not in str(error):
            raise
        raise ModelError(
            "no gradient of the logits reaches the pixels: the model detaches them, so explain it by occlusion"
        ) from error


def finite_maps(maps: torch.Tensor, method: str) -> np.ndarray:
    """Maps (B, H, W) as float32 on the CPU; ModelError naming the first image whose map is NaN or infinite."""
    result: np.ndarray = maps.detach().float().cpu().numpy()
    broken = ~np.isfinite(result).all(axis=(1, 2))
    if broken.any():
        raise ModelError(
            f"{method}: the gradient is NaN or infinite for {int(broken.sum())} of {len(result)} images, the first in"
            f" row {int(np.argmax(broken))}: check the model for overflow or a division by zero"
        )
    return result
