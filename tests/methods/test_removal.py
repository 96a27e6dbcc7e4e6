"""Scores of images with parts removed: linear models, whose scores are known; a stem that may and one that may not be skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.attribution import baseline_pixels
from xvision.methods.imputation import linear_imputation
from xvision.methods.removal import ROAD_NOISE, Operator, embedding_evaluator, pixel_evaluator, reference_pixels
from xvision.methods.target import log_odds
from xvision.methods.units import Evaluate, Units, grid

FILLS: tuple[Operator, ...] = ("mean", "blur", "black", "data mean")
SIDE, PATCH = 16, 4
UNITS = grid(SIDE, SIDE, PATCH)
ONES = torch.ones(3, dtype=torch.int64)


def images(batch: int = 3, channels: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


WEIGHTS = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(7))


def linear(pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (pixels * WEIGHTS).flatten(1).sum(dim=1) + 0.5 * targets


def questions(count: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, count), rng.random((count, UNITS.count)) < 0.4


def evaluator(operator: Operator, batch: int = 64, seeds: tuple[int, ...] = (4, 5, 6)) -> Evaluate:
    return pixel_evaluator(
        linear, images(), ONES, UNITS, operator, seeds=seeds, batch=batch, references=images(5, seed=9)
    )


def dense_imputation(pixels: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The same system, pixel by pixel, as a full matrix."""
    places = list(zip(*np.nonzero(removed), strict=True))
    matrix, right = np.zeros((len(places), len(places))), np.zeros((len(places), len(pixels)))
    for number, (row, column) in enumerate(places):
        around = [
            (row + down, column + across, 1 / 6 if 0 in (down, across) else 1 / 12)
            for down in (-1, 0, 1)
            for across in (-1, 0, 1)
            if (down, across) != (0, 0)
            and 0 <= row + down < removed.shape[0]
            and 0 <= column + across < removed.shape[1]
        ]
        matrix[number, number] = 1.0
        for there, across, weight in around:
            share = weight / sum(each[2] for each in around)
            if removed[there, across]:
                matrix[number, places.index((there, across))] -= share
            else:
                right[number] += share * pixels[:, there, across]
    filled = pixels.astype(np.float64)
    filled[:, removed] = np.linalg.solve(matrix, right).T
    return filled


def test_one_removed_pixel_is_the_weighted_mean_of_its_neighbours() -> None:
    pixels = np.arange(9.0).reshape(1, 3, 3) ** 2
    removed = np.zeros((3, 3), dtype=bool)
    removed[1, 1] = True
    direct, diagonal = 1 + 9 + 25 + 49, 0 + 4 + 36 + 64
    assert linear_imputation(pixels, removed)[0, 1, 1] == pytest.approx(direct / 6 + diagonal / 12)
    corner = np.zeros((3, 3), dtype=bool)
    corner[0, 0] = True
    assert linear_imputation(pixels, corner)[0, 0, 0] == pytest.approx((2 * 1 + 2 * 9 + 16) / 5)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
def test_imputed_pixels_solve_the_system_of_neighbours(share: float) -> None:
    rng = np.random.default_rng(0)
    pixels, removed = rng.random((3, 9, 11)), rng.random((9, 11)) < share
    found = linear_imputation(pixels, removed)
    np.testing.assert_allclose(found, dense_imputation(pixels, removed), atol=1e-10)
    np.testing.assert_array_equal(found[:, ~removed], pixels[:, ~removed])


def test_imputing_keeps_a_constant_image_and_gives_the_mean_when_nothing_is_left() -> None:
    removed = np.random.default_rng(0).random((8, 8)) < 0.7
    np.testing.assert_allclose(linear_imputation(np.full((2, 8, 8), 0.3), removed), 0.3, atol=1e-12)
    pixels = np.random.default_rng(1).random((2, 8, 8))
    gone = linear_imputation(pixels, np.ones((8, 8), dtype=bool))
    np.testing.assert_allclose(gone, np.broadcast_to(pixels.mean(axis=(1, 2), keepdims=True), gone.shape))
    np.testing.assert_array_equal(linear_imputation(pixels, np.zeros((8, 8), dtype=bool)), pixels)
    with pytest.raises(DataError, match=r"image of shape \(2, 8, 8\) and a mask of shape \(4, 4\)"):
        linear_imputation(pixels, np.ones((4, 4), dtype=bool))


