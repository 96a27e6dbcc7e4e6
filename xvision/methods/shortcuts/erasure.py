"""What a linear head does without the directions in which the embeddings tell a column. Shapes: N cases, D dimensions, K classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.covariance import ledoit_wolf

from xvision.errors import DataError

_ENOUGH = 0.99
"""Share of the logits' variance on held-out patients that a linear read-out must explain to stand for the head."""
CONTROLS = 20
"""Random directions that the removal is held against."""


class Head(NamedTuple):
    """A linear read-out of the embeddings: logits = embeddings @ weight + bias, each row centred. explained: see :func:`read_head`."""

    weight: np.ndarray
    bias: np.ndarray
    explained: float

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Logits (N, K), up to a constant of each case."""
        return np.asarray(embeddings @ self.weight + self.bias)


def read_head(embeddings: np.ndarray, logits: np.ndarray, patients: np.ndarray) -> Head | str:
    """The head as a linear function of the embeddings, or why it is not one.

    embeddings: (N, D). logits: (N, K). patients: (N,). Least squares on four fifths of the patients must explain at least 0.99 of
    the variance of each logit on the others; then all cases are used. An approximation below that would show its own errors as
    changed decisions.
    """
    values, wanted = np.asarray(embeddings, float), np.asarray(logits, float)
    if values.ndim != 2 or len(values) != len(wanted):
        raise DataError(
            f"{len(wanted)} rows of logits came with embeddings of shape {values.shape}: give one row per case"
        )
    wanted = wanted - wanted.mean(axis=1, keepdims=True)
    _, codes = np.unique(patients, return_inverse=True)
    first = codes % 5 != 0
    needed = int(np.ceil(1.25 * (values.shape[1] + 2)))
    if first.sum() < values.shape[1] + 2 or first.all():
        return (
            f"{len(values)} cases are too few to read a head on {values.shape[1]} dimensions off the embeddings: about {needed} are"
            " needed (option embeddings)"
        )
    part = _least_squares(values[first], wanted[first])
    held, variance = wanted[~first], wanted[~first].var(axis=0)
    if not variance.all():
        return "the logits are the same in every case"
    explained = float((1 - ((part(values[~first]) - held) ** 2).mean(axis=0) / variance).min())
    if explained < _ENOUGH:
        return f"the head cannot be read off the embeddings: a linear one explains {max(explained, 0.0):.3f} of the logits' variance"
    return _least_squares(values, wanted)._replace(explained=explained)


def _least_squares(values: np.ndarray, wanted: np.ndarray) -> Head:
    centre = values.mean(axis=0)
    weight, *_ = np.linalg.lstsq(values - centre, wanted, rcond=1e-6)
    return Head(weight, wanted.mean(axis=0) - centre @ weight, 1.0)


class Eraser(NamedTuple):
    """Moves embeddings so that nothing linear is left along some directions. mean: (D,). removed: (D, D), an oblique projection."""

    mean: np.ndarray
    removed: np.ndarray

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, D)."""
        return np.asarray(embeddings - (embeddings - self.mean) @ self.removed.T)


class Whitened(NamedTuple):
    """Embeddings' mean (D,), and the matrices (D, D) that make their spread within a label a sphere, and undo it."""

    mean: np.ndarray
    there: np.ndarray
    back: np.ndarray

    def eraser(self, directions: np.ndarray) -> Eraser:
        """Removes orthonormal directions (D, r) of the whitened space."""
        return Eraser(self.mean, self.back @ directions @ directions.T @ self.there)


def whitened(embeddings: np.ndarray, labels: np.ndarray) -> Whitened:
    """From embeddings (N, D) and labels (N,); the covariance within a label is shrunk (Ledoit and Wolf 2004)."""
    values = np.asarray(embeddings, float)
    covariance, _ = ledoit_wolf(_within(values, labels), assume_centered=True)
    spread, axes = np.linalg.eigh(covariance)
    spread = np.maximum(spread, 1e-12 * max(float(spread.max()), 1e-300))
    return Whitened(values.mean(axis=0), (axes / np.sqrt(spread)) @ axes.T, (axes * np.sqrt(spread)) @ axes.T)


def concept_directions(space: Whitened, embeddings: np.ndarray, levels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(D, r) orthonormal directions of the whitened space in which the levels (N,) differ at the same label (LEACE).

    Removing them with :meth:`Whitened.eraser` leaves no covariance, within labels, between embeddings and levels, so that no linear
    classifier finds these there, and moves the embeddings as little as that allows (Belrose et al. 2023). The label is held fixed so
    that a level that goes with the disease does not take the disease along. At most one direction fewer than levels.
    """
    _, codes = np.unique(levels, return_inverse=True)
    concept = np.eye(int(codes.max()) + 1)[codes]
    covariance = _within(np.asarray(embeddings, float), labels).T @ concept / len(concept)
    left, sizes, _ = np.linalg.svd(space.there @ covariance, full_matrices=False)
    return np.asarray(left[:, sizes > 1e-8 * max(float(sizes.max(initial=0.0)), 1e-12)][:, : concept.shape[1] - 1])


def removed_by_others(
    embeddings: np.ndarray,
    levels: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    *,
    rng: np.random.Generator,
    controls: int = CONTROLS,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) without the column's directions, as the patients of the other folds show them; and (controls, N, D).

    levels, labels, folds: (N,). The controls lose as many directions, turned at random in the same whitened space.
    """
    values = np.asarray(embeddings, float)
    kept, placebo = values.copy(), np.repeat(values[None], controls, axis=0)
    turns = [rng.normal(size=(values.shape[1], len(np.unique(levels)) - 1)) for _ in range(controls)]
    for fold in np.unique(folds):
        held, others = folds == fold, folds != fold
        space = whitened(values[others], labels[others])
        directions = concept_directions(space, values[others], levels[others], labels[others])
        kept[held] = space.eraser(directions)(values[held])
        for place, turn in enumerate(turns):
            turned = np.linalg.qr(turn[:, : directions.shape[1]])[0]
            placebo[place, held] = space.eraser(turned)(values[held])
    return kept, placebo


def _within(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Less the mean of the label."""
    _, codes = np.unique(labels, return_inverse=True)
    sums = np.stack([values[codes == code].mean(axis=0) for code in range(int(codes.max()) + 1)])
    return np.asarray(values - sums[codes])
