"""Repeats against closed forms, numpy and Pillow, and their independence of the batch."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from xvision.errors import DataError, ModelError
from xvision.methods.decision import Decision
from xvision.methods.repeats import (
    IMAGE_REPEATS,
    LEVEL,
    PASS_REPEATS,
    alone,
    answered_differently,
    changes_of,
    in_double,
    in_precision,
    margins,
    repeated,
    reversed_order,
    turned,
)

REPEATS = {repeat.name: repeat for repeat in IMAGE_REPEATS}
SHIFTS = {"shift_left": (0, -1), "shift_right": (0, 1), "shift_up": (-1, 0), "shift_down": (1, 0)}
BINARY = Decision(1, 0.5, True)
every_repeat = pytest.mark.parametrize("name", list(REPEATS))


def pictures(batch: int = 4, channels: int = 1, height: int = 9, width: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def of_levels(pixels: torch.Tensor) -> torch.Tensor:
    """The nearest pixels that an 8-bit file holds."""
    return torch.from_numpy(np.rint(pixels.numpy() * 255).astype(np.uint8).astype(np.float32) / np.float32(255))


def seen(pixels: torch.Tensor, name: str, *, seed: int = 0, draw: int = 0, first: int = 0) -> torch.Tensor:
    keys = [f"case-{first + row}" for row in range(len(pixels))]
    return repeated(pixels, REPEATS[name], keys, seed=seed, draw=draw)


def test_names_are_unique_and_told() -> None:
    names = [repeat.name for repeat in (*IMAGE_REPEATS, *PASS_REPEATS)]
    assert len(names) == len(set(names))
    assert all(repeat.title and repeat.stands_for for repeat in (*IMAGE_REPEATS, *PASS_REPEATS))


def test_the_same_image_is_the_same_image() -> None:
    assert torch.equal(seen(pictures(), "same_image"), pictures())


@pytest.mark.parametrize("name", list(SHIFTS))
def test_a_shift_moves_by_one_pixel_and_repeats_the_edge(name: str) -> None:
    pixels = pictures(channels=3)
    down, right = SHIFTS[name]
    padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    expected = padded[:, :, 1 - down : 1 - down + 9, 1 - right : 1 - right + 12]
    assert np.array_equal(seen(pixels, name).numpy(), expected)


@pytest.mark.parametrize("name", list(SHIFTS))
@given(value=st.floats(0, 1, width=32))
def test_a_shift_of_a_constant_image_changes_nothing(name: str, value: float) -> None:
    flat = torch.full((1, 1, 4, 5), value)
    assert torch.equal(seen(flat, name), flat)


def test_one_level_is_added_or_taken_within_the_range() -> None:
    pixels = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert seen(pixels, "level_up").flatten().tolist() == pytest.approx([1 / 255, 0.5 + 1 / 255, 1.0], abs=1e-7)
    assert seen(pixels, "level_down").flatten().tolist() == pytest.approx([0.0, 0.5 - 1 / 255, 254 / 255], abs=1e-7)


def test_random_levels_are_one_up_or_one_down_in_all_channels_alike() -> None:
    change = seen(torch.full((1, 3, 40, 40), 0.5), "level_random") - 0.5
    assert torch.allclose(change.abs(), torch.full_like(change, LEVEL), atol=1e-7)
    assert torch.equal(change[:, 0], change[:, 2])
    ups = (change[:, 0] > 0).double().mean().item()
    assert abs(ups - 0.5) < 5 * 0.5 / math.sqrt(1600)


def test_random_levels_differ_by_case_draw_and_seed() -> None:
    flat = torch.full((2, 1, 6, 6), 0.5)
    first = seen(flat, "level_random")
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, seen(flat, "level_random", draw=1))
    assert not torch.equal(first, seen(flat, "level_random", seed=1))
    assert torch.equal(first, seen(flat, "level_random"))


@every_repeat
def test_a_case_is_the_same_whatever_its_batch(name: str) -> None:
    pixels = pictures(batch=5)
    together = seen(pixels, name)
    for row in range(5):
        assert torch.equal(seen(pixels[row : row + 1], name, first=row), together[row : row + 1])


@every_repeat
@settings(max_examples=15)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_repeats_are_images_and_leave_their_input_alone(
    name: str, batch: int, channels: int, height: int, width: int, floor: float
) -> None:
    pixels = floor + (1 - floor) * pictures(batch, channels, height, width)
    before = pixels.clone()
    again = seen(pixels, name)
    assert again.shape == pixels.shape
    assert again.dtype == torch.float32
    assert bool(((again >= 0) & (again <= 1)).all())
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_keeps_eight_bits_to_the_last_bit(channels: int) -> None:
    stored = of_levels(pictures(channels=channels))
    assert torch.equal(seen(stored, "png"), stored)


def test_png_rounds_what_has_more_bits_to_the_nearest_level() -> None:
    assert torch.equal(seen(pictures(channels=3), "png"), of_levels(pictures(channels=3)))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows_at_quality_95(channels: int) -> None:
    pixels = pictures(batch=1, channels=channels, height=24, width=17)
    levels = np.rint(pixels[0].numpy() * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels[0] if channels == 1 else np.moveaxis(levels, 0, -1)).save(buffer, "JPEG", quality=95)
    decoded = np.asarray(Image.open(buffer))
    expected = decoded[None] if channels == 1 else np.moveaxis(decoded, -1, 0)
    again = seen(pixels, "jpeg")[0].numpy() * 255
    assert np.abs(again - expected).max() < 1e-4
    assert (np.rint(again) != levels).any()


def test_images_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(3, 4\)"):
        repeated(torch.rand(3, 4), REPEATS["png"], ["a", "b", "c"], seed=0)
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(DataError, match=r"must be finite and in \[0, 1\]"):
            repeated(torch.full((1, 1, 2, 2), wrong), REPEATS["png"], ["a"], seed=0)
    with pytest.raises(DataError, match="one key"):
        repeated(pictures(), REPEATS["png"], ["a"], seed=0)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_a_linear_decision_flips_where_its_margin_is_below_the_sum_of_weights(seed: int) -> None:
    """One level up moves w · x + b by sum(w) / 255 exactly, so a flip is a matter of the margin."""
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.uniform(0.1, 0.9, (64, 1, 3, 3)).astype(np.float32))
    weights = torch.from_numpy(rng.normal(size=9).astype(np.float32) * 5)
    odds = (pixels.flatten(1) @ weights).double()
    odds, offset = odds - odds.median(), odds.median()
    step = weights.double().sum().item() / 255
    for name, moved in (("level_up", step), ("level_down", -step)):
        again = (seen(pixels, name).flatten(1) @ weights).double() - offset
        clear = (odds.abs() > 1e-5) & ((odds + moved).abs() > 1e-5)
        expected = (odds >= 0) != (odds + moved >= 0)
        assert torch.equal(((again >= 0) != (odds >= 0))[clear], expected[clear])


def independent(pixels: torch.Tensor) -> torch.Tensor:
    return torch.stack((pixels.sum(dim=(1, 2, 3)), pixels.square().sum(dim=(1, 2, 3))), dim=1)


def of_batch_mean(pixels: torch.Tensor) -> torch.Tensor:
    return independent(pixels - pixels.mean(dim=0, keepdim=True))


def of_place(pixels: torch.Tensor) -> torch.Tensor:
    return independent(pixels) + torch.arange(len(pixels))[:, None]


@pytest.mark.parametrize("ask", [alone, reversed_order])
def test_a_model_that_looks_at_one_image_at_a_time_answers_alike(
    ask: Callable[..., torch.Tensor],
) -> None:
    assert torch.allclose(ask(independent, pictures()), independent(pictures()), atol=1e-5)


def test_each_way_of_asking_shows_the_coupling_it_is_for() -> None:
    pixels = pictures(batch=4)
    assert not torch.allclose(alone(of_batch_mean, pixels), of_batch_mean(pixels), atol=1e-2)
    assert torch.allclose(reversed_order(of_batch_mean, pixels), of_batch_mean(pixels), atol=1e-4)
    moved = reversed_order(of_place, pixels) - of_place(pixels)
    assert moved[:, 0].tolist() == pytest.approx([3.0, 1.0, -1.0, -3.0], abs=1e-4)


def test_sixteen_bits_lose_a_margin_below_their_resolution() -> None:
    """Just below 1, bfloat16 has steps of 2^-8 and float16 of 2^-11: 1 - 2^-10 becomes 1 in the former and stays in the latter."""
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(0.0)

    def odds(pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = layer(pixels.flatten(1))
        return found

    pixel = torch.tensor([1 - 2**-10]).view(1, 1, 1, 1)
    with torch.inference_mode():
        assert odds(pixel).item() == pixel.item()
        assert in_precision(torch.bfloat16)(odds, pixel).item() == 1.0
        assert in_precision(torch.float16)(odds, pixel).item() == pixel.item()
        assert in_precision(torch.bfloat16)(odds, pixel).dtype == torch.float32
        assert odds(pixel).item() == pixel.item()


class Cancelling(nn.Module):
    """1e8 + x - 1e8: float32 loses x, float64 does not."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.tensor(1e8))

    def forward(self, pixels: torch.Tensor, *, places: torch.Tensor | None = None) -> torch.Tensor:
        assert places is None or places.dtype == torch.int64
        return (pixels + self.large) - self.large


