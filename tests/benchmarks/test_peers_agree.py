"""The same numbers as Quantus, pytorch-grad-cam and captum where those are right; the versions are in the names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from scipy.stats import entropy as shannon
from torch import nn

from tests.benchmarks.explanations_maps import cam_peer, layer_grad_cam, mapped, occlusion_peer, stretched
from tests.benchmarks.explanations_models import bert, images, resnet
from tests.benchmarks.explanations_peers import Counted, missing, open_quantus, relative, without_warnings
from tests.benchmarks.explanations_robustness import drawn_images, own_figures, peer_figures
from tests.benchmarks.explanations_sharing import QUIET
from xvision.explain.method import Settings
from xvision.methods.complexity import entropy, gini
from xvision.methods.faithfulness import curves, faithfulness_correlation, infidelity
from xvision.methods.imputation import linear_imputation
from xvision.methods.localisation import ranked_family
from xvision.methods.randomisation import efficient_mprt, randomised_similarity
from xvision.methods.removal import pixel_evaluator
from xvision.methods.target import score_of
from xvision.methods.units import grid

pytestmark = pytest.mark.benchmark
needs_quantus = pytest.mark.skipif(missing("quantus") is not None, reason=str(missing("quantus")))
needs_grad_cam = pytest.mark.skipif(missing("grad-cam") is not None, reason=str(missing("grad-cam")))
SIDE = 8


class LogOdds(nn.Module):
    """A small convolutional network whose second logit is the log-odds of its class, the first being 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        score = self.body(pixels)
        return torch.cat((torch.zeros_like(score), score), dim=1)


@pytest.fixture
def network() -> LogOdds:
    return LogOdds().eval().requires_grad_(False)


