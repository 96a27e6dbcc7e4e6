"""The operating point of an audit: declared, by convention or chosen on validation cases, and said in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_curve

import xvision
from tests.analyses.scored import halves, scored
from xvision.audit import Audit
from xvision.config import DecisionPlan, RulePlan
from xvision.deployed import decision_at, deployed_decision
from xvision.errors import ConfigError, RunError
from xvision.operating import at_operating_point, check_rule
from xvision.store import Run

SENSITIVE = RulePlan("sensitivity", 0.9)
RULE = DecisionPlan("lesion", rule=SENSITIVE)


def subject(*, cases: int = 400, split: np.ndarray | None = None, predicted: np.ndarray | None = None) -> Audit:
    """Scores that tell, two cases of each patient, the first half validation."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.random(cases // 2) < 0.4, 2).astype(int)
    scores = np.round(expit(rng.normal(2.0 * labels - 1.0)), 3)
    split = halves(cases) if split is None else split
    patients = np.repeat(np.arange(cases // 2), 2)
    sex = np.array(["F", "M"])[rng.integers(0, 2, cases)]
    return scored(
        scores, labels, split, columns={"sex": sex}, patients=patients, predicted=predicted, names=("normal", "lesion")
    )


def run(out: Path, audit: Audit, **options: object) -> Run:
    options = {"positive": "lesion", "only": ["performance"], **options}
    return xvision.run_audit(audit.model, audit.everything, out=out, **options)


def test_a_threshold_is_chosen_on_the_validation_cases_and_judged_on_the_others(tmp_path: Path) -> None:
    audit = subject()
    found = run(tmp_path / "run", audit, rule=SENSITIVE)
    tuning = audit.tuning
    assert tuning is not None
    _, reached, thresholds = roc_curve(tuning.labels, tuning.scores, drop_intermediate=False)
    threshold = thresholds[reached >= 0.9][0]
    decision = found.info.decision
    assert decision["threshold"] == pytest.approx(threshold)
    assert decision["rule"] == {"target": "sensitivity", "value": 0.9}
    assert decision["declared"] is True
    share = (tuning.scores[tuning.labels == 1] >= threshold - 1e-9).mean()
    assert decision["statement"] == (
        f"lesion when its probability is at least {threshold:.3f}, the largest threshold with a sensitivity of at least 0.9"
        f" (reached: {share:.3f}) on the 200 validation images (100 patients); it was tuned there, and intervals of rates by group"
        " include that"
    )
    own = found.metrics.set_index("name")["value"]["sensitivity"]
    assert own == pytest.approx((audit.scores[audit.labels == 1] >= threshold - 1e-9).mean())


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            RulePlan("fpr", 0.2),
            r", the smallest threshold with a false positive rate of at most 0\.2 \(reached: 0\.1\d+\) on",
        ),
        (
            RulePlan("net benefit", 0.1),
            ", the threshold with the largest net benefit at a threshold probability of 0.1 on the 200",
        ),
    ],
)
def test_other_rules_are_said_in_their_words(rule: RulePlan, said: str) -> None:
    point = at_operating_point(subject(), replace(RULE, rule=rule)).operating
    assert point.tuned
    assert re.search(said, point.statement)


def test_patients_who_are_also_audited_are_told() -> None:
    split = np.where(np.arange(400) % 4 < 3, "validation", "test")
    said = at_operating_point(subject(split=split), RULE).operating.statement
    assert said.endswith(
        "on the 300 validation images (200 patients); it was tuned there, and intervals of rates by group include"
        " that; 100 patients of them also audited, which makes rates too favourable"
    )


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (DecisionPlan("lesion", 0.35), "lesion when its probability is at least 0.35, declared in the plan"),
        (
            DecisionPlan(threshold=0.9995),
            "lesion when its probability is at least 0.9995, declared in the plan; that it looks for lesion is a convention",
        ),
        (
            DecisionPlan("normal"),
            "normal when its probability is at least 0.5, by convention: the plan declares no threshold",
        ),
        (
            DecisionPlan(),
            "lesion when its probability is at least 0.5, by convention: the plan declares no operating point",
        ),
        (
            DecisionPlan("normal", 1e-7, no_disease="normal"),
            "normal when its probability is at least 1e-07, declared in the plan; normal is the class without disease, so a case"
            " that is wrongly called normal is missed disease",
        ),
    ],
)
def test_what_was_not_chosen_is_said_too(plan: DecisionPlan, said: str) -> None:
    audit = subject()
    decided = at_operating_point(replace(audit, decision=deployed_decision(audit.model, plan)), plan)
    assert decided.operating.statement == said
    assert not decided.operating.tuned
    assert decided.decision == deployed_decision(audit.model, plan)