def test_a_copy_in_float64_computes_in_it_and_the_model_stays_as_it_is() -> None:
    module = Cancelling()
    twin = in_double(module, most_bytes=8)
    pixels = torch.full((1, 1, 1, 1), 0.25)
    assert module(pixels).item() == 0.0
    assert twin(pixels).item() == 0.25
    assert twin(pixels=pixels, places=torch.zeros(1, dtype=torch.int64)).item() == 0.25
    assert module.large.dtype == torch.float32
    assert not module._forward_pre_hooks
    with pytest.raises(ModelError, match="more than the 0 allowed"):
        in_double(module, most_bytes=7)


def test_changes_are_those_of_the_softmax() -> None:
    clean = np.array([[0.0, 1.0], [0.0, -2.0]])
    again = np.array([[[0.0, 1.0], [0.0, -1.0]], [[0.0, -2.5], [0.0, -2.0]]])
    found = changes_of(clean, again, BINARY)

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    assert found.decided.tolist() == [[1, 0], [0, 0]]
    assert found.logit.tolist() == [[0.0, 2.0], [0.5, 0.0]]
    wanted = [[0.0, sigmoid(1) - sigmoid(-1)], [sigmoid(-2) - sigmoid(-2.5), 0.0]]
    assert np.allclose(found.probability, wanted)


