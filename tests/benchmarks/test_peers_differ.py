"""Where a peer is wrong: the closed form, what this library says, and what the peer says; the version is in the name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, GuidedBackprop, InputXGradient, LayerGradCam, Saliency
from torch import nn

from tests.benchmarks.explanations_peers import missing, open_quantus, without_warnings
from tests.benchmarks.explanations_sharing import QUIET
from tests.models.builders import RGB, pixels, seeded, vit
from xvision.errors import ConfigError
from xvision.explain.catalogue import chosen
from xvision.methods.localisation import pointing_game, ranked_family
from xvision.methods.randomisation import bottom_up, randomised_similarity
from xvision.methods.removal import pixel_evaluator
from xvision.methods.units import grid
from xvision.models.huggingface import HuggingFaceClassifier, adapt

pytestmark = pytest.mark.benchmark
needs_quantus = pytest.mark.skipif(missing("quantus") is not None, reason=str(missing("quantus")))


class Linear(nn.Module):
    """One weight per pixel, and a second class of the opposite weights."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weights.numel(), 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.stack((-weights.flatten(), weights.flatten())))

    def forward(self, shown: torch.Tensor) -> torch.Tensor:
        return self.head(shown.flatten(1))


def gradient(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
    """As Quantus wants it: arrays in, arrays out."""
    shown = torch.as_tensor(inputs, dtype=torch.float32).requires_grad_()
    logits = model(shown)[torch.arange(len(shown)), torch.as_tensor(targets)]
    return torch.autograd.grad(logits.sum(), shown)[0].numpy()


@pytest.fixture
def transformer() -> HuggingFaceClassifier:
    return adapt(seeded(vit), RGB, source="random weights")


@pytest.fixture
def scored(transformer: HuggingFaceClassifier) -> nn.Module:
    """The transformer as a module of pixels to logits, which is what captum takes."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = transformer.module

        def forward(self, shown: torch.Tensor) -> torch.Tensor:
            return self.inner(pixel_values=shown).logits

    return Wrapped()


@needs_quantus
def test_quantus_0_6_0_refuses_every_transformers_image_model(transformer: HuggingFaceClassifier) -> None:
    shown = pixels().numpy()
    metric = open_quantus().PixelFlipping(features_in_step=64, perturb_baseline=0.0, **QUIET)
    maps = np.random.default_rng(0).random((2, 1, 64, 64))
    with without_warnings(), pytest.raises(ValueError, match="please use Tokenizers output"):
        metric(model=transformer.module, x_batch=shown, y_batch=np.ones(2, dtype=int), a_batch=maps)
    assert torch.isfinite(transformer.logits(pixels())).all()


@needs_quantus
def test_quantus_0_6_0_cannot_impute_rgb_for_road() -> None:
    shown = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = np.random.default_rng(0).random((2, 1, 16, 16))
    network = Linear(torch.ones(3, 16, 16))
    with without_warnings(), pytest.raises(IndexError):
        open_quantus().ROAD(**QUIET)(
            model=network, x_batch=shown.numpy(), y_batch=np.ones(2, dtype=int), a_batch=maps, channel_first=True
        )
    evaluate = pixel_evaluator(
        lambda seen, _: seen.mean(dim=(1, 2, 3)), torch.full((1, 3, 16, 16), 0.5), torch.ones(1, dtype=torch.int64),
        grid(16, 16, 4), "road", seeds=[0],
    )  # fmt: skip
    removed = np.zeros((1, 16), dtype=bool)
    removed[0, 5] = True
    np.testing.assert_allclose(
        evaluate(np.zeros(1, dtype=int), removed), 0.5, rtol=0, atol=1e-3
    )  # constant stays constant


@needs_quantus
def test_quantus_0_6_0_counts_an_empty_mask_as_a_hit() -> None:
    maps, empty = np.random.default_rng(0).random((1, 8, 8)), np.zeros((1, 8, 8), dtype=bool)
    full = empty.copy()
    full[0, 0, 0] = True  # the metric refuses a batch of empty masks only
    given = {
        "model": None, "x_batch": np.zeros((2, 1, 8, 8)), "y_batch": np.ones(2, dtype=int),
        "a_batch": np.repeat(maps, 2, axis=0)[:, None], "s_batch": np.concatenate((full, empty))[:, None],
    }  # fmt: skip
    with without_warnings():
        theirs = open_quantus().PointingGame(**QUIET)(channel_first=True, **given)
    assert list(theirs) == [False, True]
    assert np.isnan(pointing_game(maps, empty)).all()
    assert all(np.isnan(score).all() for score in ranked_family(maps, empty))


@needs_quantus
def test_quantus_0_6_0_averages_the_model_as_it_is_into_the_randomisation_test() -> None:
    """One layer: there is one randomised model, so its similarity is the average; theirs is halfway to 1."""
    weights = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = Linear(weights).eval()
    shown = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    quantus = open_quantus()
    metric = quantus.MPRT(
        similarity_func=quantus.similarity_func.correlation_spearman, return_average_correlation=True, **QUIET
    )
    targets = np.ones(1, dtype=int)
    with without_warnings():
        (theirs,) = metric(
            model=network,
            x_batch=shown.numpy(),
            y_batch=targets,
            a_batch=None,
            explain_func=gradient,
            channel_first=True,
        )
    torch.manual_seed(43)  # as its randomisation: seed 42, and 1
    randomised = nn.Linear(64, 2, bias=False).weight[1].detach().reshape(1, 1, 8, 8).numpy()
    maps = gradient(network, shown, targets)[:, 0]
    steps = np.stack([randomised_similarity(maps, each[None]) for each in randomised[0]], axis=1)
    (similarity,) = bottom_up(steps)
    assert theirs == pytest.approx((1 + similarity) / 2, abs=1e-6)
    assert similarity < 0.5 < theirs


@needs_quantus
def test_quantus_0_6_0_lets_an_images_score_depend_on_its_neighbours() -> None:
    """By default it divides by the largest value of the whole batch, and then compares with a step that has a unit."""
    normalised = open_quantus().normalise_func.normalise_by_max
    small = np.full((1, 1, 4, 4), 0.1)
    alone = normalised(small)
    beside = normalised(np.concatenate((small, np.full((1, 1, 4, 4), 100.0))))[:1]
    assert alone.max() == pytest.approx(1.0)
    assert beside.max() == pytest.approx(0.001)
    shown = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    units, asked = grid(8, 8, 2), np.eye(16, dtype=bool)

    def scores(batch: torch.Tensor) -> np.ndarray:
        targets = torch.ones(len(batch), dtype=torch.int64)
        evaluate = pixel_evaluator(
            lambda seen, _: seen.sum(dim=(1, 2, 3)), batch, targets, units, "mean", seeds=range(len(batch))
        )
        return evaluate(np.zeros(16, dtype=int), asked)

    np.testing.assert_array_equal(scores(shown[:1]), scores(shown))


@needs_quantus
def test_quantus_0_6_0_area_under_a_curve_stops_where_numpy_has_no_trapz() -> None:
    area = open_quantus().helpers.utils.calculate_auc
    if hasattr(np, "trapz"):
        pytest.skip("this NumPy still has trapz: the defect shows from 2.4 on")
    with without_warnings(), pytest.raises(AttributeError, match="trapz"):
        area(np.array([0.0, 1.0]))


def test_captum_0_9_guided_backprop_of_a_vit_is_the_plain_gradient(
    transformer: HuggingFaceClassifier, scored: nn.Module
) -> None:
    """Its rule belongs to nn.ReLU and the transformer has none: nothing is guided, and only warnings could tell."""
    shown = pixels().requires_grad_()
    with without_warnings():
        guided = GuidedBackprop(scored).attribute(shown, target=1)
        plain = Saliency(scored).attribute(shown, target=1, abs=False)
    torch.testing.assert_close(guided, plain, rtol=0, atol=0)
    refused(transformer, "guided_backprop", "plain gradient")


def test_captum_0_9_deeplift_of_a_vit_is_input_times_gradient(
    transformer: HuggingFaceClassifier, scored: nn.Module
) -> None:
    """Its promise, to sum to the difference from the baseline, is missed by as much as the difference itself."""
    shown, black = pixels().requires_grad_(), torch.zeros(2, 3, 64, 64)
    with without_warnings():
        deep, gap = DeepLift(scored).attribute(shown, black, target=1, return_convergence_delta=True)
        product = InputXGradient(scored).attribute(shown, target=1)
    torch.testing.assert_close(deep.detach(), product.detach(), rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        difference = (scored(shown) - scored(black))[:, 1]
    assert bool((gap.abs() > 0.5 * difference.abs()).all())
    refused(transformer, "deeplift", "input × gradient")


def test_captum_0_9_layer_grad_cam_takes_tokens_for_channels(
    transformer: HuggingFaceClassifier, scored: nn.Module
) -> None:
    """The map of a layer of 65 tokens × 32 numbers has 32 places, which are numbers of a token and not parts of the image."""
    layer = transformer.module.vit.layers[-1]
    with without_warnings():
        found = LayerGradCam(scored, layer).attribute(pixels().requires_grad_(), target=1)
    assert found.shape == (2, 1, 32)
    refused(transformer, "layer_grad_cam", "token_grad_cam")


def refused(model: HuggingFaceClassifier, name: str, instead: str) -> None:
    """Here the method is refused, with what it would have shown or what to use."""
    with pytest.raises(ConfigError, match=instead):
        chosen(model, [name])