def test_the_most_probable_class_needs_no_threshold() -> None:
    rng = np.random.default_rng(0)
    audit = scored(rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40), halves(40))
    assert at_operating_point(audit, DecisionPlan()).operating.statement == "the most probable class"
    plan = DecisionPlan("class1", rule=SENSITIVE)
    for decide in (deployed_decision, lambda model, plan: decision_at(model, plan, None)):
        with pytest.raises(ConfigError, match=r"decision\.rule is for two classes; this model has 3"):
            decide(audit.model, plan)


def _without_labels() -> Audit:
    audit = subject()
    table = audit.everything.table.copy()
    table.loc[table.index[:3], "label"] = "unknown"
    return replace(audit, everything=replace(audit.everything, table=table))


def _without(code: int) -> Audit:
    audit = subject()
    kept = (audit.everything.table["split"] == "test") | (audit.everything.table["label"] != audit.classes[code])
    return replace(audit, everything=replace(audit.everything, table=audit.everything.table[kept]))


@pytest.mark.parametrize(
    ("audit", "plan", "message"),
    [
        (lambda: subject(split=np.full(400, "test")), RULE, 'the data has no split "validation" .* table .data.split.'),
        (lambda: subject(split=np.full(400, "validation")), RULE, 'the split "validation" is among the audited images'),
        (lambda: subject(predicted=np.arange(400) > 5), RULE, "have to be added to the predictions .*lacks? one"),
        (_without_labels, RULE, "has cases without a label. Label or remove them. Or give a number"),
        (lambda: _without(1), RULE, "has no case of lesion, so its sensitivity is not defined"),
        (lambda: _without(0), DecisionPlan("lesion", rule=RulePlan("fpr", 0.1)), "has no case of normal, so its fpr"),
    ],
)
def test_what_no_threshold_can_be_chosen_on_is_refused(
    audit: Callable[[], Audit], plan: DecisionPlan, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^decision\.rule: .*{message}"):
        check_rule(audit(), plan)


def test_nothing_is_written_where_nothing_can_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='the data has no split "validation"'):
        run(tmp_path / "run", subject(split=np.full(400, "test")), rule=SENSITIVE)
    assert not (tmp_path / "run").exists()


def test_a_rule_that_only_calling_nobody_keeps_is_refused_and_another_one_may_follow(tmp_path: Path) -> None:
    audit = subject()
    hopeless = RulePlan("fpr", 1e-6)
    high = replace(audit.everything, table=_swapped(audit))
    audit = replace(audit, everything=high, shared={})
    with pytest.raises(
        ConfigError, match=r"only a threshold that calls none of them lesion keeps to a false positive rate of"
    ):
        run(tmp_path / "run", audit, rule=hopeless)
    assert Run(tmp_path / "run").info.decision["threshold"] is None
    assert "has not been chosen yet" in Run(tmp_path / "run").info.decision["statement"]
    assert run(tmp_path / "run", audit, rule=SENSITIVE).info.status == "complete"


def _swapped(audit: Audit) -> object:
    """The labels with the case of the highest score healthy."""
    table = audit.everything.table.copy()
    tuning = audit.tuning
    assert tuning is not None
    table.loc[tuning.ids[tuning.scores == tuning.scores.max()], "label"] = "normal"
    return table


