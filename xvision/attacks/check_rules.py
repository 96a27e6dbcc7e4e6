"""The rules of the checks for gradient masking, each on plain arrays; ``check_table`` has them in words, ``probes`` measures.

Shapes: N cases that are decided rightly, E budgets, S steps, K logits. Each returns its check. Shares are judged by exact one-sided
binomial tests at p < 0.01 against what honest models show, so that a few cases do not cry wolf. Every rule raises DataError for arrays that
are not of the same cases.
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from xvision.attacks.check_table import RULES, Check, State, not_run
from xvision.errors import DataError

SIGNIFICANCE = 0.01
LARGE, DROP = 500, 0.002
"""From so many cases on, black-box attacks may break no more than this share alone: AutoAttack's own alarm."""
POINT, POINTS, FEW, SOME, HALF = 0.01, 0.05, 0.05, 0.1, 0.5
SAME, SUMS = 1e-4, 1e-5
"""How far logits may differ, relative to the largest, and how far probabilities may sum to other than 1 (AutoAttack)."""
RISE, LAST = 0.05, 10
"""How much of its rise a converged loss may still make, in so many last steps (Pintor et al. 2022)."""
COSINE = 0.9
_NO_SIGN = "no sign of a misled attack"


def sign_test(found: int, against: int) -> float:
    """p of the exact one-sided sign test: how likely is so great a majority of ``found`` by chance? 1 where none is found."""
    return float(binomtest(found, found + against, alternative="greater").pvalue) if found else 1.0


def exceeds(found: int, of: int, share: float) -> bool:
    """Exact one-sided binomial test: ``found`` of so many is significantly more than the share, p < 0.01."""
    return of > 0 and bool(binomtest(found, of, share, alternative="greater").pvalue < SIGNIFICANCE)


def weaker_wins(id_: Literal["M1", "M2", "M3", "M19"], weaker: np.ndarray, stronger: np.ndarray) -> Check:
    """weaker, stronger: (N,) bool, broken by each when both attack all cases at one epsilon."""
    weak, strong = _cases(weaker, stronger)
    found, against, of = _count(weak & ~strong), _count(strong & ~weak), len(weak)
    many = id_ == "M2" and of >= LARGE and found > DROP * of
    first, second = _PAIRS[id_]
    return _check(
        id_,
        "flagged" if many or sign_test(found, against) < SIGNIFICANCE else "clear",
        (found, of),
        f"{first} broke {found} of {of} cases that {second} did not, and did not break {against} that {second} did",
        "the weaker attack should lose, so gradients mislead the stronger one",
    )


_PAIRS = {
    "M1": ("a single gradient step", "PGD"),
    "M2": ("attacks without gradients", "those with gradients"),
    "M3": ("another model's adversarial images", "the gradient attacks"),
    "M19": ("random noise", "PGD"),
}


def unbounded_survivors(
    unbounded: np.ndarray, reachable: np.ndarray, half: np.ndarray | None, grey: np.ndarray | None
) -> Check:
    """unbounded: (N,) bool, broken where every image is allowed; give that attack restarts, since it fails now and then on honest models.
    reachable: (N,) bool, an image is known that breaks the case. half, grey: (N,) bool, broken within L∞ 0.5; mid-grey breaks it.
    """
    broken, known = _cases(unbounded, reachable)
    proven, counted = known & ~broken, known
    if half is not None and grey is not None:
        within, decided, _ = _cases(half, grey, unbounded)
        proven, counted = proven | (decided & ~within), known | decided
    found, of = _count(proven), _count(counted)
    if of == 0:
        figures = f"no image is known that breaks any of {len(broken)} cases"
        return _check(
            "M4", "clear", (0, 0), figures, "", "as far as seen the model is constant, and surviving is no sign"
        )
    return _check(
        "M4",
        _by_share(found, of, SOME, HALF),
        (found, of),
        f"{found} of {of} cases survived an attack within whose bounds an image is known that breaks them",
        "there the attack failed, not the model stood",
        "no more than happens to an attack that works" if found else _NO_SIGN,
    )