@pytest.mark.parametrize("operator", FILLS)
def test_a_linear_model_scores_what_is_left_and_what_was_put_in(operator: Operator) -> None:
    rows, removed = questions()
    filling = reference_pixels(images(), operator, images(5, seed=9))
    gone = torch.as_tensor(removed[:, UNITS.labels])[:, None]
    expected = [
        float(linear(torch.where(mask, filling[row], images()[row])[None], ONES[:1]))
        for row, mask in zip(rows, gone, strict=True)
    ]
    np.testing.assert_allclose(evaluator(operator)(rows, removed), expected, atol=1e-4)


def test_black_fill_takes_a_linear_model_s_products_away_exactly() -> None:
    rows, removed = questions()
    products = UNITS.sums((images().double() * WEIGHTS.double()).sum(dim=1).numpy())
    expected = 0.5 + (products[rows] * ~removed).sum(axis=1)
    np.testing.assert_allclose(evaluator("black")(rows, removed), expected, atol=1e-5)


def test_road_adds_its_image_s_noise_to_what_is_imputed() -> None:
    removed = np.ones((3, UNITS.count), dtype=bool)
    flat = torch.full((3, 2, SIDE, SIDE), 0.5)
    seen: list[torch.Tensor] = []

    def watching(pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.clone())
        return linear(pixels, targets)

    evaluate = pixel_evaluator(watching, flat, ONES, UNITS, "road", seeds=(1, 2, 1))
    evaluate(np.arange(3), removed)
    noise = seen[0] - 0.5
    assert float(noise.std()) == pytest.approx(ROAD_NOISE, rel=0.05)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    half = removed.copy()
    half[:, ::2] = False
    evaluate(np.arange(3), half)
    gone = torch.as_tensor(half[:, UNITS.labels])[:, None].expand_as(noise)
    torch.testing.assert_close((seen[1] - 0.5)[gone], noise[gone])
    assert float((seen[1] - 0.5)[~gone].abs().max()) == 0.0


def test_road_fills_with_the_imputed_image() -> None:
    rows, removed = questions(6)
    scores = evaluator("road")(rows, removed)
    for row, units, score in zip(rows, removed, scores, strict=True):
        mask = units[UNITS.labels]
        filled = torch.as_tensor(dense_imputation(images()[row].numpy(), mask), dtype=torch.float32)
        noise = 4 * ROAD_NOISE * float((WEIGHTS.square().sum(dim=0)[torch.as_tensor(mask)]).sum().sqrt())
        assert score == pytest.approx(float(linear(filled[None], ONES[:1])), abs=noise)


@pytest.mark.parametrize("operator", [*FILLS, "road"])
def test_an_answer_depends_on_its_own_row_and_units_alone(operator: Operator) -> None:
    rows, removed = questions()
    together = evaluator(operator)(rows, removed)
    np.testing.assert_allclose(evaluator(operator, batch=1)(rows, removed), together, atol=1e-5)
    np.testing.assert_allclose(evaluator(operator, batch=7)(rows[::-1], removed[::-1])[::-1], together, atol=1e-5)
    alone = pixel_evaluator(linear, images()[1:2], ONES[:1], UNITS, operator, seeds=(5,), references=images(5, seed=9))
    mine = rows == 1
    np.testing.assert_allclose(alone(np.zeros(mine.sum(), dtype=int), removed[mine]), together[mine], atol=1e-5)


@pytest.mark.parametrize("operator", [*FILLS, "road"])
def test_nothing_removed_is_the_image_and_no_question_no_answer(operator: Operator) -> None:
    whole = evaluator(operator)(np.arange(3), np.zeros((3, UNITS.count), dtype=bool))
    np.testing.assert_array_equal(whole, linear(images(), ONES).double())
    assert evaluator(operator)(np.zeros(0, dtype=int), np.zeros((0, UNITS.count), dtype=bool)).shape == (0,)


