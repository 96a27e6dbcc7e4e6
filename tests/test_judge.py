"""The verdict rule in closed form, and what becomes of missing numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories import write_run
from xvision.errors import ConfigError
from xvision.judge import Criteria, Criterion, exit_code, judge_run, load_criteria
from xvision.result import Metric
from xvision.store import open_run


def criterion(**given: object) -> Criterion:
    base = {"id": "c", "title": "t", "analysis": "performance", "metric": "auroc", "severity": "major", "why": "agreed"}
    return Criterion(**{**base, **given})


@pytest.mark.parametrize(
    ("demand", "low", "high", "verdict"),
    [
        ({"at_least": 0.8}, 0.8, 0.9, "pass"),
        ({"at_least": 0.8}, 0.7, 0.79, "fail"),
        ({"at_least": 0.8}, 0.79, 0.9, "insufficient evidence"),
        ({"at_most": 0.1}, 0.0, 0.1, "pass"),
        ({"at_most": 0.1}, 0.11, 0.2, "fail"),
        ({"at_most": 0.1}, 0.05, 0.2, "insufficient evidence"),
        ({"within": 0.1}, -0.1, 0.1, "pass"),
        ({"within": 0.1}, -0.3, -0.11, "fail"),
        ({"within": 0.1}, 0.11, 0.3, "fail"),
        ({"within": 0.1}, -0.2, 0.2, "insufficient evidence"),
        ({"within": 0.0}, 0.0, 0.0, "pass"),
    ],
)
def test_the_interval_decides(demand: dict[str, float], low: float, high: float, verdict: str) -> None:
    metric = Metric("auroc", (low + high) / 2, low, high, n=10)
    assert criterion(**demand).judge(metric) == verdict
    minor = criterion(**demand, severity="minor").judge(metric)
    assert minor == ("warn" if verdict == "fail" else verdict)


def test_a_missing_number_is_never_a_pass() -> None:
    assert criterion(at_least=0.0).judge(Metric("auroc", None, reason="no positive cases")) == "insufficient evidence"


unit = st.floats(0, 1)


@settings(deadline=None, max_examples=50)
@given(unit, unit, unit)
def test_a_stricter_limit_never_turns_a_fail_into_a_pass(limit: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    metric = Metric("auroc", low, low, high, n=10)
    order = ["fail", "insufficient evidence", "pass"]
    weaker = order.index(criterion(at_least=limit / 2).judge(metric))
    assert order.index(criterion(at_least=limit).judge(metric)) <= weaker


@pytest.mark.parametrize(
    ("given", "verdict", "sentence", "code"),
    [
        ({"at_least": 0.8}, "pass", "AUROC: 0.910 (0.860 to 0.950).", 0),
        ({"at_least": 0.97}, "fail", "AUROC: 0.910 (0.860 to 0.950).", 1),
        ({"at_least": 0.9}, "insufficient evidence", "AUROC: 0.910", 3),
        (
            {"at_least": 0.5, "analysis": "corruption", "metric": "accuracy"},
            "insufficient evidence",
            "'corruption' failed: ValueError: boom",
            3,
        ),
        ({"at_least": 0.5, "analysis": "drift"}, "insufficient evidence", "'drift' is not in this run", 3),
        ({"at_least": 0.5, "metric": "kappa"}, "insufficient evidence", "no number called 'kappa'", 3),
        (
            {"at_least": 0.5, "analysis": "fairness", "metric": "sensitivity", "by": "groups"},
            "pass",
            "Sensitivity (sex F): 0.800",
            0,
        ),
        ({"at_least": 0.5, "analysis": "fairness", "metric": "sensitivity"}, "insufficient evidence", "no number", 3),
    ],
)
def test_a_run_is_judged(tmp_path: Path, given: dict[str, object], verdict: str, sentence: str, code: int) -> None:
    judgement = judge_run(open_run(write_run(tmp_path / "run")), Criteria((criterion(**given),)))
    assert judgement.verdict == judgement.findings[0].verdict == verdict
    assert sentence in judgement.findings[0].sentence
    assert exit_code(judgement) == code
    assert judgement.declared_before_run is False


def test_the_worst_of_several_numbers_is_named_first(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run"))
    both = (criterion(id="a", at_least=0.97), criterion(id="b", at_least=0.8))
    judgement = judge_run(run, Criteria(both))
    assert [finding.id for finding in judgement.findings] == ["a", "b"]
    assert judgement.verdict == "fail"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the key 'criterion' is missing"),
        ("criterion = []", r"no \[\[criterion\]\]"),
        ('[[criterion]]\nid="a"', r"'criterion.0.title' is missing"),
        (
            '[[criterion]]\nid="a"\ntitle="t"\nanalysis="p"\nmetric="m"\nseverity="major"\nwhy="w"',
            r"exactly one of at_least",
        ),
        (
            '[[criterion]]\nid="a"\ntitle="t"\nanalysis="p"\nmetric="m"\nseverity="major"\nwhy=" "\nat_least=1.0',
            r"say why",
        ),
        ('[[criterion]]\nid="a"\ntitel="t"', r"unknown key 'criterion.0.titel'. Did you mean 'title'"),
    ],
)
def test_a_criteria_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "criteria.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_criteria(path)
