"""The certified analysis on a linear model, whose smoothed classifier has the same boundary as itself: every number is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.analyses.subjects import SIDE, subject
from xvision.analyses.certified import certified
from xvision.audit import Audit
from xvision.engine import Engine
from xvision.errors import ConfigError
from xvision.methods.decision import TIE, Decision
from xvision.models.network import NetworkClassifier
from xvision.result import Metric, Result

SIGMA, COUNT = 0.2, 30
EPSILONS = (0.002, 0.005, 0.01, 0.02)


def linear(count: int = COUNT) -> tuple[Audit, np.ndarray]:
    """An audit by a linear model and the signed L2 distance of each image from the boundary, as an epsilon, above 0 where right."""
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(SIDE, SIDE))
    weights -= weights.mean()
    normal = weights / np.linalg.norm(weights)
    wanted = np.where(np.arange(count) % 2 == 0, -1, 1) * rng.uniform(-0.3, 0.5, count)
    pixels = 0.5 + 0.02 * rng.normal(size=(count, SIDE, SIDE))
    for place in range(count):
        pixels[place] += (wanted[place] - (pixels[place] * normal).sum()) * normal
    audit = replace(subject(weights, pixels.clip(0, 1)), task="certified", engine=Engine(part=16))
    odds = (pixels.clip(0, 1).astype(np.float32) * weights).sum((1, 2)) / np.linalg.norm(weights)
    return audit, np.where(np.arange(count) % 2 == 0, -odds, odds) / SIDE


def run(audit: Audit, **options: object) -> Result:
    small = {"sigmas": (SIGMA,), "epsilons": EPSILONS, "draws": 800, "cases": COUNT}
    return certified(audit, **{**small, **options})


def found(result: Result, name: str, **where: object) -> Metric:
    (only,) = [item for item in result.metrics if item.name == name and where.items() <= dict(item.where).items()]
    return only


@pytest.fixture(scope="module")
def result() -> Result:
    return run(linear()[0])


def test_truth_lies_between_certificate_and_attack_for_every_case(result: Result) -> None:
    true, table = linear()[1], result.tables["certified"]
    certificate, broken = table["certified_epsilon"].to_numpy(), table["broken_at_epsilon"].to_numpy()
    right = (table["smoothed"] == "right").to_numpy()
    assert right.sum() > 12
    assert (certificate[right] <= true[right]).all()
    assert (broken[~(table["smoothed"] == "wrong")] >= true[~(table["smoothed"] == "wrong")] - 1e-6).all()
    assert (certificate[right] < broken[right]).all()
    assert (true[table["smoothed"] == "wrong"] < 0).all()
    assert (broken[table["smoothed"] == "wrong"] == 0).all()
    assert np.median(broken[right] - true[right]) < SIGMA / SIDE
    assert (
        certificate[table["smoothed"] == "wrong"] > EPSILONS[0]
    ).any()  # certified to be wrong, which counts for nothing


def test_rates_enclose_the_true_rates(result: Result) -> None:
    true = linear()[1]
    assert found(result, "deployed_accuracy").value == pytest.approx((true > 0).mean())
    assert found(result, "smoothed_accuracy").value <= (true > 0).mean()
    for epsilon in EPSILONS:
        certified_share = found(result, "certified_accuracy", epsilon=epsilon, norm="l2", sigma=SIGMA)
        left = found(result, "unbroken_accuracy", epsilon=epsilon, norm="l2", sigma=SIGMA)
        share = (true > epsilon).mean()
        assert certified_share.value <= share <= left.value
        assert left.value - certified_share.value < 0.5
        assert certified_share.n == COUNT
        assert certified_share.interval.startswith("Clopper-Pearson")
    assert found(result, "contradictions").value == 0
    assert found(result, "abstention_rate").value < 0.4


def test_a_radius_that_no_number_of_votes_reaches_has_a_reason_and_no_number() -> None:
    beyond = run(linear()[0], draws=50, epsilons=(0.002, 0.5))
    missing = found(beyond, "certified_accuracy", epsilon=0.5)
    assert missing.value is None
    assert "50 draws with sigma 0.2 certify at most" in (missing.reason or "")
    assert found(beyond, "certified_accuracy", epsilon=0.002).value is not None


@pytest.mark.parametrize(("norm", "dual", "unit"), [("linf", 1, 1), ("l2", 2, SIDE), ("l1", math.inf, SIDE * SIDE)])
def test_a_model_that_is_linear_in_the_pixels_has_its_distance_in_pixels(
    result: Result, norm: str, dual: float, unit: float
) -> None:
    audit, true = linear()
    weights = next(iter(audit.model.module.parameters())).numpy().ravel()
    length = true * SIDE * np.linalg.norm(weights) / np.linalg.norm(weights, dual) / unit
    column = result.tables["certified"][f"distance_{norm}"].to_numpy()
    assert "lower bound, 1 layer" in str(result.charts[2])  # pixels have a range, which may only make it larger
    assert column == pytest.approx(np.maximum(length, 0), abs=2e-6)
    assert found(result, "certified_distance", norm=norm, space="pixels").value == pytest.approx(
        length[true > 0].mean(), abs=2e-6
    )


def test_a_dense_network_has_a_lower_bound_in_pixels_that_no_gradient_step_beats() -> None:
    torch.manual_seed(1)
    audit, _ = linear()
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 12), nn.ReLU(), nn.Linear(12, 1)).eval()
    pixels = torch.from_numpy(audit.pixels(np.arange(COUNT)))
    with torch.no_grad():
        network[3].bias -= network(pixels).mean()
    model = NetworkClassifier(network, audit.model.facts, torch.device("cpu"))
    dense = run(replace(audit, model=model), draws=20, selection=10)
    bound = torch.tensor(dense.tables["certified"]["distance_linf"].to_numpy())
    right = dense.tables["certified"]["deployed_right"].to_numpy(copy=True)
    assert (bound[right] > 0).all()
    assert (bound[~right] == 0).all()
    assert "distance_l2" not in dense.tables["certified"]
    table = dense.charts[2]
    assert "lower bound, 2 layers" in str(table)
    network.double()
    at = pixels.double().requires_grad_()
    (slope,) = torch.autograd.grad(network(at).sum(), at)
    sign = torch.from_numpy(np.where(audit.labels == 1, -1.0, 1.0))[:, None, None, None]
    for share, broken in ((1.0, False), (1.5, True)):
        moved = (pixels + share * bound[:, None, None, None] * sign * slope.sign()).clamp(0, 1)
        with torch.no_grad():
            wrong = (network(moved)[:, 0] >= -TIE).numpy() != (audit.labels == 1)
        assert wrong[right].any() == broken


def test_where_no_head_can_be_read_the_reason_is_given() -> None:
    audit, _ = linear()
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 4), nn.Tanh(), nn.Linear(4, 1)).eval()
    model = NetworkClassifier(network, audit.model.facts, torch.device("cpu"))
    refused = run(replace(audit, model=model), draws=20, selection=10)
    missing = found(refused, "certified_distance")
    assert missing.value is None
    assert "no embeddings that can be read" in (missing.reason or "")
    assert "no embeddings that can be read" in str(refused.charts[2])


class _Opaque:
    """The linear model as a black box."""

    access = "black-box"

    def __init__(self, audit: Audit) -> None:
        inner = audit.model
        self.classes, self.task, self.bounds, self.input = inner.classes, inner.task, inner.bounds, inner.input
        self.device, self.fingerprint, self.description = inner.device, "opaque", {"architecture": "Opaque"}
        self.logits = inner.logits


def test_without_gradients_there_is_a_certificate_and_no_upper_bound(result: Result) -> None:
    audit, _ = linear()
    opaque = run(replace(audit, model=_Opaque(audit)))
    for epsilon in EPSILONS:
        assert found(opaque, "certified_accuracy", epsilon=epsilon).value == pytest.approx(
            found(result, "certified_accuracy", epsilon=epsilon).value
        )
        assert "gradients" in (found(opaque, "unbroken_accuracy", epsilon=epsilon).reason or "")
    assert any("no upper bound" in caveat for caveat in opaque.caveats)
    assert not [item for item in opaque.metrics if item.name == "contradictions"]


def test_only_the_declared_direction_counts() -> None:
    audit, true = linear()
    directed = run(replace(audit, decision=Decision(1, 0.5, True, directions=("missed disease",))))
    positives = audit.labels == 1
    assert found(directed, "deployed_accuracy").value == pytest.approx((true[positives] > 0).mean())
    assert found(directed, "certified_accuracy", epsilon=EPSILONS[0]).n == positives.sum()
    assert (directed.tables["certified"]["in_scope"].to_numpy() == positives).all()
    assert not any("constant" in caveat for caveat in directed.caveats)  # there is only one class to be right on


def test_a_vote_that_noise_has_made_a_constant_is_called_one() -> None:
    class Fragile(nn.Module):
        """Positive where the image has few grey levels beyond its range, which noise takes away."""

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            odds: torch.Tensor = pixels.flatten(1).mean(1, keepdim=True) - 0.5
            outside = ((pixels < 0) | (pixels > 1)).float().flatten(1).mean(1, keepdim=True)
            return odds + 10 * outside

    audit, _ = linear()
    levels = np.where(np.arange(COUNT) % 2 == 0, 0.45, 0.55)[:, None, None] * np.ones((SIDE, SIDE))
    pale = subject(np.ones((SIDE, SIDE)), levels)
    model = NetworkClassifier(Fragile().eval(), audit.model.facts, torch.device("cpu"))
    constant = run(replace(pale, model=model, task="certified"), sigmas=(0.01, 0.5), draws=100)
    caveats = [caveat for caveat in constant.caveats if "constant" in caveat]
    assert len(caveats) == 1
    assert "sigma 0.5" in caveats[0]
    assert found(constant, "smoothed_accuracy", sigma=0.01).value == 1.0
    assert found(constant, "smoothed_accuracy", sigma=0.5).value == 0.5
    assert any("less often than the deployed" in caveat for caveat in constant.caveats)


def test_parts_change_nothing_and_the_seed_does(result: Result) -> None:
    audit, _ = linear()
    parts = run(replace(audit, engine=Engine(part=7)))
    for name in ("votes", "draws", "smoothed", "certified_epsilon"):
        assert parts.tables["certified"][name].tolist() == result.tables["certified"][name].tolist()
    other = run(replace(audit, seed=8))
    assert other.tables["certified"]["votes"].tolist() != result.tables["certified"]["votes"].tolist()


def test_the_summary_and_the_lines_speak_of_the_smoothed_classifier(result: Result) -> None:
    assert "another classifier than the deployed one" in result.summary
    assert "sigma 0.2" in result.summary
    lines = result.charts[0]
    assert [series.name for series in lines.series] == ["certified, sigma 0.2", "left by the attack, sigma 0.2"]
    assert lines.series[0].x == (0.0, *EPSILONS)


@pytest.mark.parametrize(
    "options",
    [
        {"sigmas": ()}, {"sigmas": (0.2, 0.1)}, {"epsilons": (0.0, 0.1)}, {"epsilons": (0.1, 2.0)}, {"draws": 0}, {"alpha": 0.7},
        {"steps": 1}, {"samples": 0}, {"selection": 0},
    ],
)  # fmt: skip
def test_options_that_cannot_be_asked_are_refused_before_any_work(options: dict[str, object]) -> None:
    audit, _ = linear()
    with pytest.raises(ConfigError):
        run(audit, **options)
    assert audit.engine.meter.forward == 0