def test_a_pass_holds_no_more_images_than_asked_and_fewer_large_ones_on_a_cpu() -> None:
    seen: list[int] = []

    def counting(pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return pixels.flatten(1).sum(dim=1)

    pixel_evaluator(counting, images(), ONES, UNITS, "black", seeds=(0, 0, 0), batch=8)(*questions(20))
    assert seen == [8, 8, 4]
    seen.clear()
    large, units = torch.zeros(1, 1, 256, 256), grid(256, 256, 128)
    everything = np.ones((10, 4), dtype=bool)
    pixel_evaluator(counting, large, ONES[:1], units, "black", seeds=(0,))(np.zeros(10, dtype=int), everything)
    assert seen == [4, 4, 2]


def test_questions_and_images_that_do_not_fit_are_refused() -> None:
    evaluate = evaluator("black")
    with pytest.raises(DataError, match=r"rows of shape \(2,\) and removed of shape \(2, 3\) bool"):
        evaluate(np.zeros(2, dtype=int), np.zeros((2, 3), dtype=bool))
    with pytest.raises(DataError, match="float64"):
        evaluate(np.zeros(2, dtype=int), np.zeros((2, UNITS.count)))
    with pytest.raises(DataError, match="found the rows 0 to 3 of a batch of 3 images"):
        evaluate(np.array([0, 3]), np.zeros((2, UNITS.count), dtype=bool))
    with pytest.raises(DataError, match=r"units of \(8, 8\) for images of \(16, 16\)"):
        pixel_evaluator(linear, images(), ONES, grid(8, 8, 4), "black", seeds=(0, 0, 0))
    with pytest.raises(DataError, match="found 2 seeds for 3 images"):
        evaluator("road", seeds=(0, 1))
    with pytest.raises(ConfigError, match="found batch = 0"):
        evaluator("black", batch=0)
    with pytest.raises(ConfigError, match="found the operator 'white': known are mean, blur, black, data mean, road"):
        evaluator("white")  # a plan may hold any word
    with pytest.raises(ConfigError, match="road fills from what is left"):
        reference_pixels(images(), "road")
    with pytest.raises(DataError, match="needs reference images"):
        pixel_evaluator(linear, images(), ONES, UNITS, "data mean", seeds=(0, 0, 0))


@dataclass
class Map:
    """The part of a token map that is read here."""

    image: np.ndarray
    boxes: np.ndarray


@dataclass
class Tokens:
    """A class token and 16 patches through a stem, mixed by one layer; ``logits`` counts the passes from pixels."""

    stem: nn.Module
    passes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
        self.head, self.first = nn.Linear(8, 3), torch.randn(1, 1, 8)

    @property
    def token_map(self) -> Map:
        rows, columns = (PATCH * axis.ravel() for axis in np.indices((4, 4)))
        return Map(np.arange(1, 17), np.stack((columns, rows, columns + PATCH, rows + PATCH), axis=1))

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.stem(pixels).flatten(2).transpose(1, 2)
        return torch.cat((self.first.expand(len(pixels), -1, -1), patches), dim=1)

    def from_embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(tokens)[:, 0])

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        self.passes.append(len(pixels))
        return self.from_embedded(self.embedded(pixels))


def patch_stem() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(2, 8, PATCH, stride=PATCH)


def overlapping_stem() -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(2, 8, PATCH + 2, stride=PATCH, padding=1)


def both(model: Tokens, operator: Operator, batch: int = 64) -> tuple[str, str, np.ndarray, np.ndarray]:
    given = {"seeds": (4, 5, 6), "batch": batch, "references": images(5, seed=9)}
    targets = torch.tensor([0, 1, 2])
    found = embedding_evaluator(model, images(), targets, UNITS, operator, **given)
    expected = pixel_evaluator(lambda x, t: log_odds(model.logits(x), t), images(), targets, UNITS, operator, **given)
    return found.level, found.why, found.evaluate(*questions()), expected(*questions())


@pytest.mark.parametrize("operator", FILLS)
@pytest.mark.parametrize("batch", [1, 6, 64])
def test_exchanging_tokens_scores_as_filling_pixels_does(operator: Operator, batch: int) -> None:
    level, why, found, expected = both(Tokens(patch_stem()), operator, batch)
    assert (level, why) == ("embeddings", "each token is made from its own patch")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.05


def test_exchanging_tokens_runs_no_pixels_through_the_model() -> None:
    model = Tokens(patch_stem())
    evaluate = embedding_evaluator(model, images(), ONES, UNITS, "black", seeds=(0, 0, 0)).evaluate
    evaluate(*questions())
    assert model.passes == []


