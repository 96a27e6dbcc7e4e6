"""Rollout against exact fractions worked out by hand, and its row form against the matrix product."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.errors import ConfigError, ModelError
from xvision.methods.rollout import corrected, image_mass, rollout, to_pixels, uninformative


def one_hot(index: int, tokens: int) -> np.ndarray:
    return np.eye(tokens)[index]


def layers_of(*matrices: np.ndarray) -> list[torch.Tensor]:
    return [torch.as_tensor(np.asarray(matrix, dtype=np.float64))[None, None] for matrix in matrices]


def random_attention(rng: np.random.Generator, layers: int, batch: int, heads: int, tokens: int) -> list[torch.Tensor]:
    return [torch.as_tensor(rng.dirichlet(np.ones(tokens), size=(batch, heads, tokens))) for _ in range(layers)]


def matrix_rollout(weights: list[torch.Tensor], residual: float, fuse: str) -> np.ndarray:
    """The published form: build every layer's matrix and multiply, first layer rightmost."""
    batch, _, tokens, _ = weights[0].shape
    product = np.repeat(np.eye(tokens)[None], batch, axis=0)
    for layer in weights:
        fused = getattr(np, fuse)(layer.numpy(), axis=1)
        mixed = residual * np.eye(tokens) + (1 - residual) * fused
        product = (mixed / mixed.sum(axis=2, keepdims=True)) @ product
    return product


def as_fractions(row: np.ndarray, denominator: int) -> list[Fraction]:
    return [Fraction(round(value * denominator), denominator) for value in row]


def test_uniform_bidirectional_attention_gives_the_closed_form() -> None:
    row = rollout(layers_of(*[np.full((4, 4), 0.25)] * 3), one_hot(3, 4))[0]
    np.testing.assert_allclose(row, [7 / 32, 7 / 32, 7 / 32, 11 / 32], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(1, [(1, 8), (1, 8), (1, 8), (5, 8)]), (2, [(49, 192), (37, 192), (31, 192), (75, 192)])],
)
def test_uniform_causal_attention_gives_exact_fractions(layers: int, expected: list[tuple[int, int]]) -> None:
    allowed = np.tril(np.ones((4, 4), dtype=bool))
    uniform = allowed / allowed.sum(axis=1, keepdims=True)
    fractions = [Fraction(*pair) for pair in expected]
    assert as_fractions(rollout(layers_of(*[uniform] * layers), one_hot(3, 4))[0], 192) == fractions
    assert as_fractions(uninformative(allowed, layers, one_hot(3, 4)), 192) == fractions


def test_uninformed_causal_attention_lights_up_the_first_tokens_and_the_correction_removes_it() -> None:
    allowed = np.tril(np.ones((196, 196), dtype=bool))
    uniform = allowed / allowed.sum(axis=1, keepdims=True)
    row = rollout(layers_of(*[uniform] * 12), one_hot(195, 196))
    assert row[0, 0] == pytest.approx(0.480, abs=5e-4)
    assert row[0, :20].sum() == pytest.approx(0.914, abs=5e-4)
    assert row[0, -1] == pytest.approx(0.00026, abs=5e-6)
    np.testing.assert_allclose(corrected(row, uninformative(allowed, 12, one_hot(195, 196))), 1.0, atol=1e-9)


def test_the_last_layer_is_the_first_one_walked_through() -> None:
    first = [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    second = [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    np.testing.assert_allclose(rollout(layers_of(first, second), one_hot(2, 3))[0], [0.25, 0.25, 0.5], atol=1e-15)
    np.testing.assert_allclose(rollout(layers_of(second, first), one_hot(2, 3))[0], [0.0, 0.5, 0.5], atol=1e-15)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 5),
    residual=st.floats(0.0, 0.9),
    fuse=st.sampled_from(["mean", "max", "min"]),
)
def test_row_form_is_the_matrix_product_and_every_row_sums_to_one(
    seed: int, layers: int, residual: float, fuse: str
) -> None:
    rng = np.random.default_rng(seed)
    weights = random_attention(rng, layers, batch=2, heads=3, tokens=5)
    readout = rng.dirichlet(np.ones(5))
    row = rollout(weights, readout, residual=residual, head_fusion=fuse)
    np.testing.assert_allclose(row, readout @ matrix_rollout(weights, residual, fuse), atol=1e-9)
    np.testing.assert_allclose(row.sum(axis=1), 1.0, atol=1e-12)


