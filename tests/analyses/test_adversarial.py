"""Adversarial and attack validity on models whose answers are known: linear ones, ones that hide their gradients, ones without any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.analyses.subjects import SIDE, linear_model, subject
from xvision.audit import Audit
from xvision.charts import Table
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.models.network import NetworkClassifier
from xvision.registry import analyses
from xvision.result import Metric, Result

EPSILONS = (0.002, 0.004, 0.008, 0.016, 0.032)
SMALL: dict[str, Any] = {
    "cases": 40, "norms": ["linf"], "epsilons": list(EPSILONS), "steps": 30, "queries": 30, "decision_queries": 30, "examined": 24,
}  # fmt: skip


def audited(model: nn.Module | None = None, count: int = 40, seed: int = 0) -> tuple[Audit, np.ndarray]:
    """An audit of a linear model, or another on its images, and the exact epsilon (N,) that flips each case."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(SIDE, SIDE))
    pixels = 0.5 + 0.2 * rng.uniform(-1, 1, (count, SIDE, SIDE))
    odds = np.array([float((weights * image).sum()) for image in pixels])
    reach = 0.04 * rng.uniform(0.02, 1, count) * np.abs(weights).sum()
    wanted = np.where(np.arange(count) % 2 == 1, reach, -reach)  # the labels of the subject alternate
    pixels = pixels + ((wanted - odds) / (weights**2).sum())[:, None, None] * weights
    found = subject(weights, pixels)
    found.task = "adversarial"
    if model is not None:
        plain = linear_model(weights)
        layer = nn.Linear(weights.size, 1, bias=False)
        layer.weight.data.copy_(torch.from_numpy(weights.reshape(1, -1)))
        network = nn.Sequential(model, nn.Flatten(), layer)
        found = replace(found, model=NetworkClassifier(network, plain.facts, plain.device))
    return found, np.abs(wanted) / np.abs(weights).sum()


def run(audit: Audit, name: str = "adversarial", **options: Any) -> Result:
    bound = analyses()["adversarial"].bind({**SMALL, **options})
    audit.options = {"adversarial": bound}
    return analyses()[name](audit, bound if name == "adversarial" else {})


def figure(result: Result, name: str, **where: object) -> Metric:
    (found,) = (item for item in result.metrics if item.name == name and dict(item.where) == where)
    return found


def test_what_stands_is_exactly_what_the_closed_form_says() -> None:
    audit, exact = audited()
    result = run(audit)
    for epsilon in EPSILONS:
        stands = figure(result, "robust_accuracy", norm="linf", epsilon=epsilon)
        assert stands.value == pytest.approx((exact > epsilon).mean())
        assert stands.interval == "Clopper-Pearson"
        ill = figure(result, "robust_sensitivity", norm="linf", epsilon=epsilon)
        assert ill.value == pytest.approx((exact > epsilon)[1::2].mean())
    half = figure(result, "flipping_epsilon", norm="linf", share=0.5)
    assert half.value == pytest.approx(np.sort(exact)[19], rel=1e-3)
    assert (half.low or 0) < (half.value or 0) < (half.high or 0)
    assert "not broken by these attacks" in result.summary


def test_the_smallest_change_of_each_case_is_the_closed_form() -> None:
    audit, exact = audited()
    table = run(audit, norms=["linf"], epsilons=[0.1]).tables["adversarial"]
    np.testing.assert_allclose(table["smallest"], exact, rtol=2e-3)
    assert set(table["broken_by"]) <= {"noise", "single_step", "pgd"}


def test_the_attacks_are_supported_on_a_plain_model() -> None:
    audit, _ = audited()
    result = run(audit, "attack_validity")
    assert "supported" in result.summary
    assert figure(result, "checks_flagged", norm="linf").value == 0
    assert figure(result, "checks_not_run", norm="linf").value == 0