class Whitened(nn.Module):
    """A stem that first divides by the image's own spread: every token depends on every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = patch_stem()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.inner(pixels / pixels.std(dim=(1, 2, 3), keepdim=True))


@pytest.mark.parametrize("stem", [overlapping_stem, Whitened])
def test_a_stem_that_sees_more_than_a_patch_is_found_out(stem: Callable[[], nn.Module]) -> None:
    level, why, found, expected = both(Tokens(stem()), "black")
    assert (level, why) == ("pixels", "a token of this model depends on more than its own patch")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_constant_first_image_hides_no_stem() -> None:
    pixels = images()
    pixels[0] = 0.5
    found = embedding_evaluator(Tokens(overlapping_stem()), pixels, ONES, UNITS, "mean", seeds=(0, 0, 0))
    assert found.level == "pixels"


def test_what_cannot_be_exchanged_is_filled_and_the_reason_said() -> None:
    level, why, found, expected = both(Tokens(patch_stem()), "road")
    assert (level, why) == ("pixels", "the filling of a patch depends on what else is removed")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    model = Tokens(patch_stem())
    odd = embedding_evaluator(model, images(), ONES, grid(SIDE, SIDE, 3), "black", seeds=(0, 0, 0))
    assert odd.why == "the parts that are removed are not whole patches of the model"


def test_units_of_several_patches_are_exchanged_together() -> None:
    model, units = Tokens(patch_stem()), grid(SIDE, SIDE, 8)
    found = embedding_evaluator(model, images(), ONES, units, "blur", seeds=(0, 0, 0))
    expected = pixel_evaluator(
        lambda x, t: log_odds(model.logits(x), t), images(), ONES, units, "blur", seeds=(0, 0, 0)
    )
    removed = np.random.default_rng(0).random((9, units.count)) < 0.5
    rows = np.arange(9) % 3
    assert found.level == "embeddings"
    np.testing.assert_allclose(found.evaluate(rows, removed), expected(rows, removed), atol=1e-5)


@dataclass
class Plain:
    """A model of pixels alone."""

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        score = linear(pixels, torch.zeros(len(pixels)))
        return torch.stack((torch.zeros_like(score), score), dim=1)


class Bound(Tokens):
    """A model whose tokens cannot be known now."""

    @property
    def token_map(self) -> Map:
        raise ModelError("The bound texts have different lengths.")


def test_models_without_tokens_are_filled() -> None:
    found = embedding_evaluator(Plain(), images(), ONES, UNITS, "black", seeds=(0, 0, 0))
    assert (found.level, found.why) == ("pixels", "the model has no sequence of tokens that can be changed")
    np.testing.assert_allclose(found.evaluate(*questions()), evaluator("black")(*questions()) - 0.5, atol=1e-5)
    bound = embedding_evaluator(Bound(patch_stem()), images(), ONES, UNITS, "black", seeds=(0, 0, 0))
    assert (bound.level, bound.why) == ("pixels", "The bound texts have different lengths.")


def test_the_model_and_the_pixels_are_left_as_they_were() -> None:
    model, pixels = Tokens(patch_stem()), images().requires_grad_()
    embedding_evaluator(model, pixels, ONES, UNITS, "blur", seeds=(0, 0, 0)).evaluate(*questions())
    assert pixels.grad is None
    assert torch.equal(pixels.detach(), images())
    assert all(weights.grad is None and weights.requires_grad for weights in model.stem.parameters())
    assert torch.is_grad_enabled()


def test_the_mean_of_an_image_is_its_own() -> None:
    assert torch.equal(reference_pixels(images(), "mean"), baseline_pixels(images(), "mean"))
    whole = Units(np.zeros((SIDE, SIDE), dtype=np.int64), 1)
    evaluate = pixel_evaluator(linear, images(), ONES, whole, "mean", seeds=(0, 0, 0))
    expected = images().mean(dim=(2, 3)) @ WEIGHTS.sum(dim=(1, 2)) + 0.5
    np.testing.assert_allclose(evaluate(np.arange(3), np.ones((3, 1), dtype=bool)), expected, atol=1e-4)