def monotone(curve: np.ndarray) -> Check:
    """curve: (N, E) bool, broken within each budget, ascending, by runs that know nothing of each other."""
    values = np.asarray(curve).astype(bool)
    if values.ndim != 2 or values.shape[1] < 2:
        return not_run("M5", "a curve needs at least two budgets")
    pairs = [(_count(low & ~high), _count(high & ~low)) for low, high in itertools.combinations(values.T, 2)]
    found, against = min(pairs, key=lambda pair: sign_test(*pair))
    return _check(
        "M5",
        "flagged" if sign_test(found, against) * len(pairs) < SIGNIFICANCE else "clear",
        (found, len(values)),
        f"at worst {found} of {len(values)} cases were broken within one budget and not within a larger one, and {against} the other"
        " way round",
        "a larger budget should only help",
    )


def zero_gradients(zero_slope: np.ndarray, tiny_slope: np.ndarray, still: np.ndarray) -> Check:
    """zero_slope, tiny_slope: (N,) bool, as ``probes.slopes`` has them. still: (N,) bool, as ``probes.reach`` has it."""
    zero, tiny, constant = _cases(zero_slope, tiny_slope, still)
    found, of = _count(zero | tiny), len(zero)
    blind = of > 0 and bool(zero.all()) and not constant.all()
    return _check(
        "M6",
        "broken" if blind else "flagged" if found else "clear",
        (found, of),
        f"the margin has no slope at {found} of {of} images, {_count(zero)} of them exactly none",
        "gradient attacks see nothing there, and surviving them is no evidence",
    )


def losses_disagree(
    cross_entropy: np.ndarray, margin: np.ndarray, cross_entropy_zero: np.ndarray, zero_slope: np.ndarray, ways: int
) -> Check:
    """cross_entropy, margin: (N,) bool, broken by one attack on each loss. cross_entropy_zero, zero_slope: (N,) bool, their slopes are
    exactly zero. ways: how many ways of breaking a case has at most; with one, the two losses rise and fall together.
    """
    entropy, best, vanished, zero = _cases(cross_entropy, margin, cross_entropy_zero, zero_slope)
    of, gain, saturated = len(best), _count(best) - _count(entropy), _count(vanished & ~zero)
    behind = exceeds(max(gain, 0), of, POINT if ways == 1 else POINTS)
    return _check(
        "M7",
        "flagged" if behind or exceeds(saturated, of, POINT) else "clear",
        (max(gain, saturated), of),
        f"of {of} cases the attack broke {_count(best)} on the margin and {_count(entropy)} on the cross-entropy, whose slope alone is"
        f" zero at {saturated}",
        "saturated logits hide the way from attacks on the cross-entropy",
    )


def nonfinite_or_cut(nonfinite: np.ndarray, cut: np.ndarray) -> Check:
    """nonfinite: (N,) bool, a logit or gradient was not finite, at the image or during an attack. cut: (N,) bool, no gradient."""
    odd, without = _cases(nonfinite, cut)
    found, of = _count(odd | without), len(odd)
    proof = bool(without.any()) or (of > 0 and bool(odd.all()))
    return _check(
        "M8",
        "broken" if proof else "flagged" if found else "clear",
        (found, of),
        f"{_count(odd)} of {of} cases met a NaN or infinite value, and for {_count(without)} the pixels get no gradient",
        "gradient attacks cannot work there, and surviving them is no evidence",
    )


def unstable_loss(change: np.ndarray, unexplained: np.ndarray) -> Check:
    """change, unexplained: (N,) in [0, 1], as ``probes.steadiness`` has them; only the second is judged."""
    found, of = _count(np.asarray(unexplained) > SOME), len(unexplained)
    return _check(
        "M9",
        _by_share(found, of, SOME),
        (found, of),
        f"in a cube of side 8/255 the margin changes by {np.mean(change):.3f} of itself on average, and at {found} of {of} images by more"
        " than 0.1 beyond what its slope foretells",
        "a gradient says little about what lies next to it",
        value=float(np.mean(unexplained)),
    )


