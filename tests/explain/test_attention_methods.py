"""Attention methods on a model whose attention can be written down, on real bodies, and where they must be refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.methods.one_layer import OneLayer, images_of, shares
from tests.models.builders import RGB, VISION, WITHOUT_MAP, seeded
from xvision.errors import ModelError
from xvision.explain.attention_methods import METHODS, TOKEN_VALUES, needs_attention
from xvision.explain.catalogue import units_of
from xvision.explain.method import Asked, Method, Settings
from xvision.methods.rollout import rollout, uninformative
from xvision.methods.target import log_odds
from xvision.models.huggingface import HuggingFaceClassifier, adapt, preprocessing_of
from xvision.models.llm.classifier import preset

BY_NAME = {method.name: method for method in METHODS}
MEANS = [[0.2, 0.9, 0.4, 0.6], [0.5, 0.1, 0.8, 0.3]]
SECOND = torch.ones(2, dtype=torch.long)
GRADIENT = ("gradient_rollout", "chefer", "gradient_attention", "legrad")


def asked(model: object, pixels: torch.Tensor, targets: torch.Tensor, **options: object) -> Asked:
    return Asked(model, pixels, targets, tuple(range(len(pixels))), units_of(model), Settings(**options))


def on_patches(name: str, model: OneLayer, targets: torch.Tensor = SECOND, **options: object) -> np.ndarray:
    """The method's map, one value per patch."""
    question = asked(model, images_of(MEANS), targets, **options)
    values = BY_NAME[name].run(question).values
    assert values.shape == (2, 4, 4)
    assert values.dtype == np.float32
    return question.units.sums(values) / question.units.areas


@pytest.fixture(scope="module")
def bodies() -> dict[str, HuggingFaceClassifier]:
    causal = preset("tiny-qwen3", image_size=16, patch_size=4, text_tokens=4, texts=["fever and cough"], seed=0)
    both = preset("tiny-bert", image_size=16, patch_size=4, attention="bidirectional", readout="mean", seed=1)
    return {
        "causal": adapt(causal, preprocessing_of(causal.config), source="x"),
        "with text": adapt(causal, preprocessing_of(causal.config), source="x").with_text(["fever and cough"]),
        "pooled": adapt(both, preprocessing_of(both.config), source="x"),
        "vit": adapt(seeded(VISION["vit"]), RGB, source="x"),
        "registers": adapt(seeded(VISION["dinov2-registers"]), RGB, source="x"),
    }


def pixels_for(model: HuggingFaceClassifier, batch: int = 2) -> torch.Tensor:
    spec = model.input
    size = (batch, spec.channels, spec.height, spec.width)
    return torch.rand(size, generator=torch.Generator().manual_seed(0))


def test_one_layer_gives_each_method_its_closed_form() -> None:
    model = OneLayer(sharpness=3.0)
    for row, means in enumerate(MEANS):
        given = shares([*means, 0.0], 3.0)
        image, own = given[:4], given[4]
        slope = 2.0 * np.array(means)
        np.testing.assert_allclose(on_patches("raw_attention", model)[row], image, atol=1e-6)
        np.testing.assert_allclose(on_patches("attention_rollout", model)[row], image / 2, atol=1e-6)
        np.testing.assert_allclose(on_patches("attention_rollout", model, residual=0.2)[row], 0.8 * image, atol=1e-6)
        np.testing.assert_allclose(on_patches("corrected_rollout", model)[row], 5 * image, rtol=1e-5)
        np.testing.assert_allclose(on_patches("chefer", model)[row], slope * image, rtol=1e-5)
        np.testing.assert_allclose(on_patches("gradient_attention", model)[row], slope * image, rtol=1e-5)
        np.testing.assert_allclose(on_patches("legrad", model)[row], slope / 5, rtol=1e-5)
        rolled = slope * image / (1 + (slope * image).sum())
        np.testing.assert_allclose(on_patches("gradient_rollout", model)[row], rolled, rtol=1e-5)
        assert 0 < own < 1
        slow = 0.8 * slope * image / (0.2 + 0.8 * (slope * image).sum())
        np.testing.assert_allclose(on_patches("gradient_rollout", model, residual=0.2)[row], slow, rtol=1e-5)


def test_the_other_class_has_nothing_to_show_where_every_patch_speaks_against_it() -> None:
    first = torch.zeros(2, dtype=torch.long)
    for name in ("chefer", "gradient_attention", "legrad", "gradient_rollout"):
        np.testing.assert_array_equal(on_patches(name, OneLayer(), first), 0.0)
    for name in ("raw_attention", "attention_rollout", "corrected_rollout"):
        np.testing.assert_array_equal(on_patches(name, OneLayer(), first), on_patches(name, OneLayer()))