@pytest.fixture
def pixels() -> torch.Tensor:
    return 0.1 + 0.9 * torch.rand(4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def maps() -> np.ndarray:
    """Without ties: Quantus' sort is not stable, so equal values would fall either way."""
    return np.random.default_rng(2).permutation(4 * SIDE * SIDE).reshape(4, SIDE, SIDE).astype(np.float32)


def ask(metric: Any, **given: Any) -> np.ndarray:
    with without_warnings():
        return np.array(metric(channel_first=True, softmax=False, **given), dtype=np.float64)


def given_to_quantus(network: nn.Module, pixels: torch.Tensor, maps: np.ndarray) -> dict[str, Any]:
    targets = np.ones(len(pixels), dtype=int)
    return {"model": network, "x_batch": pixels.numpy(), "y_batch": targets, "a_batch": maps[:, None].copy()}


def evaluator(network: nn.Module, pixels: torch.Tensor) -> Any:
    targets = torch.ones(len(pixels), dtype=torch.int64)
    return pixel_evaluator(score_of(network), pixels, targets, grid(SIDE, SIDE, 1), "black", seeds=range(len(pixels)))


@needs_quantus
def test_rank_accuracy_auroc_and_top_k_are_those_of_quantus_0_6_0(maps: np.ndarray, pixels: torch.Tensor) -> None:
    quantus = open_quantus()
    masks = np.zeros(maps.shape, dtype=bool)
    masks[:, 2:5, 1:5] = True
    given = {**given_to_quantus(None, pixels, maps), "s_batch": masks[:, None]}
    found = ranked_family(maps, masks)
    assert relative(found.relevance_rank_accuracy, ask(quantus.RelevanceRankAccuracy(**QUIET), **given)) <= 1e-12
    assert relative(found.pixel_auroc, ask(quantus.AUC(**QUIET), **given)) <= 1e-12
    top = ask(quantus.TopKIntersection(k=12, **QUIET), **given)
    assert relative(found.iou_top, top / (2 - top)) <= 1e-12


@needs_quantus
def test_deletion_curve_is_pixel_flipping_of_quantus_0_6_0(
    network: LogOdds, pixels: torch.Tensor, maps: np.ndarray
) -> None:
    flipping = open_quantus().PixelFlipping(features_in_step=1, perturb_baseline=0.0, **QUIET)
    theirs = ask(flipping, **given_to_quantus(network, pixels, maps))
    ours = curves(evaluator(network, pixels), maps.reshape(4, -1), steps=SIDE * SIDE).most_first
    assert relative(ours[:, 1:], theirs) <= 1e-5  # theirs starts after the first step


@needs_quantus
def test_faithfulness_correlation_is_that_of_quantus_0_6_0_with_the_same_subsets(
    network: LogOdds, pixels: torch.Tensor, maps: np.ndarray
) -> None:
    runs, size, features = 30, 10, SIDE * SIDE
    metric = open_quantus().FaithfulnessCorrelation(
        nr_runs=runs, subset_size=size, perturb_baseline=0.0, return_aggregate=False, **QUIET
    )
    np.random.seed(0)
    theirs = ask(metric, **given_to_quantus(network, pixels, maps))
    np.random.seed(0)
    drawn = [[np.random.choice(features, size, replace=False) for _ in range(4)] for _ in range(runs)]
    removed = np.zeros((4, runs, features), dtype=bool)
    for run, row in np.ndindex(runs, 4):
        removed[row, run, drawn[run][row]] = True
    evaluate = evaluator(network, pixels)
    whole = evaluate(np.arange(4), np.zeros((4, features), dtype=bool))
    left = evaluate(np.repeat(np.arange(4), runs), removed.reshape(-1, features)).reshape(4, runs)
    ours = faithfulness_correlation(maps.reshape(4, -1), removed, whole[:, None] - left)
    assert relative(ours, theirs) <= 1e-5


@needs_quantus
def test_sensitivity_and_relative_stability_are_those_of_quantus_0_6_0_with_the_same_noise() -> None:
    model, (shown, noise) = bert(112, layers=2, width=32), drawn_images()
    ours, theirs = own_figures(model, shown, noise), peer_figures(Counted(model.logits), shown, noise)
    assert max(map(relative, ours, theirs)) <= 1e-5


@needs_quantus
def test_imputation_is_that_of_quantus_0_6_0_without_noise() -> None:
    rng = np.random.default_rng(3)
    image, gone = rng.random((1, 20, 20)), rng.random((20, 20)) < 0.6
    with without_warnings():
        theirs = open_quantus().perturb_func.noisy_linear_imputation(arr=image, indices=np.flatnonzero(gone), noise=0.0)
    np.testing.assert_allclose(linear_imputation(image, gone)[:, gone], theirs[:, gone], rtol=0, atol=1e-6)


@needs_quantus
def test_gini_is_63_of_64_where_quantus_0_6_0_adds_a_small_number_to_every_pixel() -> None:
    one = np.zeros((1, 1, SIDE, SIDE), dtype=np.float32)
    one[0, 0, 3, 3] = 1.0
    given = {"model": None, "x_batch": np.ones_like(one), "y_batch": np.ones(1, dtype=int)}
    metric = open_quantus().Sparseness(**(QUIET | {"abs": True}))
    assert float(gini(one)[0]) == 63 / 64 == 0.984375
    np.testing.assert_allclose(ask(metric, a_batch=one.copy(), **given), 0.9843687, rtol=0, atol=5e-8)


@needs_quantus
def test_entropy_is_the_complexity_of_quantus_0_6_0(maps: np.ndarray, pixels: torch.Tensor) -> None:
    metric = open_quantus().Complexity(**(QUIET | {"abs": True}))
    assert relative(entropy(maps), ask(metric, **given_to_quantus(None, pixels, maps))) <= 1e-5


@needs_quantus
def test_rank_correlation_and_histogram_entropy_are_those_of_quantus_0_6_0(maps: np.ndarray) -> None:
    quantus = open_quantus()
    others = np.random.default_rng(5).random(maps.shape)
    correlation = quantus.similarity_func.correlation_spearman
    theirs = np.array([correlation(one.ravel(), other.ravel()) for one, other in zip(maps, others, strict=True)])
    assert relative(randomised_similarity(maps, others), theirs) <= 1e-9
    before, after = (
        np.array([quantus.complexity_func.discrete_entropy(each, each, n_bins=100) for each in both])
        for both in (maps, others)
    )
    assert relative(efficient_mprt(maps, others), (after - before) / before) <= 1e-12
    assert before[0] == pytest.approx(shannon(np.histogram(maps[0], bins=100)[0]), rel=1e-12)


@needs_grad_cam
def test_grad_cam_is_that_of_grad_cam_1_5_7_after_its_scaling_and_leaves_no_gradient() -> None:
    model, shown = resnet("ResNet-18"), images(2, 3, 224)
    theirs, network = cam_peer(model, shown)
    np.testing.assert_allclose(stretched(mapped("grad_cam", model, shown)()), theirs(), rtol=0, atol=1e-3)
    assert all(weights.grad is None for weights in model.module.parameters())
    assert all(weights.grad is not None for weights in network.parameters()), "the peer leaves its gradients behind"


def test_grad_cam_is_layer_grad_cam_of_captum_0_9() -> None:
    model, shown = resnet("ResNet-18"), images(2, 3, 224)
    assert relative(mapped("grad_cam", model, shown)(), layer_grad_cam(model, shown)) <= 1e-5


def test_patch_ablation_is_occlusion_of_captum_0_9() -> None:
    model, shown = bert(64, layers=2, width=32), images(2, 1, 64)
    ours = mapped("patch_ablation", model, shown, Settings(baseline="black"))()
    assert relative(ours, occlusion_peer(model, shown, 4)()) <= 1e-5


def test_infidelity_is_that_of_captum_0_9_with_the_same_perturbations(network: LogOdds, pixels: torch.Tensor) -> None:
    samples, exact, wide = 20, network.double(), pixels.double()
    amounts = 0.1 * np.random.default_rng(6).standard_normal((4, samples, SIDE * SIDE))
    noise = torch.from_numpy(amounts.reshape(-1, 1, SIDE, SIDE))
    weights = torch.autograd.functional.jacobian(lambda shown: exact(shown)[:, 1].sum(), wide)

    def score(shown: torch.Tensor) -> torch.Tensor:
        return exact(shown)[:, 1]

    drops = score(wide)[:, None] - score(wide.repeat_interleave(samples, dim=0) - noise).reshape(4, samples)
    for normalised in (False, True):
        theirs = captum_infidelity(
            score, lambda shown: (noise, shown - noise), wide, weights, n_perturb_samples=samples, normalize=normalised
        )
        ours = infidelity(weights.flatten(1).numpy(), amounts, drops.numpy(), normalised=normalised)
        assert relative(ours, theirs.numpy()) <= 1e-9
