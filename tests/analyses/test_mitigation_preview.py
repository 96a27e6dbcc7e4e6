"""Previews on stored scores: fitted apart, judged by group, labelled, and refused with a reason where nothing can be said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from tests.analyses.reading import found as one
from tests.analyses.scored import halves, scored
from xvision.audit import Audit
from xvision.charts import Table
from xvision.errors import ConfigError
from xvision.methods.groups.previews import PREVIEWS
from xvision.registry import analyses
from xvision.result import NotApplicable, Result

CASES = 1600


def run(audit: Audit, **options: Any) -> Result:
    audit.task = "mitigation_preview"
    found = analyses()["mitigation_preview"]
    return found(audit, found.bind(options))


def worse_for_women(cases: int = CASES, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, labels and sex, a tenth of it unknown: d' of 1 for women and 3.3 for men."""
    rng = np.random.default_rng(seed)
    sex, labels = rng.choice(["F", "M"], cases), rng.integers(0, 2, cases)
    distance = np.where(sex == "F", 1.0, 3.3)
    odds = rng.normal(size=cases) + distance * (labels - 0.5)
    return expit(odds), labels, np.where(rng.random(cases) < 0.1, "unknown", sex)


def women(**more: Any) -> Audit:
    scores, labels, sex = worse_for_women()
    return scored(scores, labels, halves(CASES), columns={"sex": sex}, **more)


@pytest.fixture(scope="module")
def result() -> Result:
    return run(women())


def table(result: Result, title: str) -> Table:
    (found,) = [chart for chart in result.charts if isinstance(chart, Table) and title in chart.title]
    return found


def test_equalised_odds_levels_down_and_says_so_in_plain_words(result: Result) -> None:
    assert one(result, "levels_down", column="sex", preview="equalised odds").value == 1
    assert one(result, "levels_down", column="sex", preview="group thresholds").value == 0
    man = one(result, "sensitivity_change", sex="M", preview="equalised odds")
    assert man.high is not None
    assert man.high < 0
    assert (one(result, "ignored_share", sex="M", preview="equalised odds").value or 0) > 0.2
    assert (one(result, "randomised_share", sex="M", preview="equalised odds").value or 0) > 0.2
    said = {row[0]: str(row[2]) for row in table(result, "must be said").rows}
    assert list(said) == list(PREVIEWS)
    for words in ("levels down: no group surely gains", "decides by chance", "ignores the image", "needs the group"):
        assert words in said["equalised odds"]
    assert said["group thresholds"] == "needs the group at prediction time"
    assert said["one new threshold"] == "–"
    assert result.summary.endswith("Of 6 previews, 1 level down and 3 decide by chance.")


def test_group_thresholds_find_more_women_at_the_cost_of_false_alarms(result: Result) -> None:
    where = {"sex": "F", "preview": "group thresholds"}
    gained, lost = one(result, "sensitivity_change", **where), one(result, "specificity_change", **where)
    assert gained.low is not None
    assert gained.low > 0.1
    assert lost.high is not None
    assert lost.high < -0.1
    men = {"sex": "M", "preview": "group thresholds"}
    assert one(result, "helped", **men).value == one(result, "harmed", **men).value == 0
    assert one(result, "helped", **where).unit == "count"
    rows = [row[1] for row in table(result, "help and harm").rows if row[0] == "group thresholds"]
    assert rows == ["F"]  # no man is decided otherwise
    scores, labels, sex = worse_for_women()
    ill = (labels == 1) & (sex == "F") & (halves(CASES) == "test")
    deployed = one(result, "sensitivity", sex="F", preview="as deployed")
    assert deployed.value == pytest.approx((scores[ill] >= 0.5).mean())
    assert gained.value == pytest.approx((one(result, "sensitivity", **where).value or 0) - (deployed.value or 0))


def test_the_unknown_are_a_row_that_keeps_the_deployed_threshold(result: Result) -> None:
    sizes = table(result, "who is judged")
    assert [row[0] for row in sizes.rows] == ["F", "M", "unknown"]
    assert sum(int(row[1] or 0) for row in sizes.rows) == CASES // 2
    assert sizes.rows[2][-1] == "deployed (no group to fit on)"
    kept = {row[0]: row[3] for row in table(result, "before and after").rows if row[1] == "unknown"}
    assert kept["group thresholds"] == kept["equalised odds"] == "none: decided as deployed"
    assert "to" in str(kept["one new threshold"])
    assert one(result, "harmed", sex="unknown", preview="equalised odds").value == 0
    assert (one(result, "helped", sex="unknown", preview="one new threshold").value or 0) > 0
    assert any("They keep the deployed threshold where a preview needs the group" in said for said in result.caveats)
    assert "Nothing here was applied to the model. A changed threshold" in result.caveats[0]
    assert "may be unlawful or clinically unacceptable" in result.caveats[0]


