"""Every check on small networks that hide nothing: none may be flagged, whether trained plainly or on adversarial images.

Probes measure a case alike in any company and leave the model as it was.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.attacks.planted import SEEDS, SHAPE, Planted, network, right
from xvision.attacks.apgd import APGD
from xvision.attacks.cases import Cases, Found, budget_of
from xvision.attacks.checks import Evidence, examine, verdict
from xvision.attacks.gradient_walks import MarginPGD, noise, single_step
from xvision.attacks.linear_twin import linear_twin
from xvision.attacks.probes import (
    company,
    differences,
    dynamic,
    held_alone,
    in_double,
    reach,
    repeats,
    slopes,
    steadiness,
    surface,
)
from xvision.attacks.search import Attempt, Rows, Seen, State, pursue
from xvision.attacks.square import Square


def hit(found: Found) -> np.ndarray:
    return torch.isfinite(found.size).numpy()


def gathered(cases: Cases, epsilon: float) -> Evidence:
    """Everything the checks can be given, from attacks that each work alone on the same cases."""
    budget, everything = (budget_of("linf", [size], cases.pixels) for size in (epsilon, 1.0))
    starts = [[Attempt(start) for start in range(5)]] * len(cases)
    paths = np.full((len(cases), 30), np.nan)

    def watch(rows: Rows, state: State, seen: Seen) -> None:
        paths[rows.place.numpy(), rows.step.numpy()] = rows.cases.goal.margin(seen.logits).numpy()

    best = pursue(cases, budget, APGD("margin", 30), width=64, watch=watch)
    alone = {
        "noise": noise(cases, budget, draws=5, width=64),
        "single_step": single_step(cases, budget, gradient=None, width=64),
        "pgd": pursue(cases, budget, MarginPGD(15), width=64),
        "longer": pursue(cases, budget, MarginPGD(30), width=64),
        "restarted": pursue(cases, budget, MarginPGD(15), width=64, attempts=starts),
        "cross_entropy": pursue(cases, budget, APGD("cross_entropy", 30), width=64),
        "margin": best,
        "black_box": pursue(cases, budget, Square(100), width=64),
        "unbounded": pursue(cases, everything, MarginPGD(15), width=64, attempts=starts),
    }
    success = {name: hit(found) for name, found in alone.items()}
    white_box = success["single_step"] | success["pgd"] | success["cross_entropy"] | success["margin"]
    ladder = [
        pursue(cases, budget_of("linf", [each * epsilon], cases.pixels), MarginPGD(15), width=64)
        for each in (0.5, 1, 2)
    ]
    twin = linear_twin(
        lambda part, within: pursue(part, within, MarginPGD(15), width=64),
        "linf",
        SHAPE,
        count=20,
        seed=0,
        device=torch.device("cpu"),
    )
    probes = (slopes(cases), repeats(cases, times=5), steadiness(cases, draws=20), reach(cases, cases.pixels[:6]), company(cases),
              surface(cases, epsilon), differences(cases, in_double(cases)), twin)  # fmt: skip
    return Evidence(
        **success,
        white_box=white_box,
        curve=np.stack([hit(found) for found in ladder], axis=1),
        paths=filled(paths),
        path_broken=success["margin"],
        found=success["margin"],
        held=held_alone(cases, best.images),
        ways=1,
        dynamic=dynamic(cases),
        **{name: value for probe in probes for name, value in probe._asdict().items()},
    )


def filled(paths: np.ndarray) -> np.ndarray:
    for step in range(1, paths.shape[1]):
        empty = np.isnan(paths[:, step])
        paths[empty, step] = paths[empty, step - 1]
    return paths


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("hardened", "epsilon"), [(0.0, 4 / 255), (8 / 255, 10 / 255)])
def test_nothing_is_found_on_an_honest_network(seed: int, hardened: float, epsilon: float) -> None:
    cases = right(network(seed, hardened), seed)
    assert len(cases) == 24
    checks = examine(gathered(cases, epsilon))
    assert [(check.id, check.sentence) for check in checks if check.state in ("flagged", "broken")] == []
    assert [check.id for check in checks if check.state == "not run"] == ["M3", "M13"]
    assert verdict(checks).state == "supported"


def _probed(cases: Cases) -> dict[str, np.ndarray]:
    found = (slopes(cases), steadiness(cases, draws=4), surface(cases, 0.02), differences(cases, None), company(cases))
    return {name: value for probe in found for name, value in probe._asdict().items()}


def test_a_case_is_measured_alike_in_any_batch_and_order() -> None:
    cases = right(network(0, 0.0), 0, 10)
    whole, order = _probed(cases), [7, 2, 5]
    part = _probed(cases.rows(torch.tensor(order)))
    for name, values in part.items():
        assert values == pytest.approx(whole[name][order], rel=1e-3, abs=1e-5), name
    other = _probed(Cases(cases.forward, cases.pixels, cases.goal, cases.keys, 1, cases.low, cases.high))
    assert not np.allclose(other["change"], whole["change"])
    assert not np.allclose(other["at_random"], whole["at_random"])


def test_the_model_is_left_as_it_was() -> None:
    model = Planted(copy.deepcopy(network(0, 0.0)).train(), lambda inner, images: inner(images)).requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    cases = right(model, 0, 8)
    _probed(cases)
    repeats(cases, times=2)
    reach(cases, cases.pixels[:2])
    held_alone(cases, cases.pixels)
    dynamic(cases)
    in_double(cases)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(each.grad is None and each.requires_grad for each in model.parameters())
    assert model.training
