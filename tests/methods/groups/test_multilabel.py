"""Several findings and several classes by group: each finding as if alone, unknown labels counted, corrections, confusions."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from statsmodels.stats.multitest import multipletests

from xvision.errors import DataError
from xvision.methods.groups.multilabel import Findings, confusions, finding_gaps
from xvision.methods.groups.rest import rest_p_values
from xvision.methods.groups.table import group_table
from xvision.methods.groups.verdicts import two_proportions
from xvision.methods.intervals import Sample, difference, wilson

NAMES = ("effusion", "nodule", "oedema")


def world(rng: np.random.Generator, size: int, drop: float = 0.0, images: int = 1) -> tuple[np.ndarray, ...]:
    """Labels (N, 3), decisions (N, 3), groups and patients; the second finding is missed more in group "b" by ``drop``."""
    groups, patients = np.repeat(rng.choice(["a", "b", "c"], size // images), images), np.arange(size) // images
    labels = (rng.random((size, 3)) < 0.4).astype(float)
    decisions = rng.random((size, 3)) < np.where(labels == 1, 0.8, 0.1)
    decisions[:, 1] &= ~((groups == "b") & (labels[:, 1] == 1) & (rng.random(size) < drop))
    return labels, decisions, groups, patients


def of(found: Findings, finding: str, group: str):
    (gap,) = [gap for gap in found.gaps if (gap.finding, gap.group) == (finding, group)]
    return gap


def test_each_finding_is_as_if_alone_and_unknown_labels_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(0)
    labels, decisions, groups, _ = world(rng, 500)
    groups[:20] = "d"  # too small
    patients = rng.integers(0, 300, 500)
    labels[rng.random((500, 3)) < 0.1] = np.nan
    found = finding_gaps(labels, decisions, groups, patients, NAMES, metric="sensitivity", rng=rng, resamples=200)
    for at, finding in enumerate(NAMES):
        known = ~np.isnan(labels[:, at])
        assert found.left[finding].cases == (~known).sum() == sum(found.left[finding].by_group.values())
        rows = group_table(
            labels[known, at], decisions[known, at], decisions[known, at], groups[known], patients[known]
        )
        ill = known & (labels[:, at] == 1)
        for row in rows:
            assert found.rates[finding, row.group][:4] == pytest.approx(row.estimates["sensitivity"][:4])
            gap = of(found, finding, row.group)
            sides = [
                Sample(decisions[side, at], patients[side])
                for side in (ill & (groups == row.group), ill & (groups != row.group))
            ]
            if len(np.unique(sides[0].patients)) < 10:
                assert gap.difference.reason == "fewer than 10 patients in the denominator"
                assert (gap.p_value, gap.adjusted) == (None, None)
            else:
                assert gap.difference[:4] == pytest.approx(difference(*sides)[:4])
    mean, used = found.mean["a"]
    assert used == NAMES
    assert mean.value == pytest.approx(np.mean([found.rates[finding, "a"].value for finding in NAMES]))
    assert (mean.low or 0) < (mean.value or 0) < (mean.high or 0)


def test_p_values_are_those_of_two_proportions_and_are_corrected_over_findings_and_groups() -> None:
    rng = np.random.default_rng(1)
    labels, decisions, groups, patients = world(rng, 900, 0.3)
    found = finding_gaps(labels, decisions, groups, patients, NAMES, metric="sensitivity", rng=rng, resamples=50)
    raw = []
    for gap in found.gaps:
        at = NAMES.index(gap.finding)
        inside, outside = (
            decisions[(labels[:, at] == 1) & side, at] for side in (groups == gap.group, groups != gap.group)
        )
        expected = two_proportions(inside.sum(), len(inside), outside.sum(), len(outside)).p_value
        assert gap.p_value == pytest.approx(expected)
        raw.append(expected)
    assert [gap.adjusted for gap in found.gaps] == pytest.approx(multipletests(raw, method="fdr_bh")[1])
    assert (of(found, "nodule", "b").adjusted or 1) < 0.001
    assert (of(found, "nodule", "b").difference.high or 0) < 0
    assert min(gap.adjusted or 1 for gap in found.gaps if gap.finding != "nodule") > 0.05


def test_repeated_images_raise_no_false_alarms() -> None:
    rng, alarms = np.random.default_rng(0), {"by patient": [], "by image": []}
    for _ in range(200):
        strength = rng.beta(2, 1, 120)
        hits, groups = rng.random(480) < np.repeat(strength, 4), np.repeat(np.arange(120) % 2, 4)
        for name, patients in (("by patient", np.arange(480) // 4), ("by image", np.arange(480))):
            alarms[name].append(rest_p_values(hits, groups, patients, count=2)[0] <= 0.05)
    assert np.mean(alarms["by patient"]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(alarms["by image"]) > 0.1
    nobody = np.zeros(0, dtype=int)
    assert np.isnan(rest_p_values(nobody == 1, nobody, nobody, count=2)).all()
    assert np.isnan(rest_p_values(np.ones(5, bool), np.zeros(5, int), np.arange(5), count=2)).all()


def test_findings_share_their_resamples_and_an_unknown_group_is_not_compared() -> None:
    rng = np.random.default_rng(0)
    labels, decisions, groups, patients = world(rng, 300, images=2)
    named = np.where(groups == "c", "unknown", groups)
    twice = [np.column_stack([part[:, 0]] * 3) for part in (labels, decisions)]
    found = finding_gaps(
        *twice, named, patients, NAMES, metric="specificity", rng=np.random.default_rng(1), resamples=400
    )
    one = finding_gaps(
        twice[0][:, :1],
        twice[1][:, :1],
        named,
        patients,
        NAMES[:1],
        metric="specificity",
        rng=np.random.default_rng(1),
        resamples=400,
    )
    # the mean of three copies varies as one does, because the same patients are drawn for all
    assert found.mean["a"][0][:3] == pytest.approx(one.mean["a"][0][:3])
    assert {gap.group for gap in found.gaps} == {"a", "b"}
    assert ("effusion", "unknown") in found.rates
    assert found.mean["unknown"][0].value is not None


def test_a_group_without_a_finding_has_a_mean_over_the_others_which_says_so() -> None:
    rng = np.random.default_rng(0)
    labels, decisions, groups, patients = world(rng, 300)
    labels[groups == "b", 2] = 0
    found = finding_gaps(labels, decisions, groups, patients, NAMES, metric="sensitivity", rng=rng, resamples=50)
    assert found.rates["oedema", "b"].reason == "no cases"
    assert found.mean["b"][1] == ("effusion", "nodule")
    nothing = finding_gaps(labels * 0, decisions, groups, patients, NAMES, metric="sensitivity", rng=rng, resamples=50)
    assert nothing.mean["b"][0].reason == "no finding with 10 patients in the denominator"
    right = finding_gaps(labels, labels, groups, patients, NAMES, metric="sensitivity", rng=rng, resamples=50)
    perfect, units = right.mean["a"][0], min(int(labels[groups == "a", at].sum()) for at in range(3))
    assert (perfect.value, perfect.low) == (1.0, pytest.approx(wilson(units, units)[0]))


def test_confusions_are_those_of_another_library_with_an_interval_each() -> None:
    rng = np.random.default_rng(0)
    labels, decisions = rng.integers(0, 3, 300), rng.integers(0, 3, 300)
    groups = rng.choice(["F", "M", "unknown"], 300, p=[0.5, 0.4, 0.1])
    labels[(groups == "F") & (labels == 2)] = 1
    found = {
        one.group: one
        for one in confusions(labels, decisions, groups, np.arange(300), ("no", "mild", "grave"), rng=rng)
    }
    assert list(found) == ["F", "M", "unknown"]
    for group, one in found.items():
        inside = groups == group
        theirs = confusion_matrix(labels[inside], decisions[inside], labels=[0, 1, 2])
        for code, row in enumerate(one.rows):
            total = theirs[code].sum()
            for other, share in enumerate(row):
                if total:
                    assert share[:4] == pytest.approx(
                        (theirs[code, other] / total, *wilson(theirs[code, other], total), total)
                    )
                else:
                    assert share.reason == "no case of grave"
        kept = inside & np.isin(labels, np.unique(labels[inside]))
        with (
            pytest.warns(UserWarning, match="y_pred contains classes not in y_true") if group == "F" else nullcontext()
        ):
            assert one.macro.value == pytest.approx(balanced_accuracy_score(labels[kept], decisions[kept]))
        assert (one.macro.low or 0) < (one.macro.value or 0) < (one.macro.high or 0)
    assert found["F"].present == ("no", "mild")
    assert found["M"].present == ("no", "mild", "grave")


def test_what_does_not_fit_is_refused() -> None:
    rng = np.random.default_rng(0)
    labels, decisions, groups, patients = world(rng, 30)
    with pytest.raises(
        DataError, match=r"labels of shape \(30, 2\) came with decisions \(30, 3\), 30 groups and 3 findings"
    ):
        finding_gaps(labels[:, :2], decisions, groups, patients, NAMES, metric="sensitivity", rng=rng)
    with pytest.raises(DataError, match="labels must be 0, 1 or NaN"):
        finding_gaps(labels - 1, decisions, groups, patients, NAMES, metric="sensitivity", rng=rng)
    with pytest.raises(DataError, match="30 labels came with 30 decisions, 29 groups"):
        confusions(labels[:, 0], labels[:, 0], groups[:29], patients, ("no", "yes"), rng=rng)
    with pytest.raises(DataError, match="class indices from 0 to 1"):
        confusions(labels[:, 0].astype(int) + 1, labels[:, 0].astype(int), groups, patients, ("no", "yes"), rng=rng)
