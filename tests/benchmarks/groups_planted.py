"""Flaws planted in phantoms over five seeds: each is found by the pages meant for it, and on the clean twin none is.

A small convolutional network is trained for a second on each set, so that it is good where nothing is planted and the flaw
matters: lesions of women at 0.6 of their contrast, in all splits; another detector at site B of the test split alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from sklearn.metrics import roc_auc_score

from tests.benchmarks.harness import Row, row
from tests.benchmarks.phantom_models import trained
from xvision.analyses.domain_shift import domain_shift
from xvision.analyses.fairness import fairness
from xvision.audit import Audit
from xvision.data.synthetic import PhantomSettings, phantom_dataset
from xvision.engine import Engine
from xvision.methods.decision import Decision
from xvision.result import Result

SEEDS = range(5)
FLAWS: Mapping[str, Mapping[str, float]] = {
    "clean twin": {}, "contrast gap": {"contrast_gap": 0.4}, "site shift": {"site_shift": 0.5},
}  # fmt: skip
_SIDE, _EPOCHS, _ALPHA = 32, 8, 0.05
_RATES = ("sensitivity_difference", "specificity_difference")


@dataclass(frozen=True)
class _Judged:
    """What one audit found. auroc: of the audited cases."""

    auroc: float
    fairness: Result
    shift: Result
    seconds: float


def phantom_audit(seed: int, **flaws: float) -> Audit:
    """1,200 audited phantoms of about 800 patients, a model of 1,500 others, and every column declared."""
    data = phantom_dataset(
        PhantomSettings(n=3000, seed=seed, size=_SIDE, contrast=0.45, visits=2, fractions=(0.5, 0.1, 0.4), **flaws)
    )
    columns = ("sex", "age_band"), ("site", "scanner")
    return Audit(
        trained(data, seed, _SIDE, _EPOCHS), data, Decision(1, 0.5, True), seed, Engine(), *columns, task="fairness"
    )


@cache
def _judged(name: str, seed: int) -> _Judged:
    started = time.process_time()
    audit = phantom_audit(seed, **FLAWS[name])
    found = fairness(audit, permutations=199, resamples=200)
    audit.task = "domain_shift"
    shift = domain_shift(audit, permutations=199, resamples=100)
    return _Judged(roc_auc_score(audit.labels, audit.scores), found, shift, time.process_time() - started)


def _gap(judged: _Judged, column: str) -> bool:
    """Whether the interval of a difference between levels of the column excludes 0."""
    return any(
        item.low is not None and item.high is not None and not item.low <= 0 <= item.high
        for item in judged.fairness.metrics
        if item.name in _RATES and column in item.where
    )


def _fewer_found(judged: _Judged) -> bool:
    """Whether women are shown to have the lower sensitivity."""
    return any(
        item.high is not None and item.low is not None and (item.high < 0 if item.where["sex"] == "F" else item.low > 0)
        for item in judged.fairness.metrics
        if item.name == "sensitivity_difference" and "sex" in item.where
    )


def _uneven(judged: _Judged) -> bool:
    """Whether figures of the sites differ by more than chance, corrected for how many are looked at."""
    values = [
        item.value for item in judged.shift.metrics
        if item.name == "heterogeneity_p" and item.where.get("column") == "site" and item.value is not None
    ]  # fmt: skip
    return bool(values) and min(values) * len(values) < _ALPHA


def _shifted(judged: _Judged) -> bool:
    """Whether the audited images are not like those the model comes from."""
    return (
        min(item.value for item in judged.shift.metrics if item.name == "shift_p" and item.value is not None) < _ALPHA
    )


_QUESTIONS: tuple[tuple[str, str, Callable[[_Judged], bool], str], ...] = (
    ("contrast gap", "women have the lower sensitivity", _fewer_found, "fairness, interval excludes 0"),
    ("site shift", "sites differ in sensitivity or specificity", lambda found: _gap(found, "site"), "fairness, interval excludes 0"),
    ("site shift", "sites differ", _uneven, "domain_shift by level, Cochran's Q, Bonferroni"),
    ("site shift", "images unlike the reference", _shifted, "domain_shift, smallest controlled p < 0.05"),
)  # fmt: skip


def planted_rows() -> Iterator[Row]:
    """Found where planted, not found on the twin, and chance findings in the columns that nothing depends on."""
    for flaw, said, question, how in _QUESTIONS:
        for name, wanted in ((flaw, 5), ("clean twin", 0)):
            found = sum(question(_judged(name, seed)) for seed in SEEDS)
            yield row(f"phantoms, {name}: {said}", f"{found} of 5", f"{wanted} of 5", found == wanted, how)
    idle = {"clean twin": ("sex", "age_band", "site", "scanner"), "contrast gap": ("age_band", "site", "scanner")}
    idle["site shift"] = ("sex", "age_band", "scanner")
    tried = [
        _gap(_judged(name, seed), column) for name, columns in idle.items() for column in columns for seed in SEEDS
    ]
    most = len(_RATES) * (_ALPHA + 3 * (_ALPHA * (1 - _ALPHA) / len(tried)) ** 0.5)
    share = float(np.mean(tried))
    yield row(
        "phantoms: gaps shown in columns without effect", f"{sum(tried)} of {len(tried)}", f"≤ {most:.2f}", share <= most,
        "sensitivity or specificity, two families of 5 % each, plus three standard errors",
    )  # fmt: skip
    for name in FLAWS:
        lowest = min(_judged(name, seed).auroc for seed in SEEDS)
        yield row(f"phantoms, {name}: lowest AUROC", round(lowest, 3), "≥ 0.9", lowest >= 0.9, "1,200 audited phantoms")
    dearest = max(_judged(name, seed).seconds for name in FLAWS for seed in SEEDS)
    yield row("phantoms: CPU seconds of one seed", round(dearest, 1), "≤ 20", dearest <= 20, "training and both pages")
