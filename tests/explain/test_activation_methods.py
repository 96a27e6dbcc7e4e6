"""Class activation maps as the catalogue offers them, and the models they are refused on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.explain.small_classifiers import (
    Network,
    Scores,
    asked,
    images,
    language_model,
    residual_network,
    vision_transformer,
    windowed,
)
from xvision.errors import DataError, ModelError
from xvision.explain.activation_methods import METHODS
from xvision.methods.activation import upsampled
from xvision.methods.rollout import to_pixels
from xvision.methods.target import log_odds
from xvision.models.protocols import Features

NAMED = {method.name: method for method in METHODS}
CAMS = ("grad_cam", "hires_cam", "layer_cam")
MODEL = Network()
PIXELS = images(MODEL)
TARGETS = (0, 2, 1)


def class_activation_maps() -> torch.Tensor:
    """Of the log-odds, whose gradient by the logits is 1 at the target and minus the others' probabilities elsewhere."""
    with torch.no_grad():
        maps, logits = MODEL.stem(PIXELS), MODEL.logits(PIXELS)
    chosen = torch.nn.functional.one_hot(torch.tensor(TARGETS), 3).bool()
    slopes = chosen.float() - logits.masked_fill(chosen, -torch.inf).softmax(dim=1)
    return torch.einsum("bdhw,bk,kd->bhw", maps, slopes, MODEL.head.weight) / maps[0, 0].numel()


def test_maps_of_a_network_with_a_global_mean_are_its_class_activation_maps() -> None:
    found = {name: NAMED[name].run(asked(MODEL, PIXELS, TARGETS)).values for name in CAMS}
    cams = class_activation_maps()
    np.testing.assert_allclose(found["grad_cam"], upsampled(cams.relu(), 6, 8), atol=1e-6)
    np.testing.assert_allclose(found["hires_cam"], upsampled(cams, 6, 8), atol=1e-6)
    assert (found["hires_cam"] < 0).any()
    assert (found["layer_cam"] >= 0).all()
    assert all(values.dtype == np.float32 for values in found.values())


@pytest.mark.parametrize("name", CAMS)
def test_a_batch_gives_what_each_image_gives_alone(name: str) -> None:
    together = NAMED[name].run(asked(MODEL, PIXELS, TARGETS)).values
    for row in range(3):
        alone = NAMED[name].run(asked(MODEL, PIXELS[row : row + 1], TARGETS[row : row + 1])).values
        np.testing.assert_allclose(alone[0], together[row], atol=1e-6)


def test_token_grad_cam_is_worked_out_from_what_the_last_layer_reads() -> None:
    model = vision_transformer()
    pixels, targets = images(model), torch.tensor([0, 1, 1])
    output = model.module(
        pixel_values=model.preprocessing.normalise(pixels.clone().requires_grad_()), output_hidden_states=True
    )
    states = output.hidden_states[2]  # 0 is the embedding, 3 the end
    (gradients,) = torch.autograd.grad(log_odds(output.logits, targets).sum(), states)
    by_hand = torch.einsum("bpd,bd->bp", states[:, 1:], gradients[:, 1:].mean(dim=1)).relu().detach().numpy()
    found = NAMED["token_grad_cam"].run(asked(model, pixels, (0, 1, 1))).values
    np.testing.assert_allclose(found, to_pixels(by_hand, model.token_map.boxes, 64, 64), rtol=1e-4, atol=1e-6)
    assert found.any()


def test_what_the_last_layer_passes_on_says_nothing_of_the_image_tokens_when_one_token_is_read() -> None:
    model = vision_transformer()
    found = model.attention(images(model))
    score = log_odds(found.logits, torch.tensor([0, 1, 1])).sum()
    before, last = torch.autograd.grad(score, (found.hidden[-2], found.hidden[-1]))
    assert not last[:, 1:].any()
    assert before[:, 1:].any(dim=2).all()


