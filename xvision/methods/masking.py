"""Do the attacks' survivors mean robustness, or did the gradients mislead the attack? Pure functions on its outcome.

After Carlini et al. (2019), "On evaluating adversarial robustness", Croce and Hein (2020) and Pintor et al. (2022). The
list is neither necessary nor sufficient: no sign is no proof that the attack was strong enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

SIGNIFICANCE = 0.01


class MaskingCheck(NamedTuple):
    """One sign of a misled attack. found: cases that show it, of: cases looked at, sentence: what it means if so."""

    name: str
    found: int
    of: int
    flagged: bool
    sentence: str


def masking_checks(
    by: Mapping[str, np.ndarray],
    epsilons: Sequence[float],
    *,
    clean_correct: np.ndarray,
    zero_gradient: np.ndarray,
    nonfinite: np.ndarray,
    unconfirmed: np.ndarray,
    missed_grey: np.ndarray,
) -> tuple[MaskingCheck, ...]:
    """The checks that the attacks run allow, from the fields of the same name of an attack's outcome over all cases.

    A weaker attack that wins where PGD fails is flagged when it does so significantly more often than the reverse
    (exact one-sided sign test over the cases where the two differ, p < 0.01, at the epsilon with the largest excess).
    Every other sign is flagged at its first case.

    Args:
        by: attack name to (N, E) bool, broken at this epsilon or a smaller one.
        epsilons: (E,).
        clean_correct, zero_gradient, nonfinite, unconfirmed, missed_grey: (N,) bool.

    Returns:
        One row per check: weaker attacks, "missed_grey", "zero_gradient", "nonfinite", "unconfirmed".
    """
    attacked = int(clean_correct.sum())
    weaker = [_beats_pgd(name, by, epsilons, attacked) for name in ("noise", "fgsm") if name in by and "pgd" in by]
    grey = [_any_case("missed_grey", missed_grey, attacked, _GREY)] if "pgd" in by else []
    return (
        *weaker,
        *grey,
        _any_case("zero_gradient", zero_gradient, attacked, _ZERO),
        _any_case("nonfinite", nonfinite, attacked, _NONFINITE),
        _any_case("unconfirmed", unconfirmed, attacked, _UNCONFIRMED),
    )


def warning_signs(checks: Sequence[MaskingCheck]) -> tuple[str, ...]:
    """The sentences of the checks that were flagged, for printing next to a robust accuracy."""
    return tuple(check.sentence for check in checks if check.flagged)


_GREY = (
    "{found} of {of} cases survived PGD at epsilon 0.5, although the mid-grey image lies in their ball and is decided"
    " otherwise: the attack failed, not the case."
)
_ZERO = (
    "The gradient is exactly zero at {found} of {of} clean images, so gradient attacks see nothing there: their"
    " survival is no evidence of robustness."
)
_NONFINITE = (
    "A gradient or logit was NaN or infinite for {found} of {of} cases while they were attacked: their survival is no"
    " evidence of robustness."
)
_UNCONFIRMED = (
    "For {found} of {of} cases an adversarial image lost its effect in the original batch: the logits depend on the"
    " other images in the batch or on chance."
)
_TITLES = {"noise": "Random noise", "fgsm": "A single gradient step"}


def _any_case(name: str, cases: np.ndarray, attacked: int, sentence: str) -> MaskingCheck:
    found = int(cases.sum())
    return MaskingCheck(name, found, attacked, found > 0, sentence.format(found=found, of=attacked))


def _beats_pgd(name: str, by: Mapping[str, np.ndarray], epsilons: Sequence[float], attacked: int) -> MaskingCheck:
    wins = (by[name] & ~by["pgd"]).sum(axis=0)
    losses = (by["pgd"] & ~by[name]).sum(axis=0)
    column = int(np.argmax(wins - losses))
    found, against = int(wins[column]), int(losses[column])
    flagged = found > 0 and binomtest(found, found + against, alternative="greater").pvalue < SIGNIFICANCE
    sentence = (
        f"{_TITLES[name]} broke {found} of {attacked} cases that PGD left unbroken at epsilon {255 * epsilons[column]:.3g}"
        f"/255, and PGD {against} that it did not: a stronger attack should win, so the gradients mislead it."
    )
    return MaskingCheck(f"{name}_beats_pgd", found, attacked, flagged, sentence)