def test_a_score_three_times_as_steep_gives_maps_three_times_as_strong() -> None:
    for name in ("chefer", "gradient_attention", "legrad"):
        np.testing.assert_allclose(
            on_patches(name, OneLayer(gain=6.0)), 3 * on_patches(name, OneLayer(gain=2.0)), rtol=1e-5
        )


def test_words_take_their_share_before_the_image_gets_its_map() -> None:
    model = OneLayer(words=(0.5, -0.5))
    given = shares([0.0, 0.0, *MEANS[0], 0.0])
    values = TOKEN_VALUES["chefer"](asked(model, images_of(MEANS), SECOND))
    np.testing.assert_allclose(values[0], 2 * given * [0.5, 0, *MEANS[0], 0], atol=1e-6)
    np.testing.assert_allclose(on_patches("chefer", model), values[:, 2:6], rtol=1e-6)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_settings_reach_rollout_and_its_reference(bodies: dict[str, HuggingFaceClassifier], fusion: str) -> None:
    model = bodies["vit"]
    pixels = pixels_for(model)
    found = model.attention(pixels)
    tokens = found.tokens
    options = {"residual": 0.3, "head_fusion": fusion}
    expected = rollout(found.weights, tokens.readout, **options)
    question = asked(model, pixels, SECOND, **options)
    np.testing.assert_allclose(TOKEN_VALUES["attention_rollout"](question), expected, atol=1e-7)
    reference = uninformative(tokens.allowed, 2, tokens.readout, residual=0.3)
    np.testing.assert_allclose(TOKEN_VALUES["corrected_rollout"](question), expected / reference, rtol=1e-5)
    last = getattr(found.weights[-1][:, :, 0].detach().numpy(), fusion)(axis=1)
    np.testing.assert_allclose(TOKEN_VALUES["raw_attention"](question), last, atol=1e-6)


def by_matrices(model: HuggingFaceClassifier, pixels: torch.Tensor, target: int) -> tuple[np.ndarray, ...]:
    """Chefer relevance and LeGrad of one image at a time, by whole matrices and one gradient after the other."""
    relevance, legrad = [], []
    for one in pixels.split(1):
        found = model.attention(one)
        product = torch.eye(found.weights[0].shape[-1], dtype=torch.float64)
        logits = found.logits[0]
        score = logits[target] - torch.cat((logits[:target], logits[target + 1 :])).logsumexp(dim=0)
        for layer in found.weights:
            slope = torch.autograd.grad(score, layer, retain_graph=True)[0]
            product = product + (slope * layer)[0].double().relu().mean(dim=0) @ product
        readout = torch.as_tensor(found.tokens.readout)
        relevance.append((readout @ product - readout).detach().numpy())
        mask = torch.as_tensor(found.tokens.allowed)
        per_layer = []
        for layer, states in zip(found.weights, found.hidden, strict=True):
            own = log_odds(model.read_out(states), torch.tensor([target]))[0]
            slope = torch.autograd.grad(own, layer, retain_graph=True)[0][0]
            per_layer.append((slope.relu() * mask).mean(dim=(0, 1)))
        legrad.append(torch.stack(per_layer).mean(dim=0).numpy())
    return np.stack(relevance), np.stack(legrad)