def test_a_dropped_sink_column_is_renormalised() -> None:
    weights = random_attention(np.random.default_rng(0), 4, batch=2, heads=2, tokens=6)
    sunk = [0.3 * layer for layer in weights]
    row = rollout(sunk, one_hot(0, 6))
    np.testing.assert_allclose(row.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(row, matrix_rollout(sunk, 0.5, "mean")[:, 0], atol=1e-12)


def test_start_layer_leaves_out_the_first_layers() -> None:
    weights = random_attention(np.random.default_rng(1), 4, batch=1, heads=2, tokens=5)
    expected = rollout(weights[2:], one_hot(0, 5))
    np.testing.assert_array_equal(rollout(weights, one_hot(0, 5), start_layer=2), expected)


def test_layers_in_another_order_give_another_rollout() -> None:
    weights = random_attention(np.random.default_rng(5), 4, batch=1, heads=2, tokens=6)
    assert np.abs(rollout(weights, one_hot(0, 6)) - rollout(weights[::-1], one_hot(0, 6))).max() > 1e-3


def discarded(matrix: np.ndarray, share: float) -> np.ndarray:
    """The smallest weights between different tokens, one after the other, as long as the row's largest is spared."""
    tokens = len(matrix)
    places = [(row, column) for row in range(tokens) for column in range(tokens) if row != column]
    largest = {row: max((c for c in range(tokens) if c != row), key=lambda c: matrix[row, c]) for row in range(tokens)}
    left = int(share * sum(matrix[place] > 0 for place in places))
    result = matrix.copy()
    for row, column in sorted(places, key=lambda place: matrix[place]):
        if left and matrix[row, column] > 0 and column != largest[row]:
            result[row, column] = 0.0
            left -= 1
    return result


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 0.99), causal=st.booleans())
def test_discarding_drops_the_smallest_weights_and_rows_still_sum_to_one(seed: int, share: float, causal: bool) -> None:
    weights = random_attention(np.random.default_rng(seed), 3, batch=2, heads=2, tokens=5)
    if causal:
        weights = [layer.tril() for layer in weights]
    row = rollout(weights, one_hot(4, 5), discard=share)
    kept = [np.stack([discarded(image, share) for image in layer.mean(dim=1).numpy()]) for layer in weights]
    left = [torch.as_tensor(layer)[:, None] for layer in kept]
    np.testing.assert_allclose(row, matrix_rollout(left, 0.5, "mean")[:, 4], atol=1e-9)
    np.testing.assert_allclose(row.sum(axis=1), 1.0, atol=1e-12)


def test_discarding_nearly_everything_leaves_each_token_its_own_and_its_largest_weight() -> None:
    attention = np.array([[0.1, 0.5, 0.4], [0.3, 0.1, 0.6], [0.2, 0.7, 0.1]])
    row = rollout(layers_of(attention), one_hot(2, 3), discard=0.99)[0]
    np.testing.assert_allclose(row, [0.0, 0.35 / 0.9, 0.55 / 0.9], atol=1e-15)
    np.testing.assert_allclose(rollout(layers_of(attention), one_hot(2, 3), discard=0.0)[0], [0.1, 0.35, 0.55])


def test_half_precision_weights_are_multiplied_in_double() -> None:
    weights = random_attention(np.random.default_rng(2), 6, batch=2, heads=2, tokens=8)
    halved = [layer.to(torch.bfloat16) for layer in weights]
    row = rollout(halved, one_hot(0, 8))
    np.testing.assert_allclose(row, rollout([layer.double() for layer in halved], one_hot(0, 8)), atol=1e-7)
    np.testing.assert_allclose(row.sum(axis=1), 1.0, atol=1e-12)


def test_a_batch_gives_what_each_case_gives_alone() -> None:
    weights = random_attention(np.random.default_rng(3), 3, batch=4, heads=2, tokens=5)
    alone = [rollout([layer[case : case + 1] for layer in weights], one_hot(1, 5))[0] for case in range(4)]
    np.testing.assert_allclose(rollout(weights, one_hot(1, 5)), alone, atol=1e-15)


def test_an_informative_token_stands_out_after_the_correction() -> None:
    allowed = np.tril(np.ones((20, 20), dtype=bool))
    uniform = allowed / allowed.sum(axis=1, keepdims=True)
    looking = uniform.copy()
    looking[19] = one_hot(12, 20)
    readout = one_hot(19, 20)
    ratio = corrected(rollout(layers_of(*[looking] * 2), readout), uninformative(allowed, 2, readout))[0]
    assert ratio.argmax() == 12
    assert ratio[12] > 3.0


