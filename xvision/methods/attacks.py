"""Worst-case perturbations within an L-infinity ball, and what they prove about a decision.

Shapes: B batch, C channels, H W image, K classes, E epsilons.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.attack_search import (
    Cases,
    Logits,
    Search,
    decided_otherwise,
    margins,
    nonfinite_rows,
    pixel_gradient,
    searches,
)
from xvision.methods.randomness import require_keys

ATTACKS = ("noise", "fgsm", "pgd")
UNBOUNDED = 0.5


class AttackOutcome(NamedTuple):
    """What the attacks achieved, per case. Arrays are numpy except ``adversarial``.

    epsilons: ascending. broken: (B, E) bool, the decision was changed by any attack at this epsilon or a smaller one;
    False where the clean decision was wrong already. by: the same per attack, each run on its own. adversarial:
    (B, C, H, W) float32, the image of the smallest epsilon that broke the case, clean pixels where none did. smallest:
    (B,) that epsilon, infinity where none. clean_correct: (B,).

    The rest tells whether a survivor can be believed, (B,) bool each, see ``masking_checks``. zero_gradient: the margin
    has no slope at all at the clean image. nonfinite: a gradient or logit was NaN or infinite. unconfirmed: an image
    found in a smaller batch was not adversarial in the full one. missed_grey: PGD found nothing at epsilon 0.5,
    although the mid-grey image, which lies within 0.5 of every image, is decided otherwise.
    """

    epsilons: tuple[float, ...]
    broken: np.ndarray
    by: dict[str, np.ndarray]
    adversarial: torch.Tensor
    smallest: np.ndarray
    clean_correct: np.ndarray
    zero_gradient: np.ndarray
    nonfinite: np.ndarray
    unconfirmed: np.ndarray
    missed_grey: np.ndarray


def linf_attack(
    logits: Logits,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[float],
    *,
    keys: Sequence[str],
    seed: int,
    steps: int = 20,
    restarts: int = 1,
    attacks: Sequence[str] = ATTACKS,
) -> AttackOutcome:
    """Try to change each correct decision by moving every pixel by at most epsilon.

    A broken case is proof: its adversarial image was decided otherwise in float32, inside the ball and [0, 1], in the
    original batch. An unbroken case is not: a stronger attack may exist, so robust accuracy from here is an upper
    bound. The decision is the largest logit; for a deployed threshold pass logits already shifted by it, for a single
    logit z the two columns (0, z). The gradients follow the margin, largest other logit minus the label's.

    Cost per epsilon and surviving case: 10 forward passes of noise, one step of FGSM and up to ``steps`` x ``restarts``
    of PGD, a step being one forward and one backward pass; each attack confirms its hits with one forward pass.

    Args:
        logits: model, (B, C, H, W) in [0, 1] to (B, K), K >= 2; each row's logits must not depend on the other rows.
        pixels: (B, C, H, W) in [0, 1].
        labels: (B,) true classes.
        epsilons: ascending, in [0, 1] pixel units.
        keys: case ids; with ``seed`` they fix each case's noise and random starts, whatever the batch.
        seed: of the audit.
        steps: gradient steps of PGD.
        restarts: starting points of PGD: the image itself, then random ones.
        attacks: some of "noise" (10 uniform draws, the control), "fgsm" (Goodfellow et al. 2015) and "pgd" (Madry et
            al. 2018). Each is run on its own, so that the control can be compared with the attack it controls.

    Raises:
        ConfigError: an option is out of range.
        DataError: images, labels and keys do not match, or pixels leave [0, 1].
        ModelError: fewer than two logits, or a clean logit that is not finite.
    """
    ladder = _ladder(epsilons)
    chosen = searches(attacks, steps, restarts)
    _require_cases(pixels, labels, keys)
    images, classes = pixels.detach().float(), labels.to(pixels.device, torch.int64)
    with torch.inference_mode(False), torch.enable_grad():
        cases = Cases(logits, images.clone(), classes.clone(), tuple(keys), seed)
        clean = _clean_pass(cases)
        climbs = {name: _climb(cases, search, ladder, clean.correct) for name, search in chosen.items()}
        missed = _missed_grey(cases, chosen["pgd"], ladder, climbs["pgd"], clean) if "pgd" in chosen else None
    return _outcome(cases, ladder, clean, climbs, missed)


def concatenate(outcomes: Sequence[AttackOutcome]) -> AttackOutcome:
    """The outcomes of several batches, with the same epsilons and attacks, as one."""
    first = outcomes[0]
    if any(each.epsilons != first.epsilons or each.by.keys() != first.by.keys() for each in outcomes):
        raise ConfigError("attack outcomes of different epsilons or attacks cannot be joined: run them with one plan")
    columns = zip(*((each.broken, *each[4:]) for each in outcomes), strict=True)
    broken, *per_case = (np.concatenate(column) for column in columns)
    by = {name: np.concatenate([each.by[name] for each in outcomes]) for name in first.by}
    return AttackOutcome(first.epsilons, broken, by, torch.cat([each.adversarial for each in outcomes]), *per_case)


class _Clean(NamedTuple):
    correct: torch.Tensor
    zero_gradient: torch.Tensor
    nonfinite: torch.Tensor


def _clean_pass(cases: Cases) -> _Clean:
    pixels = cases.pixels.clone().requires_grad_()
    values = cases.logits(pixels)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ModelError(f"the model returned logits of shape {tuple(values.shape)}: (B, K) with K >= 2 is needed")
    if not bool(torch.isfinite(values).all()):
        raise ModelError("the model returned a NaN or infinite logit on an unchanged image: there is nothing to attack")
    if bool((cases.labels < 0).any()) or bool((cases.labels >= values.shape[1]).any()):
        raise DataError(f"found a label outside 0 to {values.shape[1] - 1}, the classes of the model: map the labels")
    margin = margins(values, cases.labels)
    gradient = pixel_gradient(margin, pixels)
    correct = ~decided_otherwise(values, cases.labels)
    flat = (gradient == 0.0).flatten(1).all(dim=1)
    return _Clean(correct, flat & correct, nonfinite_rows(margin, gradient) & correct)


class _Climb(NamedTuple):
    """One attack up the ladder: broken (B, E), the image at the first break, and two signs against the search."""

    broken: torch.Tensor
    images: torch.Tensor
    nonfinite: torch.Tensor
    unconfirmed: torch.Tensor


def _climb(cases: Cases, search: Search, ladder: tuple[float, ...], attacked: torch.Tensor) -> _Climb:
    """Survivors of each epsilon go on to the next; a break counts at every larger one."""
    images, nonfinite, unconfirmed = cases.pixels.clone(), torch.zeros_like(attacked), torch.zeros_like(attacked)
    broken = attacked.new_zeros(len(attacked), len(ladder))
    alive = torch.nonzero(attacked).squeeze(1)
    for column, epsilon in enumerate(ladder):
        if epsilon == 0.0 or len(alive) == 0:
            continue
        found = search(cases.rows(alive), epsilon)
        inside = _into_ball(found.images, cases.pixels[alive], epsilon)
        confirmed = _confirmed(cases, alive, inside, found.hit)
        images[alive[confirmed]] = inside[confirmed]
        broken[alive[confirmed], column:] = True
        nonfinite[alive] |= found.nonfinite
        unconfirmed[alive] |= found.hit & ~confirmed
        alive = alive[~confirmed]
    return _Climb(broken, images, nonfinite, unconfirmed)


def _into_ball(images: torch.Tensor, centre: torch.Tensor, epsilon: float) -> torch.Tensor:
    return torch.minimum(torch.maximum(images, centre - epsilon), centre + epsilon)


def _confirmed(cases: Cases, rows: torch.Tensor, images: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
    """Which hits stand when their images are put back into the original batch."""
    if not bool(hit.any()):
        return hit
    batch = cases.pixels.clone()
    batch[rows[hit]] = images[hit]
    return hit & cases.decided_otherwise(batch)[rows]


def _missed_grey(cases: Cases, search: Search, ladder: tuple[float, ...], climb: _Climb, clean: _Clean) -> torch.Tensor:
    """Cases that the search leaves unbroken at epsilon 0.5 although mid-grey, inside that ball, is decided otherwise."""
    grey = torch.full_like(cases.pixels, 0.5)
    within = torch.tensor([epsilon <= UNBOUNDED for epsilon in ladder], device=grey.device)
    missed = clean.correct & ~climb.broken[:, within].any(dim=1) & cases.decided_otherwise(grey)
    rows = torch.nonzero(missed).squeeze(1)
    if len(rows) > 0:
        missed[rows] = ~search(cases.rows(rows), UNBOUNDED).hit
    return missed


def _outcome(
    cases: Cases,
    ladder: tuple[float, ...],
    clean: _Clean,
    climbs: Mapping[str, _Climb],
    missed_grey: torch.Tensor | None,
) -> AttackOutcome:
    steps = torch.tensor([*ladder, torch.inf], dtype=torch.float64)
    smallest = torch.full((len(cases.pixels),), torch.inf, dtype=torch.float64)
    adversarial, nonfinite, unconfirmed = cases.pixels.clone(), clean.nonfinite, torch.zeros_like(clean.correct)
    for climb in climbs.values():
        reached = steps[(~climb.broken).sum(dim=1).cpu()]
        closer = (reached < smallest).to(adversarial.device)
        adversarial[closer] = climb.images[closer]
        smallest = torch.minimum(smallest, reached)
        nonfinite, unconfirmed = nonfinite | climb.nonfinite, unconfirmed | climb.unconfirmed
    by = {name: climb.broken.cpu().numpy() for name, climb in climbs.items()}
    return AttackOutcome(
        epsilons=ladder,
        broken=np.logical_or.reduce(list(by.values())),
        by=by,
        adversarial=adversarial,
        smallest=smallest.numpy(),
        clean_correct=clean.correct.cpu().numpy(),
        zero_gradient=clean.zero_gradient.cpu().numpy(),
        nonfinite=nonfinite.cpu().numpy(),
        unconfirmed=unconfirmed.cpu().numpy(),
        missed_grey=(torch.zeros_like(clean.correct) if missed_grey is None else missed_grey).cpu().numpy(),
    )


def _ladder(epsilons: Sequence[float]) -> tuple[float, ...]:
    ladder = tuple(float(epsilon) for epsilon in epsilons)
    rising = all(low < high for low, high in itertools.pairwise(ladder))
    if not ladder or not rising or not 0.0 <= ladder[0] <= ladder[-1] <= 1.0:
        raise ConfigError(f"found the epsilons {list(ladder)}: give at least one, rising, from 0 to 1 in pixel units")
    return ladder


def _require_cases(pixels: torch.Tensor, labels: torch.Tensor, keys: Sequence[str]) -> None:
    if pixels.ndim != 4 or len(pixels) == 0 or labels.shape != pixels.shape[:1]:
        raise DataError(
            f"found pixels of shape {tuple(pixels.shape)} and labels of shape {tuple(labels.shape)}: they must be"
            " (B, C, H, W) with at least one image and (B,)"
        )
    require_keys(keys, len(pixels))
    low, high = pixels.min().item(), pixels.max().item()
    if not (low >= 0.0 and high <= 1.0):
        raise DataError(f"found pixels from {low:.4g} to {high:.4g}: they must be finite and in [0, 1]")
