"""Attention maps against closed forms of one layer, and against products of whole matrices written out head by head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.errors import ConfigError, ModelError
from xvision.methods.attention_maps import (
    chefer_relevance,
    gradient_attention,
    gradient_rollout,
    layer_gradients,
    legrad,
    raw_attention,
)

WEIGHTED = (chefer_relevance, gradient_attention, gradient_rollout)
EVERYWHERE = np.ones((5, 5), dtype=bool)
CLS = np.eye(5)[0]


def softmax_layers(seed: int, layers: int, batch: int = 1, heads: int = 1, tokens: int = 5) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.as_tensor(rng.dirichlet(np.ones(tokens), size=(batch, heads, tokens))) for _ in range(layers)]


def slopes_like(weights: list[torch.Tensor], seed: int = 1) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.as_tensor(rng.normal(size=tuple(layer.shape))) for layer in weights]


def head_by_head(weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Mean over heads of the positive part of one image's (A, T, T) gradient × attention, one number at a time."""
    heads, tokens, _ = weight.shape
    mixed = np.zeros((tokens, tokens))
    for head in range(heads):
        for row in range(tokens):
            for column in range(tokens):
                mixed[row, column] += max(0.0, gradient[head, row, column] * weight[head, row, column]) / heads
    return mixed


def relevance_matrix(weights: list[np.ndarray], gradients: list[np.ndarray]) -> np.ndarray:
    """The published update, R plus M times R from the first layer up, without what starts as one."""
    relevance = np.eye(weights[0].shape[-1])
    for weight, gradient in zip(weights, gradients, strict=True):
        relevance = relevance + head_by_head(weight, gradient) @ relevance
    return relevance - np.eye(len(relevance))


def rollout_matrix(weights: list[np.ndarray], gradients: list[np.ndarray], residual: float) -> np.ndarray:
    product = np.eye(weights[0].shape[-1])
    for weight, gradient in zip(weights, gradients, strict=True):
        mixed = residual * np.eye(len(product)) + (1 - residual) * head_by_head(weight, gradient)
        product = (mixed / mixed.sum(axis=1, keepdims=True)) @ product
    return product


def image(layers: list[torch.Tensor], place: int) -> list[np.ndarray]:
    return [layer[place].numpy() for layer in layers]


