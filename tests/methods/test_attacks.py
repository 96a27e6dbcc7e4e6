"""Attacks on linear models, whose robust accuracy is known at every epsilon, then on models built to mislead them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.attack_search import LinfPGD
from xvision.methods.attacks import ATTACKS, AttackOutcome, concatenate, linf_attack
from xvision.methods.masking import masking_checks, warning_signs

Logits = Callable[[torch.Tensor], torch.Tensor]
LADDER = (0.005, 0.01, 0.02, 0.04)


def attack(
    logits: Logits, pixels: torch.Tensor, labels: torch.Tensor, epsilons: tuple[float, ...], **options: object
) -> AttackOutcome:
    keys = [f"case-{row}" for row in range(len(pixels))]
    return linf_attack(logits, pixels, labels, epsilons, **{"keys": keys, "seed": 0, **options})


def two_columns(score: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.zeros_like(score), score], dim=1)


class Linear(nn.Module):
    """Binary model with logit w.x + b; its exact smallest L-infinity distance is known, box included."""

    def __init__(self, pixels: int = 64, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(scale * torch.randn(pixels, generator=generator))
        self.bias = nn.Parameter(-0.5 * self.weight.detach().sum())

    def score(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight + self.bias

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return two_columns(self.score(images))

    def breaks(self, images: torch.Tensor, epsilon: float) -> np.ndarray:
        """Whether the best move inside ball and box crosses zero: sum |w| min(epsilon, room) > |f|."""
        weight, score = self.weight.detach().double(), self.score(images).detach().double()
        flat = images.flatten(1).double()
        down = (weight > 0) == (score > 0)[:, None]
        room = torch.where(down, flat, 1.0 - flat).clamp(max=epsilon)
        return ((weight.abs() * room).sum(dim=1) > score.abs()).numpy()


def cases_of(model: Linear, batch: int, low: float = 0.3, high: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    images = low + (high - low) * torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    return images, (model.score(images).detach() > 0).long()


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 8, 3, stride=2), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)]
    model = nn.Sequential(*layers).eval()
    model[-1].weight.data *= 20.0
    return model


def batch_for(model: nn.Module, batch: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    return images, model(images).detach().argmax(dim=1)


def checks_of(outcome: AttackOutcome) -> dict[str, bool]:
    checks = masking_checks(
        outcome.by,
        outcome.epsilons,
        clean_correct=outcome.clean_correct,
        zero_gradient=outcome.zero_gradient,
        nonfinite=outcome.nonfinite,
        unconfirmed=outcome.unconfirmed,
        missed_grey=outcome.missed_grey,
    )
    assert warning_signs(checks) == tuple(check.sentence for check in checks if check.flagged)
    return {check.name: check.flagged for check in checks}


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_robust_accuracy_of_a_linear_model_is_the_closed_form_at_every_epsilon(name: str) -> None:
    model = Linear()
    images, labels = cases_of(model, 400)
    outcome = attack(model, images, labels, LADDER, attacks=[name])
    distance = (model.score(images).abs() / model.weight.abs().sum()).detach().numpy()
    expected = distance[:, None] < np.asarray(LADDER)
    np.testing.assert_array_equal(outcome.broken, expected)
    assert (expected.mean(axis=0) > 0.05).all()
    assert (expected.mean(axis=0) < 0.95).any()


def test_the_box_is_respected_where_it_binds() -> None:
    model = Linear()
    images, labels = cases_of(model, 400, low=0.0, high=1.0)
    ladder = (0.02, 0.05, 0.1, 0.2)
    outcome = attack(model, images, labels, ladder)
    exact = np.stack([model.breaks(images, epsilon) for epsilon in ladder], axis=1)
    np.testing.assert_array_equal(outcome.broken, exact)
    unboxed = (model.score(images).abs() / model.weight.abs().sum()).detach().numpy()[:, None] < np.asarray(ladder)
    assert (exact != unboxed).any()


def test_a_threshold_moves_the_decision_that_is_attacked() -> None:
    model, shift = Linear(), 1.5
    images, _ = cases_of(model, 300)
    score = model.score(images).detach()
    outcome = attack(lambda x: two_columns(model.score(x) - shift), images, (score > shift).long(), LADDER)
    distance = ((score - shift).abs() / model.weight.detach().abs().sum()).numpy()
    np.testing.assert_array_equal(outcome.broken, distance[:, None] < np.asarray(LADDER))


def test_with_more_classes_the_nearest_of_them_decides() -> None:
    weights = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    images = 0.4 + 0.2 * torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    offsets = weights.sum(dim=1) / 2
    logits = images.flatten(1) @ weights.T - offsets
    labels = logits.argmax(dim=1)
    gaps = logits.gather(1, labels[:, None]) - logits
    costs = (weights[labels][:, None] - weights[None]).abs().sum(dim=2)
    distance = (gaps / costs).masked_fill(nn.functional.one_hot(labels, 4).bool(), torch.inf).amin(dim=1).numpy()
    outcome = attack(lambda x: x.flatten(1) @ weights.T - offsets, images, labels, LADDER, attacks=["pgd"])
    exact = distance[:, None] < np.asarray(LADDER)
    assert not (outcome.broken & ~exact).any()
    assert (outcome.broken == exact).mean() > 0.98


def test_the_stock_attack_reaches_eight_ninths_and_this_one_all_of_the_budget() -> None:
    from foolbox.models import PyTorchModel  # after xvision: importing foolbox first would raise its SciPy warning

    model = Linear(pixels=32 * 32)
    images = 0.3 + 0.4 * torch.rand(50, 1, 32, 32, generator=torch.Generator().manual_seed(6))
    labels, epsilon = (model.score(images).detach() > 0).long(), 0.02

    torch.manual_seed(0)
    stock = LinfPGD().run(PyTorchModel(model.eval(), bounds=(0, 1), device="cpu"), images, labels, epsilon=epsilon)
    budget = epsilon * model.weight.detach().abs().sum()
    travelled = (model.score(images) - model.score(stock)).abs().detach() / budget
    assert travelled.mean() == pytest.approx(8 / 9, abs=0.005)
    just_enough = model.score(images).detach().abs() / model.weight.detach().abs().sum() / 0.95
    for case in range(5):
        found = attack(model, images[case : case + 1], labels[case : case + 1], (float(just_enough[case]),))
        assert found.broken.all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_scale_of_the_logits_changes_no_verdict(scale: float) -> None:
    plain, scaled = Linear(), Linear(scale=scale)
    images, labels = cases_of(plain, 200)
    expected = attack(plain, images, labels, LADDER).broken
    np.testing.assert_array_equal(attack(scaled, images, labels, LADDER).broken, expected)


def test_the_loss_is_not_one_that_vanishes_when_logits_are_large() -> None:
    model = Linear(scale=1e4)
    images, labels = cases_of(model, 100)
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(pixels), labels, reduction="sum"), pixels)
    assert (gradient == 0).flatten(1).all(dim=1).float().mean() > 0.5
    assert not attack(model, images, labels, LADDER).zero_gradient.any()


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), epsilon=st.floats(0.001, 0.6), restarts=st.integers(1, 2))
def test_every_adversarial_image_is_in_the_ball_and_the_box_and_decided_otherwise(
    seed: int, epsilon: float, restarts: int
) -> None:
    model = network(seed)
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).mul(1.4).sub(0.2).clamp(0.0, 1.0)
    labels = model(images).detach().argmax(dim=1)
    outcome = attack(model, images, labels, (epsilon / 2, epsilon), restarts=restarts, steps=5)
    moved = (outcome.adversarial - images).abs().flatten(1).amax(dim=1).numpy()
    broken = outcome.broken[:, -1]
    assert (moved[broken] <= outcome.smallest[broken] + 1e-6).all()
    assert (moved[~broken] == 0).all()
    assert np.isinf(outcome.smallest[~broken]).all()
    assert outcome.adversarial.dtype == torch.float32
    assert float(outcome.adversarial.min()) >= 0.0
    assert float(outcome.adversarial.max()) <= 1.0
    with torch.no_grad():
        np.testing.assert_array_equal((model(outcome.adversarial).argmax(dim=1) != labels).numpy(), broken)
    np.testing.assert_array_equal(outcome.broken, outcome.smallest[:, None] <= np.asarray(outcome.epsilons))
    np.testing.assert_array_equal(outcome.broken, np.logical_or.reduce(list(outcome.by.values())))


def test_success_is_monotone_in_epsilon_and_survivors_lose_nothing_to_a_run_of_their_own() -> None:
    model = network()
    images, labels = batch_for(model)
    outcome = attack(model, images, labels, LADDER)
    for each in (outcome.broken, *outcome.by.values()):
        assert (np.diff(each.astype(int), axis=1) >= 0).all()
    for column, epsilon in enumerate(LADDER):
        alone = attack(model, images, labels, (epsilon,)).broken[:, 0]
        assert not (alone & ~outcome.broken[:, column]).any()
    assert 0.1 < outcome.broken[:, 2].mean() < 0.9


def test_restarts_only_add_breaks() -> None:
    model = network(3)
    images, labels = batch_for(model)
    one, three = (attack(model, images, labels, LADDER, restarts=n, steps=2, attacks=["pgd"]) for n in (1, 3))
    assert not (one.broken & ~three.broken).any()


def test_gradient_descent_finds_what_an_exhaustive_search_of_two_pixels_finds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).eval()
    model[1].weight.data *= 6.0
    model[1].bias.data -= model[1].weight.data.sum(dim=1) / 2
    images = torch.rand(150, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    labels, epsilon = model(images).detach().argmax(dim=1), 0.1
    axis = torch.linspace(-epsilon, epsilon, 41)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).view(-1, 1, 1, 1, 2)
    with torch.no_grad():
        decided = torch.stack([model((images + move).clamp(0, 1)).argmax(dim=1) for move in grid])
    breakable = (decided != labels).any(dim=0).numpy()
    found = attack(model, images, labels, (epsilon,), restarts=3, attacks=["pgd"]).broken[:, 0]
    assert 20 < breakable.sum() < 130
    assert (found & breakable).sum() >= 0.97 * breakable.sum()


def test_a_case_is_broken_by_any_iterate_not_only_the_last() -> None:
    def band(images: torch.Tensor) -> torch.Tensor:
        moved = images.flatten(1).mean(dim=1) - 0.5
        margin = moved - 0.04 - (moved > 0.06).float()
        return torch.stack([torch.zeros_like(margin), margin], dim=1)

    images, labels = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3).long()
    outcome = attack(band, images, labels, (0.1,), attacks=["fgsm", "pgd"])
    assert outcome.by["pgd"].all()
    assert not outcome.by["fgsm"].any()


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_untouched(training: bool) -> None:
    model = network().train(training)
    model[0].weight.requires_grad_(False)
    images, labels = batch_for(model, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    pixels = images.clone()
    attack(model, pixels, labels, LADDER)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training is training
    assert torch.equal(pixels, images)
    assert not pixels.requires_grad


def test_a_failure_inside_the_model_leaves_it_untouched_too() -> None:
    model, calls = network(), 0

    def failing(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError("planted")
        return model(images)

    images, labels = batch_for(model, 8)
    with pytest.raises(RuntimeError, match="planted"):
        attack(failing, images, labels, LADDER)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_a_case_gets_the_same_verdict_in_any_batch() -> None:
    model = network()
    images, labels = batch_for(model, 64)
    keys = np.array([f"case-{row}" for row in range(64)])
    ladder, options = (0.01, 0.04), {"restarts": 2, "steps": 5}
    whole = attack(model, images, labels, ladder, keys=list(keys), **options)

    def in_parts(order: np.ndarray, size: int) -> AttackOutcome:
        parts = np.split(order, range(size, 64, size))
        run = [attack(model, images[p], labels[p], ladder, keys=list(keys[p]), **options) for p in parts]
        return concatenate(run)

    for order, size in ((np.arange(64), 1), (np.arange(64), 7), (np.random.default_rng(0).permutation(64), 64)):
        again = in_parts(order, size)
        np.testing.assert_array_equal(again.smallest, whole.smallest[order])
        for name in ATTACKS:
            np.testing.assert_array_equal(again.by[name], whole.by[name][order])
        torch.testing.assert_close(again.adversarial, whole.adversarial[order], rtol=0, atol=1e-5)


def test_noise_is_each_case_s_own_and_follows_the_seed() -> None:
    seen: list[torch.Tensor] = []

    def constant(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.detach().clone())
        return torch.zeros(len(images), 2) + 0.0 * images.sum()

    images = torch.full((2, 1, 16, 16), 0.5)
    for seed in (0, 0, 1):
        attack(constant, images, torch.zeros(2).long(), (0.1,), attacks=["noise"], seed=seed)
    per_run = len(seen) // 3
    draws = [torch.stack(seen[run * per_run + 1 : run * per_run + 11]) for run in range(3)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0][:, 0], draws[0][:, 1])
    moved = (draws[0] - 0.5) / 0.1
    assert float(moved.abs().max()) <= 1.0 + 1e-5
    assert float(moved.std()) == pytest.approx(3**-0.5, rel=0.02)


def test_only_correct_cases_are_attacked() -> None:
    model = Linear()
    images, labels = cases_of(model, 20)
    labels[:5] = 1 - labels[:5]
    outcome = attack(model, images, labels, (0.9,))
    np.testing.assert_array_equal(outcome.clean_correct, [False] * 5 + [True] * 15)
    np.testing.assert_array_equal(outcome.broken[:, 0], outcome.clean_correct)


def test_broken_cases_cost_nothing_at_larger_epsilons() -> None:
    def images_seen(ladder: tuple[float, ...]) -> int:
        seen = 0

        def counting(images: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += len(images)
            return model(images)

        attack(counting, images, labels, ladder, attacks=["pgd"])
        return seen

    model = Linear()
    images, labels = cases_of(model, 20)
    assert attack(model, images, labels, (0.3,), attacks=["pgd"]).broken.all()
    assert images_seen((0.3, 0.35, 0.4, 0.45)) == images_seen((0.3,))


def test_epsilon_zero_breaks_nothing() -> None:
    model = Linear()
    images, labels = cases_of(model, 10)
    outcome = attack(model, images, labels, (0.0, 0.9))
    assert not outcome.broken[:, 0].any()
    assert outcome.broken[:, 1].all()


def test_epsilon_zero_costs_nothing_beyond_the_clean_pass() -> None:
    calls = 0

    def counting(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return model(images)

    model = Linear()
    attack(counting, *cases_of(model, 4), (0.0,), attacks=["noise", "fgsm"])
    assert calls == 1


def test_a_constant_model_is_never_broken_and_its_silence_is_flagged() -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    outcome = attack(lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2), images, torch.zeros(6).long(), LADDER)
    assert not outcome.broken.any()
    assert outcome.zero_gradient.all()
    assert not outcome.missed_grey.any()
    assert checks_of(outcome)["zero_gradient"]


def test_an_undefended_model_raises_no_sign() -> None:
    model = network()
    images, labels = batch_for(model)
    flags = checks_of(attack(model, images, labels, LADDER))
    assert flags == dict.fromkeys(
        ["noise_beats_pgd", "fgsm_beats_pgd", "missed_grey", "zero_gradient", "nonfinite", "unconfirmed"], False
    )


def test_rounding_the_input_is_seen_through() -> None:
    model = Linear(scale=3.0)

    def rounded(images: torch.Tensor) -> torch.Tensor:
        return two_columns(model.score((images * 4).round() / 4) + 0.5)

    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = rounded(images).detach().argmax(dim=1)
    grey = int(rounded(torch.full((1, 1, 8, 8), 0.5)).argmax())
    outcome = attack(rounded, images, labels, (2 / 255, 8 / 255), steps=5)
    assert not outcome.by["pgd"].any()
    assert outcome.zero_gradient.all()
    np.testing.assert_array_equal(outcome.missed_grey, (labels != grey).numpy())
    flags = checks_of(outcome)
    assert flags["zero_gradient"]
    assert flags["missed_grey"]


def test_noise_that_wins_where_gradients_mislead_is_flagged() -> None:
    def misleading(images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        truth = (flat[:, 0] - 0.5).abs() - 0.01
        return two_columns(truth.detach() + 1e-6 * (flat - flat.detach()).sum(dim=1) - 1.0 * (flat > 0.54).all(dim=1))

    images, labels = torch.full((20, 1, 4, 4), 0.5), torch.zeros(20).long()
    outcome = attack(misleading, images, labels, (0.05,), attacks=["noise", "pgd"], steps=1)
    assert outcome.by["noise"].all()
    assert not outcome.by["pgd"].any()
    assert checks_of(outcome)["noise_beats_pgd"]


def test_a_gradient_that_is_not_finite_marks_its_case_only() -> None:
    def model(images: torch.Tensor) -> torch.Tensor:
        return two_columns(images.flatten(1).sum(dim=1) - 10.95 + 0.1 * torch.sqrt((images[:, 0, 0, 0] - 0.5).abs()))

    images = torch.full((3, 1, 4, 4), 0.7)
    images[1, 0, 0, 0] = 0.5
    outcome = attack(model, images, torch.ones(3).long(), (0.001, 0.05))
    np.testing.assert_array_equal(outcome.nonfinite, [False, True, False])
    np.testing.assert_array_equal(outcome.broken, [[False, True]] * 3)
    assert torch.isfinite(outcome.adversarial).all()
    assert checks_of(outcome)["nonfinite"]


def test_an_output_that_is_not_a_number_is_no_success() -> None:
    def model(images: torch.Tensor) -> torch.Tensor:
        score = images.flatten(1).mean(dim=1)
        return torch.stack([torch.where(score < 0.69, torch.nan, 0.0 * score), score], dim=1)

    outcome = attack(model, torch.full((2, 1, 4, 4), 0.7), torch.ones(2).long(), (0.05,))
    assert not outcome.broken.any()
    assert outcome.nonfinite.all()


def test_a_model_that_couples_the_batch_is_caught() -> None:
    def coupled(images: torch.Tensor) -> torch.Tensor:
        return two_columns(images.flatten(1).mean(dim=1) - (2.0 if len(images) < 8 else 0.0))

    images, labels = torch.full((8, 1, 4, 4), 0.7), torch.ones(8).long()
    labels[0] = 0
    outcome = attack(coupled, images, labels, (0.05,))
    assert not outcome.broken.any()
    np.testing.assert_array_equal(outcome.unconfirmed, [False] + [True] * 7)
    assert checks_of(outcome)["unconfirmed"]


@pytest.mark.parametrize(("wins", "losses", "flagged"), [(7, 0, True), (6, 0, False), (0, 0, False), (9, 3, False)])
def test_a_weaker_attack_is_flagged_by_the_exact_sign_test(wins: int, losses: int, flagged: bool) -> None:
    fgsm, pgd = np.zeros((30, 2), dtype=bool), np.zeros((30, 2), dtype=bool)
    fgsm[:wins, 1], pgd[wins : wins + losses, 1] = True, True
    none = np.zeros(30, dtype=bool)
    checks = masking_checks(
        {"fgsm": fgsm, "pgd": pgd},
        (1 / 255, 4 / 255),
        clean_correct=~none,
        zero_gradient=none,
        nonfinite=none,
        unconfirmed=none,
        missed_grey=none,
    )
    assert [check.name for check in checks][:2] == ["fgsm_beats_pgd", "missed_grey"]
    assert (checks[0].found, checks[0].of, checks[0].flagged) == (wins, 30, flagged)
    if flagged:
        assert "broke 7 of 30 cases that PGD left unbroken at epsilon 4/255" in warning_signs(checks)[0]


def test_only_attacks_that_ran_are_compared() -> None:
    model = Linear()
    images, labels = cases_of(model, 10)
    assert "missed_grey" not in checks_of(attack(model, images, labels, LADDER, attacks=["fgsm"]))


def test_batches_of_different_plans_are_not_joined() -> None:
    model = Linear()
    images, labels = cases_of(model, 4)
    runs = [attack(model, images, labels, ladder, attacks=["fgsm"]) for ladder in ((0.01,), (0.02,))]
    with pytest.raises(ConfigError, match="different epsilons or attacks"):
        concatenate(runs)


def test_the_attack_works_where_the_caller_switched_gradients_off() -> None:
    model = Linear()
    images, labels = cases_of(model, 30)
    expected = attack(model, images, labels, LADDER)
    with torch.inference_mode():
        inside = attack(model, images.clone(), labels.clone(), LADDER)
    np.testing.assert_array_equal(inside.broken, expected.broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilons": ()}, "give at least one, rising"),
        ({"epsilons": (0.2, 0.1)}, r"found the epsilons \[0.2, 0.1\]"),
        ({"epsilons": (4.0,)}, "from 0 to 1 in pixel units"),
        ({"steps": 0}, "found steps = 0"),
        ({"attacks": ["fgsm", "cw"]}, "found the attacks fgsm, cw: give some of noise, fgsm, pgd"),
        ({"attacks": []}, "found the attacks none"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, object], message: str) -> None:
    model = Linear()
    images, labels = cases_of(model, 2)
    with pytest.raises(ConfigError, match=message):
        attack(model, images, labels, **{"epsilons": LADDER, **options})


def test_unusable_cases_and_models_are_errors() -> None:
    model = Linear()
    images, labels = cases_of(model, 2)
    with pytest.raises(DataError, match=r"labels of shape \(1,\)"):
        attack(model, images, labels[:1], LADDER)
    with pytest.raises(DataError, match="found 1 case keys for 2 images"):
        attack(model, images, labels, LADDER, keys=["a"])
    with pytest.raises(DataError, match=r"found pixels from .* to 1\.\d+"):
        attack(model, images + 0.5, labels, LADDER)
    with pytest.raises(DataError, match="found a label outside 0 to 1"):
        attack(model, images, labels + 2, LADDER)
    with pytest.raises(ModelError, match=r"logits of shape \(2, 1\)"):
        attack(lambda x: model(x)[:, 1:], images, labels, LADDER)
    with pytest.raises(ModelError, match="NaN or infinite logit on an unchanged image"):
        attack(lambda x: model(x) * torch.nan, images, labels, LADDER)