def not_converged(paths: np.ndarray, broken: np.ndarray) -> Check:
    """paths: (N, S) the loss that the attack climbs, at each step. broken: (N,) bool, what it broke; those paths end early and do not
    count. Each path is rescaled to [0, 1] and followed at its best so far (Pintor et al. 2022).
    """
    (fallen,) = _cases(broken)
    values = np.asarray(paths, float)
    if values.ndim != 2 or len(values) != len(fallen):
        raise DataError(f"found paths of shape {values.shape} for {len(fallen)} cases: give one row of steps per case")
    if values.shape[1] < 2 * LAST:
        return not_run("M10", f"paths of {values.shape[1]} steps are too short, {2 * LAST} are needed")
    rise = _late_rise(values[~fallen])
    found, of = _count(rise > RISE), len(rise)
    return _check(
        "M10",
        _by_share(found, of, SOME),
        (found, of),
        f"for {found} of {of} survivors the last {LAST} of {values.shape[1]} steps made more than 5 % of the loss's rise",
        "more steps may break them",
        value=float(rise.mean()) if of else None,
    )


def _late_rise(paths: np.ndarray) -> np.ndarray:
    """(n,) share of each path's rise that its last steps made, 0 for a path that never rises; values that are not finite do not count."""
    finite = np.isfinite(paths)
    best = np.maximum.accumulate(np.where(finite, paths, -np.inf), axis=1)
    lowest = np.where(finite, paths, np.inf).min(axis=1)
    whole = np.where(best[:, -1] > lowest, best[:, -1] - lowest, np.inf)
    before = np.maximum(best[:, -1 - LAST], lowest)
    late = np.where(np.isfinite(lowest), best[:, -1] - before, 0.0)
    return np.asarray(late / whole)


def more_helps(id_: Literal["M11", "M12"], more: np.ndarray, *others: np.ndarray | None) -> Check:
    """more: (N,) bool, broken by an attack with more effort. others: (N,) bool each, by every gradient attack without; None is left out."""
    second, *rest = _cases(more, *(each for each in others if each is not None))
    found, of = _count(second & ~np.logical_or.reduce(rest)), len(second)
    effort = "twice the steps" if id_ == "M11" else "5 starts instead of 1"
    figures = f"{effort} broke {found} of {of} cases that no gradient attack had broken"
    doubt = "the attacks are not yet as strong as they can be"
    return _check(id_, _by_share(found, of, POINT), (found, of), figures, doubt)


def silent_success(silent: np.ndarray) -> Check:
    """silent: (N,) bool, an iterate broke the case and the attack's answer does not."""
    (missed,) = _cases(silent)
    found, of = _count(missed), len(missed)
    figures = f"an iterate broke {found} of {of} cases that the attack reports as unbroken"
    return _check(
        "M13", "broken" if found else "clear", (found, of), figures, "they are counted as standing and are not"
    )


def not_transferred(found: np.ndarray, held: np.ndarray) -> Check:
    """found, held: (N,) bool, what the attack broke, and what is broken when its image is shown alone (``probes.held_alone``)."""
    broken, kept = _cases(found, held)
    lost, of = _count(broken & ~kept), _count(broken)
    return _check(
        "M14",
        _by_share(lost, of, POINT, HALF),
        (lost, of),
        f"{lost} of {of} breaks were none when the image was shown by itself in float32",
        "the attack searched another function than the one that decides",
    )


def random_model(spread: np.ndarray, changed: np.ndarray) -> Check:
    """spread, changed: (N,) as ``probes.repeats`` has them."""
    flips, other = _cases(changed, np.asarray(spread) > SAME)
    found, of = _count(other | flips), len(flips)
    return _check(
        "M15",
        "flagged" if found else "clear",
        (found, of),
        f"shown again, the same image gave other logits in {found} of {of} cases and another decision in {_count(flips)}",
        "one run of an attack is not the figure of a random model: average over draws",
    )


def probabilities_given(logits: np.ndarray) -> Check:
    """logits: (N, K) as the model gives them."""
    values = np.asarray(logits, float)
    inside = np.all((values >= 0) & (values <= 1), axis=1)
    if values.shape[1] > 1 and np.ptp(values, axis=0).max() <= HALF:  # so near together, logits may well be in [0, 1]
        inside &= np.abs(values.sum(axis=1) - 1) <= SUMS
    found, of = _count(inside), len(values)
    figures = f"the outputs of {found} of {of} cases look like probabilities"
    return _check(
        "M16", "flagged" if 0 < found == of else "clear", (found, of), figures, "give the model's logits instead"
    )