def test_one_layer_and_one_head_is_the_positive_gradient_times_attention_in_the_row_of_the_head() -> None:
    weights = [torch.tensor([[[[0.2, 0.8], [0.5, 0.5]]]], dtype=torch.float64)]
    gradients = [torch.tensor([[[[3.0, -1.0], [-2.0, 4.0]]]], dtype=torch.float64)]
    for row, expected in ((0, [0.6, 0.0]), (1, [0.0, 2.0])):
        readout = np.eye(2)[row]
        np.testing.assert_allclose(chefer_relevance(weights, gradients, readout)[0], expected, atol=1e-15)
        np.testing.assert_allclose(gradient_attention(weights, gradients, readout)[0], expected, atol=1e-15)
    opposite = [-gradients[0]]
    np.testing.assert_allclose(chefer_relevance(weights, opposite, np.eye(2)[0])[0], [0.0, 0.8], atol=1e-15)
    np.testing.assert_allclose(chefer_relevance(weights, opposite, np.eye(2)[1])[0], [1.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(legrad(gradients, EVERYWHERE[:2, :2])[0], [1.5, 2.0], atol=1e-15)
    rolled = gradient_rollout(weights, gradients, np.eye(2)[0])[0]
    np.testing.assert_allclose(rolled, [1.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(gradient_rollout(weights, opposite, np.eye(2)[0])[0], [1 / 1.8, 0.8 / 1.8], atol=1e-15)


def test_two_layers_of_one_number_each_multiply_out() -> None:
    """(1 + a)(1 + b) − 1 on a single token; the clamp comes before the mean over heads: (2 + 0) / 2, not (2 − 1) / 2."""
    ones = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    slopes = torch.tensor([2.0, -1.0], dtype=torch.float64)[None, :, None, None]
    np.testing.assert_allclose(chefer_relevance([ones, ones], [slopes, 3 * slopes], np.ones(1)), [[7.0]])
    np.testing.assert_allclose(legrad([slopes, 3 * slopes], np.ones((1, 1), dtype=bool)), [[2.0]])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), layers=st.integers(1, 4), residual=st.floats(0.05, 0.9))
def test_row_forms_are_the_matrix_products_image_by_image(seed: int, layers: int, residual: float) -> None:
    weights = softmax_layers(seed, layers, batch=2, heads=3)
    gradients = slopes_like(weights, seed)
    readout = np.random.default_rng(seed).dirichlet(np.ones(5))
    relevance = chefer_relevance(weights, gradients, readout)
    rolled = gradient_rollout(weights, gradients, readout, residual=residual)
    last = gradient_attention(weights, gradients, readout)
    for place in range(2):
        parts = image(weights, place), image(gradients, place)
        np.testing.assert_allclose(relevance[place], readout @ relevance_matrix(*parts), rtol=1e-9)
        np.testing.assert_allclose(rolled[place], readout @ rollout_matrix(*parts, residual), atol=1e-9)
        np.testing.assert_allclose(last[place], readout @ head_by_head(parts[0][-1], parts[1][-1]), atol=1e-12)
    np.testing.assert_allclose(rolled.sum(axis=1), 1.0, atol=1e-12)


def test_scaling_the_score_scales_one_layer_and_a_batch_is_what_each_image_is_alone() -> None:
    weights = softmax_layers(0, 1, batch=3, heads=2)
    gradients = slopes_like(weights)
    scaled = [3.5 * layer for layer in gradients]
    for method in (chefer_relevance, gradient_attention):
        np.testing.assert_allclose(method(weights, scaled, CLS), 3.5 * method(weights, gradients, CLS), rtol=1e-12)
    np.testing.assert_allclose(legrad(scaled, EVERYWHERE), 3.5 * legrad(gradients, EVERYWHERE), rtol=1e-12)
    for method in WEIGHTED:
        together = method(weights, gradients, CLS)
        alone = [method([weights[0][i : i + 1]], [gradients[0][i : i + 1]], CLS)[0] for i in range(3)]
        np.testing.assert_allclose(together, alone, atol=1e-15)
    alone = [legrad([gradients[0][i : i + 1]], EVERYWHERE)[0] for i in range(3)]
    np.testing.assert_allclose(legrad(gradients, EVERYWHERE), alone, atol=1e-15)


@pytest.mark.parametrize(("fusion", "row"), [("mean", [0.3, 0.7]), ("max", [0.5, 0.9]), ("min", [0.1, 0.5])])
def test_raw_attention_is_the_read_row_of_the_last_layer_alone(fusion: str, row: list[float]) -> None:
    last = torch.tensor([[[[0.1, 0.9], [1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]]]])
    first = softmax_layers(0, 1, heads=2, tokens=2)[0]
    found = raw_attention([first, last], np.array([1.0, 0.0]), head_fusion=fusion)
    np.testing.assert_allclose(found, [row], atol=1e-7)
    halves = raw_attention([last], np.array([0.5, 0.5]))
    np.testing.assert_allclose(halves, [[0.65, 0.35]], atol=1e-7)


def test_legrad_is_the_mean_over_queries_heads_and_layers_and_ignores_what_the_mask_forbids() -> None:
    gradients = slopes_like(softmax_layers(0, 3, batch=2, heads=2))
    causal = np.tri(5, dtype=bool)
    stacked = np.maximum(np.stack([layer.numpy() for layer in gradients]), 0.0)
    np.testing.assert_allclose(legrad(gradients, EVERYWHERE), stacked.mean(axis=(0, 2, 3)), atol=1e-15)
    np.testing.assert_allclose(legrad(gradients, causal), (stacked * causal).mean(axis=(0, 2, 3)), atol=1e-15)


def test_no_positive_gradient_is_a_map_of_zeros_and_a_rollout_that_stays_where_it_began() -> None:
    weights = softmax_layers(0, 2, batch=2, heads=2)
    against = [-torch.ones_like(layer) for layer in weights]
    for method in (chefer_relevance, gradient_attention):
        np.testing.assert_array_equal(method(weights, against, CLS), 0.0)
    np.testing.assert_array_equal(legrad(against, EVERYWHERE), 0.0)
    np.testing.assert_array_equal(gradient_rollout(weights, against, CLS), [CLS, CLS])


def test_gradients_are_each_images_own_and_leave_no_trace() -> None:
    start = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    first = start.softmax(dim=-1)
    second = (first @ first).softmax(dim=-1)
    score = (first * first).sum(dim=(1, 2, 3)) + (second**3).sum(dim=(1, 2, 3))
    last = layer_gradients([score], [first, second])[1]
    torch.testing.assert_close(last, 3 * second**2)
    own = layer_gradients([(layer**2).sum(dim=(1, 2, 3)) for layer in (first, second)], [first, second])
    for found, layer in zip(own, (first, second), strict=True):
        torch.testing.assert_close(found, 2 * layer)
    assert start.grad is None


def test_weights_that_the_score_does_not_depend_on_are_an_error_that_says_what_to_use() -> None:
    weights = torch.ones(1, 1, 2, 2, requires_grad=True)
    for score in (torch.ones(1, requires_grad=True) * 2, torch.ones(1)):
        with pytest.raises(ModelError, match=r"no gradient of the score reaches the attention weights.*token_ablation"):
            layer_gradients([score], [weights])


@pytest.mark.parametrize("method", WEIGHTED)
def test_unusable_weights_and_gradients_are_errors(method: object) -> None:
    weights = softmax_layers(0, 2)
    for layers, slopes, message in (
        ([], [], "found attention of 0 layers and gradients of 0"),
        ([weights[0], -weights[1]], slopes_like(weights), "layer 1 holds negative or non-finite weights"),
        (weights, [torch.zeros(1, 1, 5, 5), torch.full((1, 1, 5, 5), torch.nan)], "layer 1 is NaN or infinite"),
        (weights, [torch.zeros(1, 1, 5, 5), torch.full((1, 1, 5, 5), torch.inf)], "layer 1 is NaN or infinite"),
        (weights, [torch.zeros(1, 1, 5, 5), torch.zeros(1, 2, 5, 5)], r"but its gradient \(1, 2, 5, 5\)"),
        (weights, [torch.zeros(1, 1, 5, 5), torch.zeros(1, 5, 5)], r"layer 1 has shape \(1, 5, 5\)"),
    ):
        with pytest.raises(ModelError, match=message):
            method(layers, slopes, CLS)
    with pytest.raises(ModelError, match=r"shape \(4,\)"):
        method(weights, slopes_like(weights), np.eye(4)[0])


def test_layers_of_different_tokens_and_lists_of_different_length_are_errors() -> None:
    weights = [*softmax_layers(0, 1), *softmax_layers(0, 1, tokens=4)]
    for method in (chefer_relevance, gradient_rollout):
        with pytest.raises(ModelError, match="the same tokens are needed in every layer"):
            method(weights, slopes_like(weights), CLS)
        with pytest.raises(ModelError, match="found attention of 2 layers and gradients of 1"):
            method(weights, slopes_like(weights)[:1], CLS)


def test_options_and_missing_layers_are_named() -> None:
    weights = softmax_layers(0, 1)
    with pytest.raises(ConfigError, match="found residual = 1"):
        gradient_rollout(weights, slopes_like(weights), CLS, residual=1.0)
    with pytest.raises(ConfigError, match="found head_fusion = 'median'"):
        raw_attention(weights, CLS, head_fusion="median")
    for method in (lambda: raw_attention([], CLS), lambda: legrad([], EVERYWHERE)):
        with pytest.raises(ModelError, match="no attention weights: load it with eager attention"):
            method()
    with pytest.raises(ModelError, match=r"layer 0 has 5 tokens but the mask \(4, 4\)"):
        legrad(slopes_like(weights), EVERYWHERE[:4, :4])
    with pytest.raises(ModelError, match="layer 0 is NaN or infinite"):
        legrad([torch.full((1, 1, 5, 5), torch.nan)], EVERYWHERE)
