"""Class activation maps of convolutional networks, and their counterpart for models of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from xvision.errors import ModelError
from xvision.explain.method import Asked, Maps, Method, architecture, needs_gradients
from xvision.methods import activation
from xvision.methods.rollout import to_pixels
from xvision.methods.target import checked, finite_maps, gradients_for_pixels, log_odds

Cam = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Activations and gradients (B, D, h, w) to maps (B, h, w)."""


def needs_feature_map(model: Any) -> str | None:
    """Refuses a model whose logits do not come from a spatial feature map."""
    if reason := needs_gradients(model):
        return reason
    if getattr(model, "convolutional", False):
        return None
    name = architecture(model)
    if getattr(model, "token_map", None) is not None:
        return f"{name} has tokens where a convolutional network has a feature map: use token_grad_cam"
    return f"{name} has no spatial feature map that its logits are computed from: use integrated_gradients"


def needs_token_states(model: Any) -> str | None:
    """Refuses a model whose tokens have no known place in the image."""
    if reason := needs_gradients(model):
        return reason
    if getattr(model, "token_map", None) is not None:
        layers = model.description.get("layers", 2)
        return (
            None if layers > 1 else f"{architecture(model)} has a single layer, and no states before it: use saliency"
        )
    if getattr(model, "convolutional", False):
        return f"{architecture(model)} is a convolutional network without tokens: use grad_cam"
    return f"the tokens of {architecture(model)} have no known place in the image: use integrated_gradients"


def _painted(cam: Cam, label: str) -> Callable[[Asked], Maps]:
    def run(asked: Asked) -> Maps:
        with gradients_for_pixels():
            pixels, targets = checked(asked.pixels, asked.targets)
            found = asked.model.features(pixels)
            gradients = _gradients(log_odds(found.logits, targets), found.maps)
        bigger = activation.upsampled(cam(found.maps.detach(), gradients), *pixels.shape[2:])
        return Maps(finite_maps(bigger, label))

    return run


def _token_grad_cam(asked: Asked) -> Maps:
    """Grad-CAM on what the last layer reads, the states that the last but one passes on.

    Not on what the last layer passes on: of that, a head that reads one token uses this token alone, so the gradients
    of the image tokens are 0 whatever the image.
    """
    with gradients_for_pixels():
        pixels, targets = checked(asked.pixels, asked.targets)
        found = asked.model.attention(pixels)
        states = _last_but_one(found.hidden, asked)
        gradients = _gradients(log_odds(found.logits, targets), states)
    places = torch.from_numpy(found.tokens.image).to(states.device)
    values = activation.token_grad_cam(states.detach()[:, places], gradients[:, places])
    height, width = pixels.shape[2:]
    return Maps(to_pixels(finite_maps(values.unsqueeze(1), "token Grad-CAM")[:, 0], found.tokens.boxes, height, width))


def _last_but_one(hidden: tuple[torch.Tensor, ...], asked: Asked) -> torch.Tensor:
    if len(hidden) < 2:
        raise ModelError(
            f"{architecture(asked.model)} has {len(hidden) or 'no'} layer whose states can be read: token Grad-CAM reads"
            " what the last layer is given by the one before, so use integrated_gradients"
        )
    return hidden[-2]


def _gradients(score: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    """By the layer alone, not by parameters or by pixels."""
    (gradients,) = torch.autograd.grad(score.sum(), layer)
    return gradients


METHODS: tuple[Method, ...] = (
    Method(
        "grad_cam", "Grad-CAM", "class activation", False, "1 forward, 1 backward to the last feature map",
        "Selvaraju et al. 2017", needs_feature_map, _painted(activation.grad_cam, "Grad-CAM"), chosen=30,
    ),
    Method(
        "hires_cam", "HiResCAM", "class activation", True, "1 forward, 1 backward to the last feature map",
        "Draelos and Carin 2020", needs_feature_map, _painted(activation.hires_cam, "HiResCAM"),
    ),
    Method(
        "layer_cam", "LayerCAM", "class activation", False, "1 forward, 1 backward to the last feature map",
        "Jiang et al. 2021", needs_feature_map, _painted(activation.layer_cam, "LayerCAM"), chosen=35,
    ),
    Method(
        "token_grad_cam", "token Grad-CAM", "class activation", False, "1 forward, 1 backward through the last layer",
        "after Selvaraju et al. 2017", needs_token_states, _token_grad_cam, chosen=30,
    ),
)  # fmt: skip
