"""Gradient methods as the catalogue offers them: they are the functions of the same name, with the settings asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.explain.small_classifiers import Network, Scores, asked, images, language_model, vision_transformer
from xvision.errors import DataError
from xvision.explain.gradient_methods import METHODS
from xvision.explain.method import Settings
from xvision.methods.attribution import input_x_gradient, integrated_gradients, saliency
from xvision.methods.sampled_gradients import expected_gradients, smooth_grad, var_grad

NAMED = {method.name: method for method in METHODS}
SETTINGS = Settings(baseline="mean", steps=5, samples=4, noise=0.2, batch=3)
MODEL = Network()
PIXELS = images(MODEL)
REFERENCES = 1.0 - PIXELS
TARGETS = (0, 2, 1)
SEEDS = (20, 21, 22)


def run(name: str, settings: Settings = SETTINGS) -> np.ndarray:
    return NAMED[name].run(asked(MODEL, PIXELS, TARGETS, references=REFERENCES, settings=settings)).values


def test_each_method_is_the_function_of_its_name_with_the_settings_asked_for() -> None:
    chosen = torch.tensor(TARGETS)
    expected = {
        "saliency": saliency(MODEL.logits, PIXELS, chosen),
        "integrated_gradients": integrated_gradients(MODEL.logits, PIXELS, chosen, baseline="mean", steps=5),
        "input_x_gradient": input_x_gradient(MODEL.logits, PIXELS, chosen),
        "expected_gradients": expected_gradients(
            MODEL.logits, PIXELS, chosen, references=REFERENCES, seeds=SEEDS, samples=4
        ),
        "smooth_grad": smooth_grad(MODEL.logits, PIXELS, chosen, seeds=SEEDS, noise=0.2, samples=4),
        "var_grad": var_grad(MODEL.logits, PIXELS, chosen, seeds=SEEDS, noise=0.2, samples=4),
    }
    assert expected.keys() == NAMED.keys()
    for name, attribution in expected.items():
        found = NAMED[name].run(asked(MODEL, PIXELS, TARGETS, references=REFERENCES, settings=SETTINGS))
        np.testing.assert_allclose(found.values, attribution.maps, rtol=1e-4, atol=1e-6, err_msg=name)
        assert found.values.dtype == np.float32
        assert (found.gap is None) == (name not in ("integrated_gradients", "expected_gradients"))
        assert (found.difference is None) == (found.gap is None)
        if not NAMED[name].signed:
            assert (found.values >= 0).all()


def test_integrated_gradients_start_at_the_mean_of_the_references_where_asked() -> None:
    settings = replace(SETTINGS, baseline="data mean")
    found = NAMED["integrated_gradients"].run(asked(MODEL, PIXELS, TARGETS, references=REFERENCES, settings=settings))
    expected = integrated_gradients(
        MODEL.logits, PIXELS, torch.tensor(TARGETS), baseline="data mean", references=REFERENCES, steps=5
    )
    np.testing.assert_allclose(found.values, expected.maps, rtol=1e-4, atol=1e-6)
    assert np.abs(found.values - run("integrated_gradients")).max() > 1e-4
    with pytest.raises(DataError, match='"data mean" needs reference images'):
        NAMED["integrated_gradients"].run(asked(MODEL, PIXELS, TARGETS, settings=settings))


def test_expected_gradients_without_references_say_so() -> None:
    with pytest.raises(
        DataError, match="Network was asked about without any: give references, or use integrated_gradients"
    ):
        NAMED["expected_gradients"].run(asked(MODEL, PIXELS, TARGETS))


@pytest.mark.parametrize("name", sorted(NAMED))
def test_black_boxes_are_refused_with_what_to_use_instead(name: str) -> None:
    assert NAMED[name].refuse(Scores()) == "Scores gives no gradients: use patch_ablation, kernel_shap or rise"
    assert NAMED[name].refuse(MODEL) is None
    assert NAMED[name].refuse(language_model()) is None


def test_two_are_taken_when_nobody_names_any() -> None:
    assert {name: method.chosen for name, method in NAMED.items() if method.chosen is not None} == {
        "integrated_gradients": 10,
        "saliency": 20,
    }


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_transformer_is_explained_and_left_as_it_was(name: str) -> None:
    model = vision_transformer()
    pixels = images(model, 2)
    found = NAMED[name].run(asked(model, pixels, (0, 1), references=1.0 - pixels, settings=SETTINGS))
    assert found.values.shape == (2, 64, 64)
    assert np.isfinite(found.values).all()
    assert found.values.any()
    assert not any(weights.requires_grad or weights.grad is not None for weights in model.module.parameters())
