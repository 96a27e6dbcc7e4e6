"""Class activation maps: a head of global mean and one linear layer has a closed form, then captum, then upsampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from xvision.errors import DataError
from xvision.methods.activation import grad_cam, hires_cam, layer_cam, token_grad_cam, upsampled


def network() -> nn.Sequential:
    """Convolution, global mean, one linear layer; in double precision."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    )
    return layers.double().eval()


def deeper_network() -> nn.Sequential:
    """A head that is not linear in the feature map."""
    torch.manual_seed(1)
    layers = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 48, 7), nn.Tanh(), nn.Linear(7, 3)
    )
    return layers.double().eval()


def images(batch: int = 4) -> torch.Tensor:
    return torch.rand(batch, 2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def activations(
    model: nn.Sequential, pixels: torch.Tensor, target: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Feature maps, gradients of the logit by them, and the logit."""
    maps = model[:2](pixels).detach().requires_grad_()
    logits = model[2:](maps)[:, target]
    (gradients,) = torch.autograd.grad(logits.sum(), maps)
    return maps.detach(), gradients, logits.detach()


@pytest.mark.parametrize("target", [0, 1, 2])
def test_grad_cam_is_the_class_activation_map_over_the_number_of_places(target: int) -> None:
    model = network()
    maps, gradients, _ = activations(model, images(), target)
    weights = model[4].weight[target]
    cam = torch.einsum("bdhw,d->bhw", maps, weights).detach()
    torch.testing.assert_close(grad_cam(maps, gradients), cam.relu() / (3 * 4), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(hires_cam(maps, gradients), cam / (3 * 4), rtol=1e-12, atol=1e-15)
    assert (cam < 0).any()


@pytest.mark.parametrize("target", [0, 1, 2])
def test_hires_cam_sums_to_the_logit_without_its_bias(target: int) -> None:
    model = network()
    maps, gradients, logits = activations(model, images(), target)
    torch.testing.assert_close(
        hires_cam(maps, gradients).sum(dim=(1, 2)), logits - model[4].bias[target].detach(), rtol=1e-12, atol=1e-14
    )


def test_the_maps_of_two_channels_and_two_places_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])
    gradients = torch.tensor([[[[1.0, -3.0]], [[2.0, 0.0]]]])
    assert grad_cam(maps, gradients).tolist() == [[[2.0, 0.0]]]  # weights −1 and 1
    assert hires_cam(maps, gradients).tolist() == [[[7.0, -6.0]]]
    assert layer_cam(maps, gradients).tolist() == [[[7.0, 0.0]]]
    assert layer_cam(-maps, gradients).tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize("build", [network, deeper_network])
def test_grad_cam_agrees_with_captum(build: object) -> None:
    model, pixels = build(), images()
    maps, gradients, _ = activations(model, pixels, 1)
    expected = LayerGradCam(model, model[1]).attribute(pixels, target=1, relu_attributions=True).squeeze(1).detach()
    torch.testing.assert_close(grad_cam(maps, gradients), expected, rtol=1e-12, atol=1e-15)


def test_a_place_that_the_score_does_not_use_is_dark_in_hires_cam_but_not_in_grad_cam() -> None:
    maps = torch.ones(1, 1, 2, 2)
    gradients = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]])
    assert grad_cam(maps, gradients).tolist() == [[[1.0, 1.0], [1.0, 1.0]]]
    assert hires_cam(maps, gradients).tolist() == [[[4.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize("cam", [grad_cam, hires_cam, layer_cam])
def test_a_batch_gives_what_each_image_gives_alone(cam: object) -> None:
    maps, gradients, _ = activations(deeper_network(), images(), 2)
    together = cam(maps, gradients)
    assert together.shape == (4, 6, 8)
    for row in range(4):
        torch.testing.assert_close(cam(maps[row : row + 1], gradients[row : row + 1])[0], together[row])
    torch.testing.assert_close(cam(maps, 3.0 * gradients), 3.0 * together)


def test_token_grad_cam_weights_channels_by_their_mean_over_tokens() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]]])
    gradients = torch.tensor([[[1.0, 0.0], [2.0, -3.0], [0.0, 0.0]]])  # weights 1 and −1
    assert token_grad_cam(states, gradients).tolist() == [[0.0, 4.0, 0.0]]
    as_places = grad_cam(states.transpose(1, 2).unsqueeze(2), gradients.transpose(1, 2).unsqueeze(2))
    assert as_places.squeeze(1).tolist() == [[0.0, 4.0, 0.0]]


def test_upsampling_is_bilinear_and_keeps_scale_and_sign() -> None:
    maps = torch.tensor([[[-4.0, 4.0]], [[8.0, 0.0]]])
    expected = [[[-4.0, -2.0, 2.0, 4.0]] * 2, [[8.0, 6.0, 2.0, 0.0]] * 2]
    assert upsampled(maps, 2, 4).tolist() == expected
    torch.testing.assert_close(upsampled(torch.full((1, 3, 3), -0.7), 10, 13), torch.full((1, 10, 13), -0.7))
    same = torch.rand(2, 5, 6)
    assert torch.equal(upsampled(same, 5, 6), same)
    np.testing.assert_allclose(upsampled(torch.ones(1, 1, 1), 3, 2), np.ones((1, 3, 2)))


def test_shapes_that_do_not_match_are_an_error() -> None:
    maps = torch.ones(2, 3, 4, 4)
    for cam in (grad_cam, hires_cam, layer_cam):
        with pytest.raises(
            DataError, match=r"activations of shape \(2, 3, 4, 4\) and gradients of shape \(1, 3, 4, 4\)"
        ):
            cam(maps, maps[:1])
        with pytest.raises(DataError, match="the same"):
            cam(maps[0], maps[0])
    with pytest.raises(DataError, match=r"states of shape \(2, 3, 4\) and gradients of shape \(2, 3, 5\)"):
        token_grad_cam(torch.ones(2, 3, 4), torch.ones(2, 3, 5))
    with pytest.raises(DataError, match=r"maps of shape \(1, 0, 4\)"):
        upsampled(torch.ones(1, 0, 4), 8, 8)