def test_an_unreachable_token_counts_as_one_and_reaching_it_is_an_error() -> None:
    allowed = np.tril(np.ones((4, 4), dtype=bool))
    readout = one_hot(1, 4)
    uniform = allowed / allowed.sum(axis=1, keepdims=True)
    reference = uninformative(allowed, 2, readout)
    np.testing.assert_allclose(corrected(rollout(layers_of(uniform, uniform), readout), reference), 1.0)
    with pytest.raises(ModelError, match=r"unreachable holds 0\.22 of the rollout"):
        corrected(np.array([[0.2, 0.58, 0.22, 0.0]]), reference)


def test_image_mass_is_the_share_on_image_tokens() -> None:
    np.testing.assert_allclose(image_mass(np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([1, 3])), [0.6])


def test_token_values_are_painted_on_their_boxes() -> None:
    boxes = np.array([[0, 0, 2, 1], [2, 0, 4, 1], [1, 0, 3, 1]])
    painted = to_pixels(np.array([[1.0, 2.0, 4.0]]), boxes, height=2, width=4)
    np.testing.assert_array_equal(painted, [[[1.0, 2.5, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]])


def test_no_attention_weights_is_an_error_that_says_why() -> None:
    with pytest.raises(ModelError, match="no attention weights: load it with eager attention"):
        rollout([], one_hot(0, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_layer": 2}, "found start_layer = 2: the model has layers 0 to 1"),
        ({"residual": 1.0}, "found residual = 1.0"),
        ({"discard": 1.0}, "found discard = 1.0: the share of weights set to zero must be from 0 to below 1"),
        ({"head_fusion": "median"}, "found head_fusion = 'median'"),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rollout(layers_of(np.eye(3), np.eye(3)), one_hot(0, 3), **options)


@pytest.mark.parametrize(
    ("weights", "readout", "message"),
    [
        ([torch.full((1, 1, 3, 3), torch.nan)], one_hot(0, 3), "layer 0 holds negative or non-finite"),
        ([torch.full((1, 1, 3, 3), -1.0)], one_hot(0, 3), "layer 0 holds negative or non-finite"),
        ([torch.ones(1, 3, 3)], one_hot(0, 3), r"layer 0 has shape \(1, 3, 3\)"),
        (
            [torch.ones(1, 1, 3, 3), torch.ones(1, 1, 4, 4)],
            one_hot(0, 3),
            "layer 1 has 1 images of 4 tokens but another layer 1 of 3",
        ),
        ([torch.ones(1, 1, 3, 3)], np.array([0.5, 0.2, 0.2]), "sums to 0.9 for 3 tokens"),
        ([torch.ones(1, 1, 3, 3)], one_hot(0, 4), r"shape \(4,\)"),
    ],
)
def test_unusable_attention_is_an_error(weights: list[torch.Tensor], readout: np.ndarray, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        rollout(weights, readout)


@pytest.mark.parametrize(
    ("fuse", "heads"), [("max", (-0.5, 0.7)), ("min", (torch.inf, 0.7)), ("mean", (torch.inf, -torch.inf))]
)
def test_no_head_fusion_hides_weights_that_no_softmax_made(fuse: str, heads: tuple[float, float]) -> None:
    layer = torch.tensor(heads)[None, :, None, None].expand(1, 2, 3, 3)
    with pytest.raises(ModelError, match="negative or non-finite"):
        rollout([layer], one_hot(0, 3), head_fusion=fuse)


def test_a_token_that_attends_to_nothing_needs_a_residual() -> None:
    nothing = np.array([[0.0, 0.0], [0.5, 0.5]])
    np.testing.assert_allclose(rollout(layers_of(nothing), one_hot(0, 2)), [[1.0, 0.0]])
    with pytest.raises(ModelError, match="raise residual above 0"):
        rollout(layers_of(nothing), one_hot(0, 2), residual=0.0)


def test_the_reference_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ConfigError, match="found layers = 0"):
        uninformative(np.ones((2, 2), dtype=bool), 0, one_hot(0, 2))
    with pytest.raises(ModelError, match=r"mask has shape \(2, 3\)"):
        uninformative(np.ones((2, 3), dtype=bool), 1, one_hot(0, 2))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (np.array([[0, 0, 2, 2]]), "found 2 token values but boxes"),
        (np.array([[0, 0, 2, 2], [2, 0, 5, 2]]), "image token 1"),
        (np.array([[0, 0, 2, 2], [1, 1, 1, 2]]), "image token 1"),
    ],
)
def test_boxes_that_do_not_fit_are_an_error(boxes: np.ndarray, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        to_pixels(np.ones((1, 2)), boxes, height=2, width=4)