def test_token_grad_cam_of_a_language_model() -> None:
    model = language_model()
    pixels = images(model)
    together = NAMED["token_grad_cam"].run(asked(model, pixels, (0, 1, 1))).values
    assert together.shape == (3, 32, 32)
    assert (together >= 0).all()
    assert together.any()
    alone = NAMED["token_grad_cam"].run(asked(model, pixels[1:2], (1,))).values
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-4, atol=1e-7)
    assert not any(weights.requires_grad or weights.grad is not None for weights in model.module.parameters())


def test_a_model_of_one_layer_has_nothing_between_layers() -> None:
    model = vision_transformer(layers=1)
    with pytest.raises(ModelError, match=r"has 1 layer whose states can be read: .* use integrated_gradients"):
        NAMED["token_grad_cam"].run(asked(model, images(model, 1), (0,)))


@pytest.mark.parametrize("name", CAMS)
def test_only_models_with_a_feature_map_have_class_activation_maps(name: str) -> None:
    refuse = NAMED[name].refuse
    assert refuse(MODEL) is None
    assert refuse(Scores()) == "Scores gives no gradients: use patch_ablation, kernel_shap or rise"
    assert str(refuse(vision_transformer())).endswith("has a feature map: use token_grad_cam")
    assert str(refuse(windowed())).endswith("its logits are computed from: use integrated_gradients")


def test_only_models_with_known_tokens_have_token_grad_cam() -> None:
    refuse = NAMED["token_grad_cam"].refuse
    assert refuse(vision_transformer()) is None
    assert refuse(language_model()) is None
    assert refuse(MODEL) == "Network is a convolutional network without tokens: use grad_cam"
    assert str(refuse(windowed())).endswith("have no known place in the image: use integrated_gradients")
    assert refuse(Scores()) == "Scores gives no gradients: use patch_ablation, kernel_shap or rise"


def test_a_residual_network_of_transformers_has_its_class_activation_maps() -> None:
    model = residual_network()
    pixels = images(model)
    with torch.no_grad():
        maps = model.module.resnet(pixel_values=model.preprocessing.normalise(pixels)).last_hidden_state
    weights = model.module.classifier[1].weight
    slopes = (weights[1] - weights[0]) * torch.tensor([[-1.0], [1.0], [1.0]])
    cams = torch.einsum("bdhw,bd->bhw", maps, slopes) / maps[0, 0].numel()
    found = {name: NAMED[name].run(asked(model, pixels, (0, 1, 1))).values for name in CAMS}
    np.testing.assert_allclose(found["grad_cam"], upsampled(cams.relu(), 64, 64), atol=1e-6)
    np.testing.assert_allclose(found["hires_cam"], upsampled(cams, 64, 64), atol=1e-6)
    assert all(values.shape == (3, 64, 64) and values.any() for values in found.values())
    assert not any(weights.requires_grad or weights.grad is not None for weights in model.module.parameters())


class Broken(Network):
    """Its second image overflows."""

    def features(self, pixels: torch.Tensor) -> Features:
        maps = self.stem(pixels).requires_grad_()
        factors = torch.tensor([1.0, torch.inf, 1.0])[: len(pixels), None]
        return Features(maps, self.head(maps.mean(dim=(2, 3)) * factors).nan_to_num())


def test_bad_input_is_an_error() -> None:
    for name in CAMS:
        with pytest.raises(ModelError, match=r"the gradient is NaN or infinite for 1 of 3 images, the first in row 1"):
            NAMED[name].run(asked(Broken(), PIXELS, TARGETS))
        with pytest.raises(DataError, match="found target 3"):
            NAMED[name].run(asked(MODEL, PIXELS, (0, 3, 1)))


def test_what_is_taken_when_nobody_names_any() -> None:
    assert {method.name: method.chosen for method in METHODS} == {
        "grad_cam": 30, "hires_cam": None, "layer_cam": 35, "token_grad_cam": 30,
    }  # fmt: skip
