"""Single tokens against a model whose score can be written down, and against a loop that leaves them out one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.one_layer import OneLayer, images_of
from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.token_attribution import (
    baseline_tokens,
    embedded_integrated_gradients,
    image_share,
    text_attribution,
    token_ablation,
    token_evaluator,
)

MEANS = [[0.2, 0.9, 0.4, 0.6], [0.5, 0.1, 0.8, 0.3]]
PIXELS = images_of(MEANS)
FIRST, SECOND = torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long)


def score(values: list[float], weights: list[float], gain: float = 2.0) -> float:
    """Log-odds of the second class when tokens of these values and second numbers are all that is attended to."""
    powers = np.exp(weights)
    return float(gain * powers @ np.array(values) / powers.sum())


def of_patches(means: list[float], words: tuple[float, ...] = ()) -> float:
    """As ``OneLayer`` scores it: words with weight 0, the read-out (0, 0) beside them."""
    return score([*words, *means, 0.0], [*[0.0] * len(words), *means, 0.0])


@pytest.mark.parametrize("steps", [1, 5])
def test_the_integral_of_a_linear_score_is_its_weights_times_the_way(steps: int) -> None:
    model = OneLayer(words=(0.5, -0.1, 0.2), sharpness=0.0)
    tokens = model.embedded(PIXELS)
    start = baseline_tokens(tokens, model.embedded(0 * PIXELS), model.token_map.names)
    found = embedded_integrated_gradients(model.from_embedded, tokens, start, SECOND, steps=steps)
    for row, means in enumerate(MEANS):
        expected = [2 / 8 * way for way in (0.3, -0.3, 0.0, *means, 0.0)]
        np.testing.assert_allclose(found.values[row], expected, atol=1e-7)
    np.testing.assert_allclose(found.difference, [2 / 8 * sum(means) for means in MEANS], atol=1e-6)
    assert found.gap.max() < 1e-5
    turned = embedded_integrated_gradients(model.from_embedded, tokens, start, FIRST, steps=steps)
    np.testing.assert_allclose(turned.values, -found.values, atol=1e-7)


def test_the_integral_of_a_quadratic_score_is_exact_with_one_point_and_a_saturated_one_is_not_lost() -> None:
    matrix = np.array([[2.0, 1.0], [1.0, -1.0]])
    at = np.array([0.3, 0.7])

    def quadratic(tokens: torch.Tensor) -> torch.Tensor:
        flat = tokens[:, :, 0]
        value = 0.5 * torch.einsum("bi,ij,bj->b", flat, torch.tensor(matrix, dtype=flat.dtype), flat)
        return torch.stack((torch.zeros_like(value), value), dim=1)

    tokens = torch.tensor(at, dtype=torch.float32)[None, :, None]
    one = torch.ones(1, dtype=torch.long)
    found = embedded_integrated_gradients(quadratic, tokens, torch.zeros_like(tokens), one, steps=1)
    np.testing.assert_allclose(found.values[0], 0.5 * at * (matrix @ at), atol=1e-7)

    def saturated(tokens: torch.Tensor) -> torch.Tensor:
        value = 1 - torch.relu(1 - tokens[:, 0, 0])
        return torch.stack((torch.zeros_like(value), value), dim=1)

    far = torch.full((1, 1, 1), 2.0)
    found = embedded_integrated_gradients(saturated, far, torch.zeros_like(far), one, steps=64)
    np.testing.assert_allclose(
        found.values, [[1.0]], atol=1e-6
    )  # half of the way has slope 2, by symmetry half of the points


def test_steps_close_the_gap_and_neither_batch_nor_neighbours_change_the_answer() -> None:
    model = OneLayer(words=(0.5, -0.4), sharpness=3.0)
    tokens = model.embedded(PIXELS)
    start = baseline_tokens(tokens, model.embedded(0 * PIXELS), model.token_map.names)
    found = embedded_integrated_gradients(model.from_embedded, tokens, start, SECOND, steps=16)
    assert found.gap.max() < 1e-5
    few = embedded_integrated_gradients(model.from_embedded, tokens, start, SECOND, steps=1)
    assert few.gap.min() > 1e-3
    np.testing.assert_allclose(few.gap, np.abs(few.values.sum(axis=1) - few.difference) / np.abs(few.difference))
    for batch in (1, 3, 5):
        cut = embedded_integrated_gradients(model.from_embedded, tokens, start, SECOND, steps=16, batch=batch)
        np.testing.assert_allclose(cut.values, found.values, atol=1e-6)
    alone = embedded_integrated_gradients(model.from_embedded, tokens[1:], start[1:], SECOND[1:], steps=16)
    np.testing.assert_allclose(alone.values[0], found.values[1], atol=1e-6)


def test_words_start_from_their_mean_and_all_else_from_the_blank_image() -> None:
    tokens, blank = torch.arange(10.0).reshape(1, 5, 2), torch.full((1, 5, 2), -1.0)
    start = baseline_tokens(tokens, blank, ("text", "text", "image", "image", "readout"))
    torch.testing.assert_close(start[0], torch.tensor([[1.0, 2.0]] * 2 + [[-1.0, -1.0]] * 3))
    torch.testing.assert_close(baseline_tokens(tokens, blank, ("image",) * 5), blank)


def test_leaving_tokens_out_gives_the_scores_of_what_is_left() -> None:
    model = OneLayer(words=(0.5,))
    evaluate = token_evaluator(model, PIXELS, SECOND)
    rows = np.array([0, 1, 0, 1, 0])
    removed = np.array([[0, 0, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]], dtype=bool)
    expected = []
    for row, gone in zip(rows, removed, strict=True):
        left = [mean for mean, out in zip(MEANS[row], gone, strict=True) if not out]
        expected.append(of_patches(left, words=(0.5,)))
    np.testing.assert_allclose(evaluate(rows, removed), expected, atol=1e-6)
    np.testing.assert_allclose(token_evaluator(model, PIXELS, FIRST)(rows, removed), [-e for e in expected], atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 9))
def test_an_answer_depends_on_its_own_pair_alone(seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    rows, removed = rng.integers(0, 2, size=12), rng.random((12, 4)) < 0.5
    together = token_evaluator(OneLayer(), PIXELS, SECOND, batch=batch)(rows, removed)
    evaluate = token_evaluator(OneLayer(), PIXELS, SECOND)
    alone = [evaluate(rows[i : i + 1], removed[i : i + 1])[0] for i in range(12)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_every_pair_costs_one_pass_and_no_pair_none() -> None:
    model = OneLayer()
    evaluate = token_evaluator(model, PIXELS, SECOND, batch=3)
    evaluate(np.array([0, 1, 1, 0, 0]), np.tri(5, 4, -1, dtype=bool))
    assert model.calls == 5
    assert evaluate(np.zeros(0, dtype=int), np.zeros((0, 4), dtype=bool)).shape == (0,)
    assert model.calls == 5


def test_token_ablation_is_the_fall_of_the_score_token_by_token() -> None:
    found = token_ablation(OneLayer(words=(0.5,)), PIXELS, SECOND)
    for row, means in enumerate(MEANS):
        whole = of_patches(means, (0.5,))
        falls = [whole - of_patches(means[:place] + means[place + 1 :], (0.5,)) for place in range(4)]
        np.testing.assert_allclose(found[row], falls, atol=1e-6)
    np.testing.assert_array_equal(found.argmax(axis=1), [1, 2])


def test_text_attribution_is_the_fall_of_the_score_word_by_word() -> None:
    words = (0.5, -0.4, 0.0)
    found = text_attribution(OneLayer(words=words), PIXELS, SECOND, batch=2)
    assert found.shape == (2, 3)
    for row, means in enumerate(MEANS):
        whole = of_patches(means, words)
        falls = [whole - of_patches(means, words[:place] + words[place + 1 :]) for place in range(3)]
        np.testing.assert_allclose(found[row], falls, atol=1e-6)
    assert (found[:, 0] > 0).all()
    assert (found[:, 1] < 0).all()


def test_shares_of_the_kinds_of_token_are_taken_before_any_scaling() -> None:
    values = np.array([[3.0, -1.0, 2.0, 0.0, -1.0, 1.0, 0.0], [0.0] * 7])
    found = image_share(values, OneLayer(words=(1.0, 1.0)).token_map)
    assert list(found) == ["text", "image", "readout"]
    np.testing.assert_allclose(found["text"], [0.5, np.nan])
    np.testing.assert_allclose(found["image"], [0.5, np.nan])
    np.testing.assert_allclose(found["readout"], [0.0, np.nan])
    with pytest.raises(DataError, match=r"values of shape \(2, 6\) for 7 tokens"):
        image_share(values[:, :6], OneLayer(words=(1.0, 1.0)).token_map)


def test_a_head_that_reads_the_image_tokens_is_refused() -> None:
    model = OneLayer(pooled=True)
    for ask in (token_evaluator, token_ablation):
        with pytest.raises(ModelError, match=r"the head reads the mean of the image tokens.*use\s+patch_ablation"):
            ask(model, PIXELS, SECOND)


def test_questions_that_cannot_be_asked_are_errors() -> None:
    model = OneLayer()
    tokens = model.embedded(PIXELS)
    with pytest.raises(DataError, match=r"removed units of shape \(2, 3\): one of 4 image tokens"):
        token_evaluator(model, PIXELS, SECOND)(np.zeros(2, dtype=int), np.zeros((2, 3), dtype=bool))
    with pytest.raises(DataError, match="found target 2"):
        token_ablation(model, PIXELS, torch.full((2,), 2))
    with pytest.raises(ModelError, match="the model reads no text"):
        text_attribution(model, PIXELS, SECOND)
    with pytest.raises(ConfigError, match="found batch = 0"):
        token_evaluator(model, PIXELS, SECOND, batch=0)
    for options in ({"steps": 0}, {"batch": 0}):
        with pytest.raises(ConfigError, match="both must be at least 1"):
            embedded_integrated_gradients(model.from_embedded, tokens, tokens, SECOND, **options)
    with pytest.raises(DataError, match=r"they must be \(B, T, D\)"):
        embedded_integrated_gradients(model.from_embedded, tokens, tokens[:, :4], SECOND)


def test_gradients_that_are_missing_or_not_finite_are_errors() -> None:
    model = OneLayer()
    tokens = model.embedded(PIXELS)

    def cut(given: torch.Tensor) -> torch.Tensor:
        return model.from_embedded(given.detach())

    def broken(given: torch.Tensor) -> torch.Tensor:
        return model.from_embedded(given * torch.tensor([1.0, torch.nan]).reshape(2, 1, 1)[: len(given)])

    with pytest.raises(ModelError, match="no gradient of the logits reaches"):
        embedded_integrated_gradients(cut, tokens, 0 * tokens, SECOND)
    with pytest.raises(ModelError, match="NaN or infinite for 1 of 2 images, the first in row 1"):
        embedded_integrated_gradients(broken, tokens, 0 * tokens, SECOND, steps=1)


def test_the_models_gradients_stay_as_they_were() -> None:
    model = OneLayer()
    tokens = model.embedded(PIXELS).requires_grad_()
    with torch.inference_mode():
        found = embedded_integrated_gradients(model.from_embedded, model.embedded(PIXELS), 0 * tokens, SECOND, steps=2)
    assert np.abs(found.values).max() > 0
    assert tokens.grad is None