@pytest.mark.parametrize("body", ["causal", "with text", "pooled", "vit", "registers"])
def test_real_bodies_agree_with_whole_matrices_image_by_image(
    bodies: dict[str, HuggingFaceClassifier], body: str
) -> None:
    model = bodies[body]
    pixels = pixels_for(model, 3)
    relevance, legrad = by_matrices(model, pixels, 1)
    question = asked(model, pixels, torch.ones(3, dtype=torch.long), batch=2)
    for name, expected in (("chefer", relevance), ("legrad", legrad)):
        values = TOKEN_VALUES[name](question)
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(values, expected, atol=1e-5 * np.abs(expected).max())
    last = model.attention(pixels)
    torch.testing.assert_close(model.read_out(last.hidden[-1]), last.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("body", ["causal", "with text", "pooled", "vit", "registers"])
def test_maps_are_finite_not_negative_and_the_same_in_any_batch(
    bodies: dict[str, HuggingFaceClassifier], body: str
) -> None:
    model = bodies[body]
    pixels = pixels_for(model, 3)
    targets = torch.tensor([0, 1, 1])
    before = [weights.clone() for weights in model.module.parameters()], model.module.config._attn_implementation
    for method in METHODS:
        if method.refuse(model):
            continue
        values = method.run(asked(model, pixels, targets)).values
        assert values.shape == (3, *pixels.shape[2:])
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        alone = method.run(asked(model, pixels[1:2], targets[1:2])).values[0]
        np.testing.assert_allclose(values[1], alone, atol=1e-5 * max(alone.max(), 1e-9))
        cut = method.run(asked(model, pixels, targets, batch=1)).values
        np.testing.assert_allclose(values, cut, atol=1e-5 * values.max())
    assert all(bool((old == new).all()) for old, new in zip(before[0], model.module.parameters(), strict=True))
    assert all(weights.grad is None and not weights.requires_grad for weights in model.module.parameters())
    assert model.module.config._attn_implementation == before[1]


def test_plain_rollout_is_refused_where_tokens_see_only_what_came_before(
    bodies: dict[str, HuggingFaceClassifier],
) -> None:
    refuse = BY_NAME["attention_rollout"].refuse
    reason = refuse(bodies["causal"])
    assert reason is not None
    assert "attends to earlier tokens only, so rollout lights up the top of every image" in reason
    assert reason.endswith("use corrected_rollout")
    for body in ("pooled", "vit", "registers"):
        assert refuse(bodies[body]) is None
    for method in METHODS:
        if method.name != "attention_rollout":
            assert method.refuse(bodies["causal"]) is None


def test_models_without_a_token_map_are_refused_with_what_to_use_instead() -> None:
    model = adapt(seeded(WITHOUT_MAP["swin"]), RGB, source="x")
    for method in METHODS:
        assert method.refuse(model) == (
            "SwinForImageClassification has no attention weights that map to image patches: windowed, hybrid and "
            "convolutional models have none; use integrated_gradients or patch_ablation"
        )


def test_gradient_methods_need_gradients_and_the_others_do_not() -> None:
    closed = OneLayer(access="black-box")
    for method in METHODS:
        reason = method.refuse(closed)
        assert (reason is not None) == (method.name in GRADIENT)
        assert reason is None or reason.startswith("OneLayer gives no gradients")


def test_texts_of_different_lengths_are_a_reason_and_no_crash(bodies: dict[str, HuggingFaceClassifier]) -> None:
    model = bodies["causal"].with_text(["fever", "fever and cough"])
    assert needs_attention(model) == (
        "The bound texts have different lengths: bind one text to read attention or tokens."
    )


class NoHead:
    """A model whose head cannot be put elsewhere."""

    access = "white-box"
    token_map = OneLayer().token_map
    description = {"architecture": "NoHead"}  # noqa: RUF012  # as a model's property reads


def test_legrad_needs_a_head_that_reads_every_layer() -> None:
    reason = BY_NAME["legrad"].refuse(NoHead())
    assert reason == "the head of NoHead cannot be put on a layer in the middle: use chefer"
    assert BY_NAME["chefer"].refuse(NoHead()) is None


class NoStates(OneLayer):
    """Attention without what the layers pass on."""

    def attention(self, pixels: torch.Tensor) -> object:
        return replace(super().attention(pixels), hidden=())


class Detached(OneLayer):
    """Attention that is a copy of what the model used."""

    def attention(self, pixels: torch.Tensor) -> object:
        found = super().attention(pixels)
        return replace(found, weights=tuple(layer.detach().requires_grad_() for layer in found.weights))


def test_what_a_model_fails_to_give_is_named() -> None:
    with pytest.raises(ModelError, match="OneLayer gave the states of 0 of 1 layers: use chefer"):
        on_patches("legrad", NoStates())
    with pytest.raises(ModelError, match="no gradient of the score reaches the attention weights"):
        on_patches("chefer", Detached())
    with pytest.raises(ModelError, match="NaN or infinite"):
        on_patches("chefer", OneLayer(gain=float("nan")))


def test_methods_say_what_their_maps_do_not_mean() -> None:
    assert [method.name for method in METHODS if method.chosen is not None] == ["corrected_rollout", "chefer"]
    assert (BY_NAME["corrected_rollout"].chosen, BY_NAME["chefer"].chosen) == (50, 60)
    assert (BY_NAME["corrected_rollout"].label, BY_NAME["chefer"].label) == ("corrected rollout", "Chefer relevance")
    for method in METHODS:
        assert isinstance(method, Method)
        assert not method.signed
        assert ("whatever class" in method.note) == (method.name not in GRADIENT)