def test_the_class_whose_probability_changes_most_counts() -> None:
    found = changes_of(np.zeros((1, 3)), np.array([[[np.log(4.0), 0.0, 0.0]]]), Decision())
    assert found.probability.item() == pytest.approx(4 / 6 - 1 / 3)


def test_the_deployed_threshold_decides() -> None:
    clean, again = np.array([[0.0, 0.1]]), np.array([[[0.0, -0.1]]])
    assert changes_of(clean, again, Decision(1, 0.5, True)).decided.item() == 0
    assert changes_of(clean, again, Decision(1, 0.4, True)).decided.item() == 1
    odds = math.log(0.4 / 0.6)
    assert margins(clean, Decision(1, 0.4, True)).item() == pytest.approx(0.1 - odds, abs=1e-5)
    assert margins(np.array([[3.0, 7.0, 5.5]]), Decision()).item() == pytest.approx(1.5)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_no_decision(odd: float) -> None:
    found = changes_of(np.array([[0.0, 1.0]]), np.array([[[0.0, odd], [0.0, 1.0]]]), BINARY)
    assert found.decided.tolist() == [[-1, 1]]
    assert np.isnan(found.probability[0, 0])
    assert np.isinf(found.logit[0, 0])
    assert found.probability[0, 1] == 0.0
    with pytest.raises(ModelError, match="not finite"):
        changes_of(np.array([[0.0, odd]]), np.zeros((1, 1, 2)), BINARY)


def test_rounding_of_large_logits_is_not_another_answer() -> None:
    clean = np.array([[0.0, 0.5], [0.0, 0.5], [0.0, 5000.0], [0.0, 5000.0]])
    steps = np.array([0.9e-4, 1.1e-4, 0.4, 0.6])
    again = clean[:, None].repeat(2, axis=1)
    again[:, 1, 1] += steps
    assert answered_differently(clean, changes_of(clean, again, BINARY)).tolist() == [False, True, False, True]


def test_only_turns_that_do_harm_are_missed_or_false_alarms() -> None:
    labels, before = np.array([1, 1, 1, 0, 0, 0, 0]), np.array([1, 0, 2, 0, 0, 1, 0])
    decided = np.array([[1, 0], [1, 1], [0, -1], [0, 2], [-1, 0], [0, 2], [0, 0]])
    missed, alarm = turned(decided, before, labels, 0)
    assert missed.tolist() == [True, False, True, False, False, False, False]
    assert alarm.tolist() == [False, False, False, True, False, False, False]
    assert not np.any(turned(decided, before, labels, None))
