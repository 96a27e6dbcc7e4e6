"""May a method's maps be relied on? From its advantage over controls and its likeness to maps of shuffled weights.

A control knows nothing of the model: random values, edges, the centre. A method whose map is no better at finding what
the score depends on than every control has not shown that it describes the model, however convincing it looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from xvision.errors import ConfigError, DataError
from xvision.methods.intervals import Estimate, not_estimable
from xvision.methods.paired import Change, mean_change

Word = Literal["describes the model", "no better than a control", "fails randomisation", "not decided"]

_Pair = tuple[str, str]
"""A control and a removal operator."""
_SHUFFLED = "similarity with maps of shuffled weights"


class Decided(NamedTuple):
    """The verdict and, in one sentence, the figures it rests on."""

    word: Word
    sentence: str


class _Known(NamedTuple):
    value: float
    low: float
    high: float


def advantage(
    gains: np.ndarray,
    control_gains: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> Change:
    """Mean of a method's figure minus a control's on the same cases, with interval and p-value; all (N,).

    gains: usually ``faithfulness.srg`` of probabilities. Cases in which either is NaN (a map that ranks nothing) are
    left out. Intervals resample patients; there is none below ten of them.
    """
    if not np.shape(gains) == np.shape(control_gains) == np.shape(patients):
        raise DataError(
            f"found figures of shape {np.shape(gains)} and {np.shape(control_gains)} of patients"
            f" {np.shape(patients)}: one of each per case"
        )
    ranked = np.isfinite(gains) & np.isfinite(control_gains)
    if len(gains) and not ranked.any():
        return Change(None, None, not_estimable("no case in which both maps rank anything"), None)
    return mean_change(control_gains[ranked], gains[ranked], patients[ranked], rng=rng, resamples=resamples)


def decide_map(
    advantages: Mapping[str, Mapping[str, Estimate]], similarity: Estimate, *, margin: float, limit: float
) -> Decided:
    """The verdict on the maps of one method.

    "fails randomisation": the whole interval of the similarity is above ``limit``. "no better than a control": for one
    control under one removal operator at least, the whole interval of the advantage is below ``margin``, which is
    evidence of (at most) practical equality. "describes the model": for every control and operator the whole interval is
    above ``margin``, and the whole interval of the similarity is below ``limit``; because all must hold, testing several
    needs no correction (Berger 1982). Else "not decided": an interval on both sides of the margin, from few patients
    perhaps, is evidence of nothing.

    A failure that is shown stands even where another estimate is missing; the good verdict needs them all. Being worse is
    tested once per comparison, so with k of them a method exactly at the margin is called no better with a probability
    of up to k times that of one interval's side.

    Args:
        advantages: by control, in words ("the centre prior"), then by removal operator ("blur"; "" goes unnamed); of the
            method over it.
        similarity: rank correlation of the method's maps with those of shuffled weights.
        margin: smallest advantage that matters, in its unit; at least 0.
        limit: similarity of maps that hardly depend on the weights, between 0 and 1.
    """
    if not 0.0 <= margin < np.inf or not 0.0 < limit < 1.0:
        raise ConfigError(f"found margin = {margin} and limit = {limit}: at least 0, and between 0 and 1")
    shuffled = _known(similarity)
    compared = {(control, operator): each for control, by in advantages.items() for operator, each in by.items()}
    known = {pair: found for pair, each in compared.items() if (found := _known(each))}
    likeness = _likeness(shuffled, limit) if shuffled else f"{_SHUFFLED} not estimable ({_why(similarity)})"
    if shuffled and shuffled.low > limit:
        gain = [_gain(_hardest(known), known, margin)] if known else []
        return Decided("fails randomisation", _sentence(likeness, *gain))
    equal = min(known, key=lambda pair: known[pair].high, default=None)
    if equal and known[equal].high < margin:
        return Decided("no better than a control", _sentence(_gain(equal, known, margin), likeness))
    if missing := _missing(compared, similarity):
        return Decided("not decided", _sentence(f"not estimable: {missing}"))
    worst = _hardest(known)
    sure = known[worst].low > margin and shuffled is not None and shuffled.high < limit
    sentence = _sentence(_gain(worst, known, margin), likeness)
    return Decided("describes the model" if sure else "not decided", sentence)


def _sentence(*parts: str) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _known(estimate: Estimate) -> _Known | None:
    """Value and interval, or None where one of them is missing."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return _Known(estimate.value, estimate.low, estimate.high)


def _why(estimate: Estimate) -> str:
    return estimate.reason or "no interval"


def _hardest(known: Mapping[_Pair, _Known]) -> _Pair:
    """The comparison whose advantage has the lowest lower limit."""
    return min(known, key=lambda pair: known[pair].low)


def _named(pair: _Pair) -> str:
    control, operator = pair
    return f"{control} ({operator} removal)" if operator else control


def _missing(compared: Mapping[_Pair, Estimate], similarity: Estimate) -> str:
    """What is not known, and why; empty where everything is."""
    absent = [
        f"the advantage over {_named(pair)} ({_why(each)})" for pair, each in compared.items() if _known(each) is None
    ]
    if not compared:
        absent.append("the advantage over a control (compared with none)")
    if _known(similarity) is None:
        absent.append(f"the {_SHUFFLED} ({_why(similarity)})")
    return "; ".join(absent)


def _gain(pair: _Pair, known: Mapping[_Pair, _Known], margin: float) -> str:
    others = f", of {len(known)} comparisons the hardest," if len(known) > 1 else ""
    return f"advantage over {_named(pair)}{others} {_interval(known[pair])}, more than {margin:.3f} is needed"


def _likeness(shuffled: _Known, limit: float) -> str:
    return f"{_SHUFFLED} {_interval(shuffled)}, less than {limit:.3f} is needed"


def _interval(known: _Known) -> str:
    return f"{known.value:.3f} ({known.low:.3f} to {known.high:.3f})".replace("-", "−")
