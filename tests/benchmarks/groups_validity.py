"""Is a gap shown where there is one, and not shown where there is none? Ours beside fairlearn and Aequitas on the same data.

fairlearn's ``difference_ci`` is the percentile bootstrap of largest minus smallest rate. Resampling its rows one by one takes
minutes a data set, so it runs itself on the first ``_REPLAYED`` data sets of each kind; on all of them runs the same bootstrap on
counts, which a test shows to give fairlearn's own limits to the last bit when it is fed fairlearn's own draws.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binom

from tests.benchmarks.harness import Row, row
from xvision.methods.groups.counts import coded, rate, resampled, tabulated
from xvision.methods.groups.gaps import group_gaps, permutation_test
from xvision.methods.groups.power import sample_size
from xvision.methods.groups.verdicts import verdict
from xvision.methods.intervals import proportion, wilson

_GROUPS = (2, 4, 8, 20)
_ILL = 50
_RATE = 0.8
_GAP = 0.15
_POWER = 0.95
"""More than the 0.90 that must be found, so that 200 draws of a true 0.90 do not miss it by chance half the time."""
_REPLAYED = 10
_COVERED = ((10, 0.9, 0.9298), (20, 0.95, 0.9245), (50, 0.9, 0.9703))
"""Trials, rate, and the exact coverage of Wilson's interval: a sum of binomial probabilities."""


class _Data(NamedTuple):
    labels: np.ndarray
    decisions: np.ndarray
    groups: np.ndarray

    @property
    def patients(self) -> np.ndarray:
        return np.arange(len(self.labels))


def missing() -> str | None:
    """None where Aequitas is installed, else what to install."""
    return None if importlib.util.find_spec("aequitas") else "aequitas is not installed: pip install aequitas==1.1.0"


def validity_rows(quick: bool) -> Iterator[Row]:
    sets = 60 if quick else 200
    for groups in _GROUPS:
        yield from _fair(groups, sets, quick)
    for groups in _GROUPS[:2] if quick else _GROUPS:
        yield _planted(groups, sets)
    yield from _coverage(quick)


def _drawn(rng: np.random.Generator, ill: list[int], well: list[int], rates: list[float]) -> _Data:
    """Groups of patients, ill and well, found with their group's rate; a false alarm in one of ten everywhere."""
    labels = np.concatenate([np.repeat([1, 0], [one, other]) for one, other in zip(ill, well, strict=True)])
    groups = np.repeat([f"g{place:02d}" for place in range(len(ill))], np.add(ill, well))
    found = np.repeat(rates, np.add(ill, well))
    return _Data(labels, (rng.random(len(labels)) < np.where(labels == 1, found, 0.1)).astype(int), groups)


def _shown(data: _Data) -> bool:
    gaps = group_gaps(
        data.labels, data.decisions, data.decisions.astype(float), data.groups, data.patients, metric="sensitivity"
    )
    return any(verdict(gap, "sensitivity").word == "gap shown" for gap in gaps)


def _fair(groups: int, sets: int, quick: bool) -> Iterator[Row]:
    """The same sensitivity and specificity everywhere; prevalence between a tenth and a half."""
    ill, well = [_ILL] * groups, np.linspace(_ILL, 9 * _ILL, groups).astype(int).tolist()
    ours = tested = bootstrapped = 0
    theirs: list[bool] = []
    wrong: list[bool] = []
    for seed in range(sets):
        rng = np.random.default_rng([groups, seed])
        data = _drawn(rng, ill, well, [_RATE] * groups)
        ours += _shown(data)
        test = permutation_test(
            data.labels, data.decisions, data.groups, data.patients, rng=rng, metric="sensitivity", permutations=999
        )
        tested += test.p_value is not None and test.p_value <= 0.05
        bootstrapped += _largest_excludes_zero(data, rng)
        if seed < (2 if quick else _REPLAYED):
            theirs.append(_fairlearn_excludes_zero(data, seed))
        if missing() is None and not (quick and seed >= 5):
            wrong.append(_aequitas_significant(data))
    most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / sets)
    what = f"{groups} groups alike"
    yield row(
        f"{what}: gap shown", f"{ours / sets:.3f}", f"≤ {most:.3f}", ours / sets <= most,
        f"{sets} data sets, {_ILL} ill each, sensitivity {_RATE} everywhere, prevalence .1 to .5; simultaneous Newcombe",
    )  # fmt: skip
    yield row(
        f"{what}: any-gap test below .05", f"{tested / sets:.3f}", f"≤ {most:.3f}", tested / sets <= most,
        f"the same {sets} data sets, permutation within label",
    )  # fmt: skip
    yield row(
        f"{what}: percentile bootstrap of max − min excludes 0", f"{bootstrapped / sets:.3f}", "shown", True,
        f"the same {sets} data sets, what fairlearn's difference_ci is, on counts, 1,000 resamples",
    )  # fmt: skip
    yield row(
        f"{what}: fairlearn's difference_ci excludes 0", f"{sum(theirs)} of {len(theirs)}", "shown", True,
        f"the first {len(theirs)} of them, MetricFrame(n_boot=100)",
    )  # fmt: skip
    if wrong:
        yield row(
            f"{what}: Aequitas, an fpr or fnr significance below .05", f"{np.mean(wrong):.3f}", "shown", True,
            f"the first {len(wrong)} of them; false positive and false negative rates are equal in all groups",
        )  # fmt: skip


