"""What counts as broken: thresholds, one logit, directions, grades and findings, each against the decision itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.attacks.goals import class_goal, finding_goal
from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.decision import Decision, decide

quick = settings(deadline=None, max_examples=60)
BINARY = Decision(1, 0.7, True)


def logits_of(seed: int, rows: int, classes: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def test_the_margin_of_a_threshold_is_the_distance_of_the_log_odds() -> None:
    goal = class_goal(torch.tensor([1, 0]), 2, BINARY)
    logits = torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    odds = 2.0 - math.log(0.7 / 0.3)
    torch.testing.assert_close(goal.margin(logits), torch.tensor([-odds, odds]), atol=1e-5, rtol=0)
    assert goal.broken(logits).tolist() == [False, True]


def test_one_logit_counts_as_two() -> None:
    one, two = torch.tensor([[2.0], [0.5]]), torch.tensor([[0.0, 2.0], [0.0, 0.5]])
    goal = class_goal(torch.tensor([1, 1]), 2, BINARY)
    torch.testing.assert_close(goal.ways(one), goal.ways(two))
    assert goal.broken(one).tolist() == [False, True]


@quick
@given(seed=st.integers(0, 9999), classes=st.integers(2, 6), off_by=st.integers(1, 3))
def test_broken_is_what_the_deployed_decision_says(seed: int, classes: int, off_by: int) -> None:
    decision = Decision(off_by=off_by if classes > 2 else 1)
    logits = logits_of(seed, 12, classes)
    labels = torch.arange(12) % classes
    goal = class_goal(labels, classes, decision)
    decided = decide(logits.numpy(), decision)
    expected = np.abs(decided - labels.numpy()) >= decision.off_by
    assert goal.broken(logits).tolist() == expected.tolist()
    assert ((goal.margin(logits) > 0).numpy() == expected).all()


def test_a_grade_one_off_is_no_break_when_two_are_asked_for() -> None:
    goal = class_goal(torch.tensor([2, 2, 0]), 5, Decision(off_by=2))
    decided = torch.eye(5)[[1, 0, 1]]
    assert goal.broken(decided).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        (("any",), [True, True, True, True]),
        (("missed disease",), [True, False, False, False]),
        (("false alarm",), [False, True, False, False]),
        (("missed disease", "false alarm"), [True, True, False, False]),
    ],
)
def test_directions_say_which_wrong_decisions_count(directions: tuple[str, ...], expected: list[bool]) -> None:
    """Labels ill, healthy, ill, ill; decided healthy, ill, another illness, another illness."""
    decision = Decision(directions=directions, no_disease=0)
    goal = class_goal(torch.tensor([1, 0, 1, 2]), 3, decision)
    assert goal.broken(torch.eye(3)[[0, 2, 2, 1]]).tolist() == expected


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize(("direction", "broken"), [("missed disease", [1, 0, 0, 0]), ("false alarm", [0, 0, 1, 0])])
def test_a_model_that_looks_for_the_healthy_misses_disease_by_finding_it(
    positive: int, direction: str, broken: list[int]
) -> None:
    """Class 1 is "No Finding". Ill and called healthy, ill and called ill, healthy and called ill, healthy and called healthy."""
    decision = Decision(positive, 0.5, True, (direction,), no_disease=1)
    goal = class_goal(torch.tensor([0, 0, 1, 1]), 2, decision)
    logits = torch.tensor([[0.0, 2.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    assert goal.broken(logits).tolist() == [bool(each) for each in broken]


def test_a_case_without_a_way_to_break_is_never_broken_and_has_no_margin() -> None:
    goal = class_goal(torch.tensor([0, 1]), 2, Decision(1, 0.5, True, ("missed disease",)))
    logits = torch.tensor([[0.0, 5.0], [0.0, 5.0]])
    assert goal.possible(logits).tolist() == [False, True]
    assert goal.broken(logits).tolist() == [False, False]
    assert goal.margin(logits)[0] == -torch.inf


def test_directions_of_several_classes_need_the_class_without_disease() -> None:
    with pytest.raises(ConfigError, match=r"decision\.no_disease"):
        class_goal(torch.tensor([0]), 3, Decision(directions=("missed disease",)))


@quick
@given(seed=st.integers(0, 9999), shift=st.floats(-3, 3))
def test_findings_break_at_their_own_thresholds(seed: int, shift: float) -> None:
    logits = logits_of(seed, 8, 3) + shift
    present = logits_of(seed + 1, 8, 3) > 0
    thresholds = (0.2, 0.5, 0.9)
    goal = finding_goal(present, thresholds)
    decided = torch.sigmoid(logits.double()) >= torch.tensor(thresholds, dtype=torch.float64)
    assert goal.broken(logits).tolist() == (decided != present).any(dim=1).tolist()
    assert ((goal.margin(logits) >= 0) == goal.broken(logits)).all()


def test_findings_count_only_where_chosen_and_in_their_direction() -> None:
    present = torch.tensor([[True, False, True]])
    logits = torch.tensor([[-1.0, 1.0, 1.0]])
    assert finding_goal(present, (0.5,) * 3, chosen=[2]).broken(logits).tolist() == [False]
    assert finding_goal(present, (0.5,) * 3, directions=("missed disease",)).ways(logits).tolist() == [
        [1.0, -math.inf, -1.0]
    ]
    assert finding_goal(present, (0.5,) * 3, directions=("false alarm",)).ways(logits).tolist() == [
        [-math.inf, 1.0, -math.inf]
    ]


def test_cross_entropy_is_that_of_the_right_answer() -> None:
    logits = logits_of(3, 6, 4)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    goal = class_goal(labels, 4, Decision())
    torch.testing.assert_close(
        goal.cross_entropy(logits), torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    )
    findings = finding_goal(torch.tensor([[True, False]]), (0.5, 0.5))
    values = torch.tensor([[0.3, -1.2]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(values, torch.tensor([[1.0, 0.0]]), reduction="sum")
    torch.testing.assert_close(findings.cross_entropy(values)[0], expected)


def test_cross_entropy_has_a_slope_where_the_probability_rounds_to_one() -> None:
    logits = torch.tensor([[40.0, 0.0]], requires_grad=True)
    goal = class_goal(torch.tensor([0]), 2, Decision())
    goal.cross_entropy(logits).sum().backward()
    torch.testing.assert_close(logits.grad, math.exp(-40) * torch.tensor([[-1.0, 1.0]]))


def test_dlr_has_its_published_value_and_no_scale() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0, 2.0]])
    goal = class_goal(torch.tensor([0]), 5, Decision())
    assert goal.loss("dlr", logits).item() == pytest.approx(-(4 - 3) / (4 - 2))
    aimed = goal.aimed(torch.tensor([1]))
    assert aimed.loss("dlr", logits).item() == pytest.approx(-(4 - 1) / (4 - 0.5 * (2 + 1)))
    torch.testing.assert_close(goal.loss("dlr", 1000 * logits), goal.loss("dlr", logits))


def test_dlr_falls_back_to_the_margin_below_four_classes() -> None:
    logits = logits_of(5, 4, 3)
    goal = class_goal(torch.tensor([0, 1, 2, 0]), 3, Decision())
    torch.testing.assert_close(goal.loss("dlr", logits), goal.margin(logits))


def test_a_logit_that_is_not_finite_is_no_decision() -> None:
    goal = class_goal(torch.tensor([0, 0]), 2, Decision())
    assert goal.broken(torch.tensor([[0.0, math.nan], [0.0, math.inf]])).tolist() == [False, False]


def test_wrong_shapes_and_labels_are_named() -> None:
    with pytest.raises(DataError, match="label outside 0 to 1"):
        class_goal(torch.tensor([2]), 2, Decision())
    with pytest.raises(ModelError, match=r"\(1, 3\)"):
        class_goal(torch.tensor([1]), 2, Decision()).margin(torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="2 thresholds"):
        finding_goal(torch.tensor([[True]]), (0.5, 0.5))
