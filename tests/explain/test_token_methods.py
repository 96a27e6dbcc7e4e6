"""Token methods on a model whose score can be written down, on real bodies against other routes, and where refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from tests.methods.one_layer import OneLayer, images_of
from tests.models.builders import RGB, VISION, WITHOUT_MAP, seeded
from xvision.errors import DataError
from xvision.explain.catalogue import units_of
from xvision.explain.method import Asked, Settings
from xvision.explain.token_methods import METHODS, needs_tokens, token_integral
from xvision.methods.target import log_odds
from xvision.methods.token_attribution import image_share, text_attribution, token_evaluator
from xvision.models.huggingface import HuggingFaceClassifier, adapt, preprocessing_of
from xvision.models.llm.classifier import preset

BY_NAME = {method.name: method for method in METHODS}
INTEGRAL, ABLATION = BY_NAME["embedding_integrated_gradients"], BY_NAME["token_ablation"]
MEANS = [[0.2, 0.9, 0.4, 0.6], [0.5, 0.1, 0.8, 0.3]]
ONES = torch.ones(2, dtype=torch.long)
TEXT = "fever and cough"


def asked(model: object, pixels: torch.Tensor, targets: torch.Tensor = ONES, **options: object) -> Asked:
    settings = Settings(**{"baseline": "mean", **options})
    return Asked(model, pixels, targets, tuple(range(len(pixels))), units_of(model), settings)


def language_model(name: str, attention: str, readout: str = "last") -> HuggingFaceClassifier:
    module = preset(
        name, image_size=16, patch_size=4, attention=attention, readout=readout, text_tokens=4, texts=[TEXT], seed=0
    )
    with torch.no_grad():
        module.classifier.weight.mul_(10.0)
    return adapt(module, preprocessing_of(module.config), source="x")


@pytest.fixture(scope="module")
def bodies() -> dict[str, HuggingFaceClassifier]:
    return {
        "qwen3": language_model("tiny-qwen3", "causal").with_text([TEXT]),
        "gpt2": language_model("tiny-gpt2", "causal").with_text([TEXT]),
        "bert": language_model("tiny-bert", "bidirectional").with_text([TEXT]),
        "without text": language_model("tiny-llama", "bidirectional"),
        "pooled": language_model("tiny-qwen3", "bidirectional", readout="mean"),
        "vit": adapt(seeded(VISION["vit"]), RGB, source="x"),
    }


def pixels_for(model: HuggingFaceClassifier, batch: int = 2) -> torch.Tensor:
    spec = model.input
    size = (batch, spec.channels, spec.height, spec.width)
    return torch.rand(size, generator=torch.Generator().manual_seed(0))


def test_the_integral_of_a_linear_score_falls_on_the_patches_it_came_from() -> None:
    model = OneLayer(words=(0.5, -0.1), sharpness=0.0)
    question = asked(model, images_of(MEANS), baseline="black", steps=1)
    found = INTEGRAL.run(question)
    np.testing.assert_allclose(question.units.sums(found.values), 2 / 7 * np.array(MEANS), atol=1e-6)
    np.testing.assert_allclose(found.difference, 2 / 7 * np.array(MEANS).sum(axis=1), atol=1e-6)
    assert found.gap.max() < 1e-5
    share = image_share(token_integral(question).values, model.token_map)
    np.testing.assert_allclose(share["image"], [2.1 / 2.7, 1.7 / 2.3], atol=1e-6)
    np.testing.assert_allclose(share["text"], [0.6 / 2.7, 0.6 / 2.3], atol=1e-6)
    np.testing.assert_array_equal(share["readout"], 0.0)


def test_an_image_that_is_its_own_baseline_gets_nothing_and_its_words_all() -> None:
    model = OneLayer(words=(0.5, -0.1), sharpness=0.0)
    flat = images_of([[0.4] * 4, [0.4] * 4])
    np.testing.assert_allclose(INTEGRAL.run(asked(model, flat)).values, 0.0, atol=1e-7)
    np.testing.assert_allclose(
        image_share(token_integral(asked(model, flat)).values, model.token_map)["text"], 1.0, atol=1e-6
    )


@pytest.mark.parametrize("body", ["qwen3", "gpt2", "bert", "without text", "pooled", "vit"])
def test_the_integral_agrees_with_captum_and_sums_to_the_difference(
    bodies: dict[str, HuggingFaceClassifier], body: str
) -> None:
    model = bodies[body]
    question = asked(model, pixels_for(model))
    found = token_integral(question)
    tokens = model.embedded(question.pixels).detach()
    start = model.embedded(question.pixels.mean(dim=(2, 3), keepdim=True).expand_as(question.pixels)).detach()
    words = torch.as_tensor(np.array(model.token_map.names) == "text")
    if words.any():
        start[:, words] = tokens[:, words].mean(dim=1, keepdim=True)
    peer = IntegratedGradients(lambda given: log_odds(model.from_embedded(given), ONES.repeat(len(given) // 2)))
    expected = peer.attribute(tokens, start, n_steps=32).sum(dim=2).numpy()
    np.testing.assert_allclose(found.values, expected, atol=1e-5 * np.abs(expected).max())
    assert found.gap.max() < 1e-3
    assert np.abs(found.values[:, words.numpy()]).sum() > 0 or not words.any()


def scores_with_keys_masked(model: HuggingFaceClassifier, pixels: torch.Tensor, kept: np.ndarray) -> np.ndarray:
    """Nothing attends to the tokens that are left out: for the read-out at the end the same as that they are gone."""
    module, present = model.module, torch.as_tensor(kept).long()
    place = {}
    if type(module.backbone).__name__ != "BertModel":
        place = {"position_ids": torch.arange(kept.shape[1]).expand(len(kept), -1)}
    normalised = model.preprocessing.normalise(pixels)
    text = model._text if model._text is None else model._text.expand(len(pixels), -1)
    with torch.no_grad():
        tokens = module._tokens(normalised, text)
        hidden = module.backbone(inputs_embeds=tokens, attention_mask=present, **place).last_hidden_state
        logits = module.classifier(module.cls_norm(hidden[:, -1]))
    return log_odds(logits, torch.ones(len(pixels), dtype=torch.long)).double().numpy()


@pytest.mark.parametrize("body", ["qwen3", "gpt2", "bert", "without text"])
def test_a_token_that_is_gone_is_a_token_that_nothing_attends_to(
    bodies: dict[str, HuggingFaceClassifier], body: str
) -> None:
    model = bodies[body]
    pixels = pixels_for(model)
    image = model.token_map.image
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, size=7)
    removed = rng.random((7, len(image))) < np.linspace(0.0, 1.0, 7)[:, None]
    removed[0], removed[-1] = False, True
    kept = np.ones((7, len(model.token_map.names)), dtype=bool)
    kept[:, image] = ~removed
    scores = token_evaluator(model, pixels, ONES, batch=3)(rows, removed)
    np.testing.assert_allclose(scores, scores_with_keys_masked(model, pixels[rows], kept), atol=1e-4)
    plain = log_odds(model.logits(pixels[rows[:1]]), ONES[:1]).detach().numpy()
    np.testing.assert_allclose(scores[0], plain[0], atol=1e-4)


def test_words_left_out_are_words_that_nothing_attends_to(bodies: dict[str, HuggingFaceClassifier]) -> None:
    model = bodies["qwen3"]
    pixels = pixels_for(model)
    found = text_attribution(model, pixels, ONES)
    assert found.shape == (2, len(model.words)) == (2, 3)
    everything = np.ones((2, len(model.token_map.names)), dtype=bool)
    whole = scores_with_keys_masked(model, pixels, everything)
    for word, place in enumerate(np.flatnonzero(np.array(model.token_map.names) == "text")):
        kept = everything.copy()
        kept[:, place] = False
        np.testing.assert_allclose(found[:, word], whole - scores_with_keys_masked(model, pixels, kept), atol=1e-4)


@pytest.mark.parametrize("body", ["qwen3", "bert", "vit"])
def test_token_ablation_asks_the_evaluator_and_paints_what_patches_add_up_to(
    bodies: dict[str, HuggingFaceClassifier], body: str
) -> None:
    model = bodies[body]
    question = asked(model, pixels_for(model), batch=5)
    count = len(model.token_map.image)
    evaluate = token_evaluator(model, question.pixels, ONES)
    found = question.units.sums(ABLATION.run(question).values)
    for row in range(2):
        whole = evaluate(np.array([row]), np.zeros((1, count), dtype=bool))
        without = evaluate(np.full(count, row), np.eye(count, dtype=bool))
        np.testing.assert_allclose(found[row], whole - without, atol=1e-4)
    assert np.abs(found).max() > 1e-3


def test_a_patch_that_alone_decides_is_found_by_both_methods() -> None:
    model = OneLayer(sharpness=8.0)
    means = [[0.1, 0.1, 0.9, 0.1], [0.9, 0.1, 0.1, 0.1]]
    for method in METHODS:
        question = asked(model, images_of(means), baseline="black")
        assert question.units.sums(method.run(question).values).argmax(axis=1).tolist() == [2, 0]


def test_neither_neighbours_nor_parts_nor_the_call_itself_change_anything(
    bodies: dict[str, HuggingFaceClassifier],
) -> None:
    model = bodies["qwen3"]
    pixels = pixels_for(model, 3)
    targets = torch.tensor([0, 1, 1])
    before = model.logits(pixels).detach()
    for method in METHODS:
        values = method.run(asked(model, pixels, targets)).values
        alone = method.run(asked(model, pixels[2:], targets[2:], batch=4)).values
        np.testing.assert_allclose(alone[0], values[2], atol=2e-5 * np.abs(values).max())
    torch.testing.assert_close(model.logits(pixels).detach(), before, rtol=0, atol=0)
    assert all(weights.grad is None and not weights.requires_grad for weights in model.module.parameters())


def test_what_does_not_fit_is_refused_with_what_does(bodies: dict[str, HuggingFaceClassifier]) -> None:
    swin = adapt(seeded(WITHOUT_MAP["swin"]), RGB, source="x")
    assert (
        INTEGRAL.refuse(swin)
        == ABLATION.refuse(swin)
        == (
            "SwinForImageClassification has no tokens that map to image patches: windowed, hybrid and convolutional models "
            "have none; use integrated_gradients or patch_ablation"
        )
    )
    pooled = ABLATION.refuse(bodies["pooled"])
    assert pooled is not None
    assert pooled.startswith("the head reads the mean of the image tokens")
    assert INTEGRAL.refuse(bodies["pooled"]) is None
    closed = OneLayer(access="black-box")
    assert ABLATION.refuse(closed) is None
    assert str(INTEGRAL.refuse(closed)).startswith("OneLayer gives no gradients")
    for body in ("qwen3", "gpt2", "bert", "vit"):
        assert INTEGRAL.refuse(bodies[body]) is None
        assert ABLATION.refuse(bodies[body]) is None


class AttentionOnly:
    """A model whose attention can be read but whose tokens cannot be changed."""

    access = "white-box"
    token_map = OneLayer().token_map
    description = {"architecture": "AttentionOnly"}  # noqa: RUF012  # as a model's property reads


def test_attention_alone_is_not_enough() -> None:
    assert needs_tokens(AttentionOnly()) == (
        "the tokens of AttentionOnly cannot be changed before its first layer: use integrated_gradients or patch_ablation"
    )


def test_a_baseline_from_the_data_needs_the_data() -> None:
    with pytest.raises(DataError, match="data mean"):
        INTEGRAL.run(asked(OneLayer(), images_of(MEANS), baseline="data mean"))
    question = asked(OneLayer(sharpness=0.0), images_of(MEANS), baseline="data mean", steps=1)
    found = INTEGRAL.run(replace(question, references=images_of([[0.0, 0.5, 0.2, 0.2], [0.4, 0.1, 0.2, 0.4]])))
    way = np.array(MEANS) - [0.2, 0.3, 0.2, 0.3]
    np.testing.assert_allclose(question.units.sums(found.values), 2 / 5 * way, atol=1e-6)