def test_the_cases_behind_the_counts_are_listed(result: Result) -> None:
    cases = result.tables["mitigation_preview"]
    for preview in ("group thresholds", "equal sensitivity"):
        for sex in ("F", "M"):
            rows = cases[(cases["preview"] == preview) & (cases["group"] == sex)]
            for name in ("helped", "harmed"):
                assert rows[name].sum() == pytest.approx(one(result, name, sex=sex, preview=preview).value, abs=1e-4)
    certain = cases[cases["preview"] == "group thresholds"]
    assert set(certain["effect"]) == {"newly found", "new false alarm"}
    assert set(certain["after"]) == {1.0}
    assert set(certain["before"]) == {"class0"}
    assert not (cases["id"] < "case-00800").any()


def test_without_a_split_to_fit_on_nothing_is_previewed() -> None:
    scores, labels, sex = worse_for_women(200)
    with pytest.raises(NotApplicable, match='no split "validation" to fit on'):
        run(scored(scores, labels, columns={"sex": sex}))
    with pytest.raises(NotApplicable, match="added to the predictions"):
        run(scored(scores, labels, halves(200), columns={"sex": sex}, predicted=halves(200) == "test"))
    with pytest.raises(NotApplicable, match="no columns say who the patient is"):
        run(scored(scores, labels, halves(200), columns={"site": sex}))
    three = np.column_stack([scores / 2, scores / 2, 1 - scores])
    with pytest.raises(NotApplicable, match="3 classes and takes the most probable one"):
        run(scored(three, labels, halves(200), columns={"sex": sex}))


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (np.full(400, "F"), "1 known level among the audited cases"),
        (np.array([f"level {place}" for place in range(400)]), "200 levels; at most 20 are previewed"),
        (np.tile(["F"] * 39 + ["M"], 10), "1 of 2 groups have 20 positive and 20 negative patients"),
    ],
)
def test_a_column_that_cannot_be_previewed_says_why(column: np.ndarray, reason: str) -> None:
    scores, labels, _ = worse_for_women(400)
    found = run(scored(scores, labels, halves(400), columns={"odd": column}))
    assert reason in (one(found, "sensitivity_change", column="odd").reason or "")
    assert reason in found.summary
    assert len(found.charts) == 1
    assert len(table(found, "who is judged").rows) <= 20
    assert not len(found.tables["mitigation_preview"])


def test_audited_cases_of_one_class_have_no_sensitivity_but_false_alarms() -> None:
    scores, labels, sex = worse_for_women()
    labels = np.where(halves(CASES) == "test", 0, labels)
    found = run(scored(scores, labels, halves(CASES), columns={"sex": sex}))
    where = {"sex": "F", "preview": "group thresholds"}
    assert one(found, "sensitivity_change", **where).reason == "no positive cases"
    assert (one(found, "specificity_change", **where).value or 0) < 0
    assert any("not estimable (no positive cases)" in row for row in table(found, "before and after").rows)


def test_one_column_is_asked_for_by_name() -> None:
    scores, labels, sex = worse_for_women()
    audit = scored(scores, labels, halves(CASES), columns={"sex": sex, "preview": sex})
    assert {chart.title.split(":")[0] for chart in run(audit, column="sex").charts} == {"Sex"}
    both = run(audit)
    same = one(both, "helped", **{"group preview": "F", "preview": "equalised odds"})
    assert one(both, "helped", preview="equalised odds", sex="F").value == same.value
    with pytest.raises(ConfigError, match=r"column: 'sx' is no patient group column. Did you mean 'sex'"):
        run(audit, column="sx")
    with pytest.raises(ConfigError, match="give a sensitivity from 0 to 1"):
        run(audit, target=2.0)


def test_where_positive_means_healthy_the_moves_are_those_of_disease() -> None:
    scores, labels, sex = worse_for_women()
    audit = scored(scores, labels, halves(CASES), columns={"sex": sex})
    turned = replace(audit, decision=replace(audit.decision, no_disease=1))
    cases = run(turned).tables["mitigation_preview"]
    certain = cases[cases["preview"] == "group thresholds"]
    assert set(certain["effect"]) == {"false alarm spared", "newly missed"}


def test_many_images_of_one_patient_count_once() -> None:
    scores, labels, sex = worse_for_women(800)
    single = run(scored(scores, labels, halves(800), columns={"sex": sex}, patients=np.arange(800)))
    copied = [np.repeat(each, 3) for each in (scores, labels, halves(800), sex, np.arange(800))]
    tripled = run(scored(*copied[:3], columns={"sex": copied[3]}, patients=copied[4]))
    for name in ("helped", "harmed"):
        where = {"sex": "F", "preview": "group thresholds"}
        assert one(tripled, name, **where).value == one(single, name, **where).value
        share = f"{name}_share"
        assert one(tripled, share, **where).high == pytest.approx(one(single, share, **where).high)


def test_the_temperature_leaves_decisions_at_a_half_as_they_are() -> None:
    found = run(women(), recalibration="temperature")
    for sex in ("F", "M", "unknown"):
        where = {"sex": sex, "preview": "group recalibration"}
        assert one(found, "helped", **where).value == one(found, "harmed", **where).value == 0
        assert one(found, "brier_change", **where).value is not None