def _largest_excludes_zero(data: _Data, rng: np.random.Generator) -> bool:
    coding = coded({"group": data.groups})
    table = tabulated(data.labels, data.decisions, coding.codes, coding.count)
    values = np.concatenate([rate(block.counts, "sensitivity") for block in resampled(table, rng=rng, scheme="rows")])
    return bool(np.nanquantile(np.nanmax(values, axis=0) - np.nanmin(values, axis=0), 0.025) > 0)


def _fairlearn_excludes_zero(data: _Data, seed: int) -> bool:
    from fairlearn.metrics import MetricFrame, true_positive_rate

    frame = MetricFrame(
        metrics={"sensitivity": true_positive_rate}, y_true=data.labels, y_pred=data.decisions,
        sensitive_features=data.groups, n_boot=100, ci_quantiles=[0.025, 0.975], random_state=seed,
    )  # fmt: skip
    return bool(frame.difference_ci()[0]["sensitivity"] > 0)


def _aequitas_significant(data: _Data) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from aequitas.bias import Bias
        from aequitas.group import Group

        frame = pd.DataFrame({"group": data.groups, "score": data.decisions, "label_value": data.labels})
        frame["group"] = frame["group"].astype(object)
        crosstabs, _ = Group().get_crosstabs(frame, attr_cols=["group"])
        found: Any = Bias().get_disparity_predefined_groups(
            crosstabs, original_df=frame, ref_groups_dict={"group": "g00"}, check_significance=True, alpha=0.05,
            mask_significance=False,
        )  # fmt: skip
    others = found[found["attribute_value"] != "g00"][["fpr_significance", "fnr_significance"]]
    return bool((others.to_numpy(float) < 0.05).any())


def _planted(groups: int, sets: int) -> Row:
    """One group is found less often by the gap; as many ill in each as the power calculation asks for."""
    size = sample_size("sensitivity", _RATE - _GAP, _RATE, power=_POWER, groups=groups).cases
    found = 0
    for seed in range(sets):
        rng = np.random.default_rng([groups, seed, 1])
        found += _shown(_drawn(rng, [size] * groups, [size] * groups, [_RATE - _GAP, *[_RATE] * (groups - 1)]))
    return row(
        f"{groups} groups, one {_GAP} worse: gap shown", f"{found / sets:.3f}", "≥ 0.90", found / sets >= 0.9,
        f"{sets} data sets of {size} ill in each group, as asked for a power of {_POWER}",
    )  # fmt: skip


def _coverage(quick: bool) -> Iterator[Row]:
    for trials, truth, exact in _COVERED:
        hits = np.arange(trials + 1)
        limits = np.array([wilson(int(count), trials) for count in hits])
        inside = (limits[:, 0] <= truth) & (truth <= limits[:, 1])
        covered = float(binom.pmf(hits[inside], trials, truth).sum())
        yield row(
            f"Wilson, n = {trials}, p = {truth}: exact coverage", f"{covered:.4f}", f"{exact}", abs(covered - exact) < 5e-5,
            "sum of binomial probabilities",
        )  # fmt: skip
    yield from _clustered(200 if quick else 2000)


def _clustered(sets: int) -> Iterator[Row]:
    """100 patients of one to five images whose outcomes belong together; the truth is the mean rate by image."""
    from xvision.methods.intervals import bootstrap

    inside = {"bootstrap": 0, "Wilson on the effective size": 0}
    naive = 0
    for seed in range(sets):
        rng = np.random.default_rng([7, seed])
        sizes = rng.integers(1, 6, 100)
        patients = np.repeat(np.arange(100), sizes)
        hits = rng.random(len(patients)) < rng.beta(4, 1, 100)[patients]
        drawn = bootstrap(
            lambda weights, hits=hits: (weights @ hits) / weights.sum(axis=1), patients, rng=rng, resamples=1000
        )
        shared = proportion(hits, patients)
        alone = proportion(hits, np.arange(len(hits)))
        for name, found in (("bootstrap", drawn), ("Wilson on the effective size", shared)):
            inside[name] += (found.low or 0) <= 0.8 <= (found.high or 0)
        naive += (alone.low or 0) <= 0.8 <= (alone.high or 0)
    slack = 0.0 if sets >= 2000 else 3 * np.sqrt(0.05 * 0.95 / sets)
    for name, count in inside.items():
        yield row(
            f"patients of several images, {name}: coverage",
            f"{count / sets:.3f}",
            f"{0.93 - slack:.3f} to {min(0.97 + slack, 1.0):.3f}",
            0.93 - slack <= count / sets <= 0.97 + slack,
            f"{sets} data sets of 100 patients with one to five images; with images taken for patients: {naive / sets:.3f}",
        )
