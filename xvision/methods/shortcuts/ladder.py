"""What the rungs of the shortcut ladder say together: available, encoded, followed, used, causal.

Many columns are looked at on every rung, so what counts as shown is controlled: Holm over the comparisons of a family, times the
number of families. Data without a shortcut then raise a finding in at most one audit of twenty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from xvision.methods.intervals import Estimate, holm
from xvision.methods.paired import p_value

State = Literal["shown", "not shown", "left out"]
RungName = Literal["available", "encoded", "followed", "used", "causal"]
RUNGS: tuple[RungName, ...] = ("available", "encoded", "followed", "used", "causal")
LEVEL = 0.05 / (len(RUNGS) + 2)
"""What a p-value adjusted within its family is held against, so that all together keep 0.05. Each rung is a family; what stands
outside the anatomy is one of its own on the two rungs where it is judged."""

CROSS_FITTED = 1.5
"""By how much the intervals of figures cross-fitted over five folds are too narrow at chance: the fits share their patients, and
so their luck (Nadeau and Bengio 2003: the root of 1 + 5 / 4)."""

CAUSAL = "shortcut shown (causal)"
FOLLOWED = "the decision follows it, cause not shown"
AVAILABLE = "available, not shown to be followed"
UNTRIED = "available, whether it is followed could not be tested"
ENCODED = "encoded, not shown to be used"
NOTHING = "nothing found"
CONCLUSIONS = (CAUSAL, FOLLOWED, AVAILABLE, UNTRIED, ENCODED, NOTHING)
"""From the strongest to the weakest."""


_OF_USE: tuple[RungName, ...] = ("followed", "used", "causal")


@dataclass(frozen=True)
class Rung:
    """figure: in words, with its interval; or why the rung was left out."""

    state: State
    figure: str = ""


def shown(
    estimates: Sequence[Estimate],
    *,
    null: float = 0.0,
    levels: Sequence[float] = (),
    above: bool = False,
    spread: float = 1.0,
) -> list[bool]:
    """For each estimate of one rung, whether it differs from ``null`` after control; False where it has no value.

    levels: of the intervals, 0.95 unless given. above: only values above ``null`` count. spread: by how much
    intervals are too narrow where ``null`` is true.
    """
    given = levels or [0.95] * len(estimates)
    raw = [_p(estimate, null, level, spread) for estimate, level in zip(estimates, given, strict=True)]
    known = [place for place, p in enumerate(raw) if p is not None]
    found = [False] * len(estimates)
    for place, adjusted in zip(known, holm([raw[place] or 0.0 for place in known]), strict=True):
        found[place] = adjusted < LEVEL and (not above or (estimates[place].value or 0.0) > null)
    return found


def _p(estimate: Estimate, null: float, level: float, spread: float) -> float | None:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    value, below, above = estimate.value, estimate.value - estimate.low, estimate.high - estimate.value
    moved = Estimate(value - null, value - null - spread * below, value - null + spread * above, estimate.n, "")
    return p_value(moved, level=level)


def conclusion(rungs: Mapping[str, Rung]) -> str:
    """One of :data:`CONCLUSIONS`: what the rungs of one column or cue say together.

    Only an intervention shows a cause. A decision that follows a column may follow something that goes with it; what is encoded
    need not be used (Glocker 2023).
    """
    found = {name for name, rung in rungs.items() if rung.state == "shown"}
    if "causal" in found:
        return CAUSAL
    if found & {"followed", "used"}:
        return FOLLOWED
    if "available" in found:
        tested = any(name in rungs and rungs[name].state != "left out" for name in _OF_USE)
        return AVAILABLE if tested else UNTRIED
    return ENCODED if "encoded" in found else NOTHING