def dynamic_defence(dynamic: np.ndarray) -> Check:
    """dynamic: (N,) bool, as ``probes.dynamic`` has it."""
    (asked,) = _cases(dynamic)
    found, of = _count(asked), len(asked)
    figures = f"the model took gradients itself while it answered {found} of {of} cases"
    return _check(
        "M17", "flagged" if found else "clear", (found, of), figures, "these attacks do not foresee how it adapts"
    )


def surface(along_slope: np.ndarray, at_random: np.ndarray) -> Check:
    """along_slope, at_random: (N,) gain of the margin, as ``probes.surface`` has them; equal gains count against the slope."""
    worse = ~(np.asarray(along_slope) > np.asarray(at_random))
    found, of = _count(worse), len(worse)
    figures = f"at {found} of {of} images the margin rises no more along its slope than in a random direction"
    return _check("M18", _by_share(found, of, FEW), (found, of), figures, "the slope leads nowhere")


def batch_dependence(company: np.ndarray, training: np.ndarray) -> Check:
    """company, training: (N,) as ``probes.company`` has them; the mode is told and not judged."""
    (mode,) = _cases(training)
    found, of = _count(np.asarray(company) > SAME), len(mode)
    said = ", which is in training mode," if mode.any() else ""
    figures = f"the model{said} gave {found} of {of} cases other logits alone than beside other images"
    return _check(
        "M20", "flagged" if found else "clear", (found, of), figures, "a decision depends on the batch around it"
    )


def finite_differences(cosine: np.ndarray, double: np.ndarray) -> Check:
    """cosine, double: (N,) as ``probes.differences`` has them; cases with NaN do not count."""
    values = np.asarray(cosine, float)
    values = values[np.isfinite(values)]
    if len(values) < RULES["M21"].fewest:
        return not_run(
            "M21",
            f"only {len(values)} cases have a slope steep enough to be measured, {RULES['M21'].fewest} are needed",
        )
    found, of = _count(values < COSINE), len(values)
    precision = "float64" if np.all(double) else "float32, where rounding and kinks blur it"
    return _check(
        "M21",
        _by_share(found, of, SOME),
        (found, of),
        f"the gradient is not the slope by differences at {found} of {of} images, measured in {precision}",
        "it belongs to another function than the one that decides",
        value=float(np.median(values)),
    )


def twin(within: np.ndarray, reached: np.ndarray) -> Check:
    """within, reached: (n,) as ``probes.linear_twin`` has them; of gradient attacks only, since others need not get so far."""
    exact, attack = _cases(within, reached)
    missed, beyond, of = _count(exact & ~attack), _count(attack & ~exact), len(exact)
    return _check(
        "M22",
        "broken" if missed + beyond else "clear",
        (missed + beyond, of),
        f"of {of} linear cases the attack missed {missed} that can be broken and broke {beyond} that cannot",
        "the tool is broken, whatever the model is",
        "it reaches the closed form",
    )


def _check(
    id_: str,
    state: State,
    counts: tuple[int, int],
    figures: str,
    doubt: str,
    clear: str = _NO_SIGN,
    *,
    value: float | None = None,
) -> Check:
    """A check whose sentence is its figures, with a colon and what they mean in this state."""
    rule = RULES[id_]
    means = clear if state == "clear" else doubt
    said = f"{figures[:1].upper()}{figures[1:]}: {means}."
    return Check(id_, rule.name, rule.statement, *counts, value, rule.rule, state, said)


def _by_share(found: int, of: int, flagged: float, broken: float | None = None) -> State:
    if broken is not None and exceeds(found, of, broken):
        return "broken"
    return "flagged" if exceeds(found, of, flagged) else "clear"


def _cases(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arrays (N,) as bool."""
    shapes = {np.shape(values) for values in arrays}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise DataError(f"found arrays of shapes {sorted(shapes)} for one check: give one value per case in each")
    return tuple(np.asarray(values).astype(bool) for values in arrays)


def _count(values: np.ndarray) -> int:
    return int(np.count_nonzero(values))