class Misleading(nn.Module):
    """The pixels as they are, with a slope that points the wrong way."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 2 * pixels.detach() - pixels


def test_a_model_that_hides_its_gradients_gets_no_figure_to_rely_on() -> None:
    audit, _ = audited(Misleading())
    result = run(audit)
    for name in ("robust_accuracy", "robust_sensitivity"):
        stands = figure(result, name, norm="linf", epsilon=EPSILONS[2])
        assert stands.value is None or (stands.low == 0.0 and "upper bound only" in stands.interval)
    assert "supported" not in result.summary
    table = run(audit, "attack_validity").charts[0]
    assert isinstance(table, Table)
    checks = {str(row[0]).split()[0]: row[1] for row in table.rows}
    assert {name: checks[name] for name in ("M18", "M21", "M22")} == {
        "M18": "warning",
        "M21": "warning",
        "M22": "no sign",
    }
    assert checks["M4"] in ("warning", "attack failed")


class Cut(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.detach()


def test_where_attacks_provably_failed_there_is_no_figure() -> None:
    """A network that counts as one with gradients and gives none."""
    audit, _ = audited(Cut())
    audit.model.access = "white-box"
    result = run(audit)
    stands = figure(result, "robust_accuracy", norm="linf", epsilon=EPSILONS[2])
    assert stands.value is None
    assert "M8" in (stands.reason or "")
    assert figure(result, "flipping_epsilon", norm="linf", share=0.5).value is None


class Noisy(nn.Module):
    spread = 0.0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels + self.spread * torch.randn_like(pixels)


def test_a_random_model_is_said_to_be_random_and_its_figures_are_upper_bounds_or_none() -> None:
    noise = Noisy()
    audit, exact = audited(noise)
    noise.spread = 0.005
    torch.manual_seed(0)
    result = run(audit)
    assert "M15" in result.summary
    stands = figure(result, "robust_accuracy", norm="linf", epsilon=EPSILONS[2])
    assert stands.value is None or (stands.low == 0.0 and "upper bound only" in stands.interval)
    mean = run(audit, attacks=["pgd"], model_draws=20, cases=10, examined=2)
    stands = figure(mean, "robust_accuracy", norm="linf", epsilon=EPSILONS[2])
    assert stands.value is None or stands.value == pytest.approx((exact > EPSILONS[2]).mean(), abs=0.35)


class Rounded(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.round(pixels * 64) / 64


def test_a_model_whose_gradient_is_cut_off_counts_as_one_without() -> None:
    audit, _ = audited(Rounded())
    result = run(audit)
    stands = figure(result, "robust_accuracy", norm="linf", epsilon=EPSILONS[0])
    assert stands.low == 0.0
    assert "upper bound only" in stands.interval
    assert any("forfeited" in said for said in result.caveats)


def test_a_model_without_gradients_is_attacked_by_queries_and_the_page_says_what_is_forfeited() -> None:
    audit, exact = audited()
    audit.model.access = "black-box"
    result = run(audit, queries=300)
    assert any("forfeited" in said for said in result.caveats)
    for epsilon in EPSILONS:
        stands = figure(result, "robust_accuracy", norm="linf", epsilon=epsilon)
        assert stands.low == 0.0
        assert (stands.value or 0) >= (exact > epsilon).mean() - 1e-9


def test_directions_leave_out_the_cases_that_they_do_not_speak_of() -> None:
    audit, exact = audited()
    result = run(replace(audit, decision=Decision(1, 0.5, True, ("missed disease",))))
    stands = figure(result, "robust_accuracy", norm="linf", epsilon=EPSILONS[2])
    assert stands.value == pytest.approx((exact > EPSILONS[2])[1::2].mean())
    none = figure(result, "robust_specificity", norm="linf", epsilon=EPSILONS[2])
    assert none.value is None
    assert none.reason == "no negative cases"


def test_the_attack_stops_when_the_agreed_question_is_decided() -> None:
    audit, exact = audited(count=160)
    audit.engine.part = 20
    whole = run(audit, cases=160)
    early = run(audit, cases=160, agreed_epsilon=EPSILONS[-1], agreed_accuracy=0.9)
    stands = figure(early, "robust_accuracy", norm="linf", epsilon=EPSILONS[-1])
    assert stands.n < 160
    assert (stands.high or 1) < 0.9
    assert (exact > EPSILONS[-1]).mean() < 0.9
    assert any("agreed question was decided" in said for said in early.caveats)
    assert figure(whole, "robust_accuracy", norm="linf", epsilon=EPSILONS[-1]).n == 160


def test_an_attack_whose_time_is_over_gives_figures_of_what_it_did() -> None:
    audit, _ = audited(count=60)
    audit.engine.part = 20
    result = run(audit, cases=60, minutes=1e-9)
    assert figure(result, "robust_accuracy", norm="linf", epsilon=EPSILONS[0]).n == 20
    assert any("40 cases of the sample were not attacked: the time given was over" in said for said in result.caveats)


def test_a_constant_model_stands_as_often_as_its_class_is_there() -> None:
    audit, _ = audited()
    flat = linear_model(np.zeros((SIDE, SIDE)))
    result = run(replace(audit, model=flat))
    sentences = [item for item in result.metrics if item.name == "robust_accuracy" and len(item.where) == 2]
    assert all(item.value is None or item.value == pytest.approx(0.5) for item in sentences)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilons": [0.0, 0.1]}, "ascending budgets above 0"),
        ({"norms": ["l3"]}, "give some of linf"),
        ({"norms": []}, "give some of linf"),
        ({"attacks": ["pdg"]}, "pgd"),
        ({"agreed_epsilon": 0.1}, "both agreed_epsilon and agreed_accuracy"),
        ({"borrow_gradient": True}, "surrogate"),
        ({"steps": 0}, "at least 1"),
        ({"attacks": ["ddn"]}, "none of ddn"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options: dict[str, Any], words: str) -> None:
    audit, _ = audited()
    with pytest.raises(ConfigError, match=words):
        run(audit, **options)