def test_a_run_goes_on_by_the_same_rule_only(tmp_path: Path) -> None:
    audit, out = subject(), tmp_path / "run"
    first = run(out, audit, rule=SENSITIVE)
    key = first.record("performance").key
    again = run(out, audit, rule=SENSITIVE, only=["performance", "calibration"])
    assert again.record("performance").key == key
    assert again.info.decision == first.info.decision
    for other in ({"rule": RulePlan("sensitivity", 0.8)}, {"rule": RulePlan("fpr", 0.2)}, {"threshold": 0.5}):
        with pytest.raises(RunError, match="another decision"):
            run(out, audit, **other)
    stated = json.loads((out / "run.json").read_text())
    stated["decision"]["threshold"] = 0.9
    (out / "run.json").write_text(json.dumps(stated))
    with pytest.raises(RunError, match=r"holds an audit at the threshold 0\.9, and here the rule chooses 0"):
        run(out, audit, rule=SENSITIVE)


def test_the_same_number_declared_is_another_audit_than_one_that_was_chosen(tmp_path: Path) -> None:
    audit = subject()
    chosen = run(tmp_path / "a", audit, rule=SENSITIVE)
    fixed = run(tmp_path / "b", audit, threshold=chosen.info.decision["threshold"])
    assert fixed.record("performance").metrics == chosen.record("performance").metrics
    assert fixed.record("performance").key != chosen.record("performance").key


def test_a_run_without_a_statement_is_gone_on_with(tmp_path: Path) -> None:
    audit, out = subject(), tmp_path / "run"
    run(out, audit, threshold=0.4)
    stated = json.loads((out / "run.json").read_text())
    del stated["decision"]["statement"]
    (out / "run.json").write_text(json.dumps(stated))
    assert run(out, audit, threshold=0.4).info.decision["statement"].endswith("at least 0.4, declared in the plan")


def test_the_model_is_asked_once_for_the_validation_images(phantoms: Path, checkpoint: Path, tmp_path: Path) -> None:
    data = xvision.load_data(phantoms, groups=["sex"])
    model = xvision.load_model(checkpoint, device="cpu")
    splits = data.table["split"].value_counts()
    found = xvision.run_audit(
        model, data, out=tmp_path / "run", positive="lesion", rule=SENSITIVE, only=["performance", "calibration"]
    )
    assert {record.status for record in found.records} == {"ok"}
    assert found.record("calibration").forward == 0
    assert found.info.forward == splits["test"] + splits["validation"]


def test_an_audit_shares_what_was_chosen_with_its_splits_and_draws_alike_in_every_analysis() -> None:
    audit = at_operating_point(subject(), RULE)
    tuning = audit.tuning
    assert tuning is not None
    assert tuning.decision == audit.decision
    assert tuning.operating is audit.operating
    assert (tuning.predictions.decisions == (tuning.scores >= (audit.decision.threshold or 0.0) - 1e-9)).all()
    other = at_operating_point(replace(subject(), task="other"), RULE)
    assert (other.operating.thresholds == audit.operating.thresholds).all()
    assert 0.5 * audit.decision.threshold < np.nanmedian(audit.operating.thresholds) < 1.5 * audit.decision.threshold


def test_a_rule_is_no_decision_until_an_audit_has_asked_it() -> None:
    with pytest.raises(ConfigError, match=r"chosen by an audit\. Give the .* decision\.threshold"):
        deployed_decision(subject().model, RULE)


def test_a_binary_model_may_look_for_the_healthy() -> None:
    model = subject().model
    plain = deployed_decision(model, DecisionPlan("normal", 0.5))
    assert (plain.healthy, plain.no_disease) == (1, None)
    told = deployed_decision(model, DecisionPlan("normal", 0.5, no_disease="normal"))
    assert (told.positive, told.healthy, told.no_disease) == (0, 0, 0)
    with pytest.raises(
        ConfigError, match=r"decision\.no_disease is 'norml', not a class of the model\. Did you mean 'normal'"
    ):
        deployed_decision(model, DecisionPlan(no_disease="norml"))
