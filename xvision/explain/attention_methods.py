"""Methods that read attention: by itself, rolled out over the layers, or weighted by the gradient of the score.

Each has one value per token (``TOKEN_VALUES``), so that what falls on text or on the class token can be told; its map is
the values of the image tokens on their patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from xvision.errors import ModelError
from xvision.explain.method import Asked, Maps, Method, Settings, architecture, needs_gradients
from xvision.methods import attention_maps, rollout
from xvision.methods.target import checked, finite_maps, gradients_for_pixels, log_odds

TokenValues = Callable[[Asked], np.ndarray]
"""A batch to one value per token, (B, T) float64."""
_Read = Callable[[Any, Any, torch.Tensor, Settings], np.ndarray]
"""A model, the attention of a pass and targets (B,) to one value per token, (B, T)."""


def needs_attention(model: Any) -> str | None:
    """Refuses a model without attention weights that belong to image patches."""
    return needs_patches(model, "attention weights")


def needs_patches(model: Any, what: str) -> str | None:
    """Refuses, for want of ``what``, a model without a map from tokens to image patches."""
    try:
        known = getattr(model, "token_map", None)
    except ModelError as error:  # texts of different lengths are bound
        return str(error)
    if known is not None:
        return None
    instead = "integrated_gradients or patch_ablation" if model.access == "white-box" else "patch_ablation or rise"
    return (
        f"{architecture(model)} has no {what} that map to image patches: windowed, hybrid and convolutional models"
        f" have none; use {instead}"
    )


def needs_attention_gradients(model: Any) -> str | None:
    """Refuses a model without attention weights or without gradients for them."""
    return needs_attention(model) or needs_gradients(model)


def _needs_every_direction(model: Any) -> str | None:
    if reason := needs_attention(model):
        return reason
    known = model.token_map
    if bool(known.allowed[np.ix_(known.image, known.image)].all()):
        return None
    return (
        f"{architecture(model)} attends to earlier tokens only, so rollout lights up the top of every image whatever it"
        " shows: use corrected_rollout"
    )


def _needs_states(model: Any) -> str | None:
    if reason := needs_attention_gradients(model):
        return reason
    if hasattr(model, "read_out"):
        return None
    return f"the head of {architecture(model)} cannot be put on a layer in the middle: use chefer"


def _raw_attention(_: Any, found: Any, __: torch.Tensor, settings: Settings) -> np.ndarray:
    return attention_maps.raw_attention(found.weights, found.tokens.readout, head_fusion=settings.head_fusion)


def _rollout(_: Any, found: Any, __: torch.Tensor, settings: Settings) -> np.ndarray:
    return rollout.rollout(
        found.weights, found.tokens.readout, residual=settings.residual, head_fusion=settings.head_fusion
    )


def _corrected_rollout(model: Any, found: Any, targets: torch.Tensor, settings: Settings) -> np.ndarray:
    reference = rollout.uninformative(
        found.tokens.allowed, len(found.weights), found.tokens.readout, residual=settings.residual
    )
    return rollout.corrected(_rollout(model, found, targets, settings), reference)


def _gradient_rollout(_: Any, found: Any, targets: torch.Tensor, settings: Settings) -> np.ndarray:
    return attention_maps.gradient_rollout(
        found.weights, _gradients(found, targets), found.tokens.readout, residual=settings.residual
    )


def _chefer(_: Any, found: Any, targets: torch.Tensor, __: Settings) -> np.ndarray:
    return attention_maps.chefer_relevance(found.weights, _gradients(found, targets), found.tokens.readout)


def _gradient_attention(_: Any, found: Any, targets: torch.Tensor, __: Settings) -> np.ndarray:
    last = found.weights[-1:]
    gradients = attention_maps.layer_gradients([log_odds(found.logits, targets)], last)
    return attention_maps.gradient_attention(last, gradients, found.tokens.readout)


def _legrad(model: Any, found: Any, targets: torch.Tensor, _: Settings) -> np.ndarray:
    if len(found.hidden) != len(found.weights):
        raise ModelError(
            f"{architecture(model)} gave the states of {len(found.hidden)} of {len(found.weights)} layers: use chefer"
        )
    scores = [log_odds(model.read_out(states), targets) for states in found.hidden]
    gradients = attention_maps.layer_gradients(scores, found.weights)
    return attention_maps.legrad(gradients, found.tokens.allowed)


def _gradients(found: Any, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return attention_maps.layer_gradients([log_odds(found.logits, targets)], found.weights)


def _values(asked: Asked, *, read: _Read, gradients: bool) -> np.ndarray:
    """(B, T), one pass for each part of the batch."""
    pixels, targets = checked(asked.pixels, asked.targets)
    size = asked.settings.batch
    parts = [slice(first, first + size) for first in range(0, len(pixels), size)]
    return np.concatenate([_of_part(asked, pixels[part], targets[part], read, gradients) for part in parts])


def _of_part(asked: Asked, pixels: torch.Tensor, targets: torch.Tensor, read: _Read, gradients: bool) -> np.ndarray:
    model, settings = asked.model, asked.settings
    if not gradients:
        with torch.no_grad():
            return read(model, model.attention(pixels), targets, settings)
    with gradients_for_pixels():
        return read(model, model.attention(pixels), targets, settings)


def _maps(asked: Asked, *, name: str) -> Maps:
    known = asked.model.token_map
    values = TOKEN_VALUES[name](asked)
    height, width = asked.pixels.shape[2:]
    painted = rollout.to_pixels(values[:, known.image], known.boxes, int(height), int(width))
    return Maps(finite_maps(torch.from_numpy(painted), name))


TOKEN_VALUES: Mapping[str, TokenValues] = {
    "raw_attention": partial(_values, read=_raw_attention, gradients=False),
    "attention_rollout": partial(_values, read=_rollout, gradients=False),
    "corrected_rollout": partial(_values, read=_corrected_rollout, gradients=False),
    "gradient_rollout": partial(_values, read=_gradient_rollout, gradients=True),
    "chefer": partial(_values, read=_chefer, gradients=True),
    "gradient_attention": partial(_values, read=_gradient_attention, gradients=True),
    "legrad": partial(_values, read=_legrad, gradients=True),
}
"""Per method the values of all tokens, for ``xvision.methods.token_attribution.image_share``.

Corrected rollout is a ratio, so shares of it mean nothing: take those of attention rollout, whatever the mask.
"""

_BLIND = "The same map whatever class is explained: where information can flow, not what decided."
_FORWARD, _BACKWARD = "1 forward", "1 forward, 1 backward"

METHODS: tuple[Method, ...] = (
    Method(
        "corrected_rollout", "corrected rollout", "attention", False, _FORWARD,
        "Abnar and Zuidema 2020, over uninformative attention", needs_attention, partial(_maps, name="corrected_rollout"),
        note=f"{_BLIND} 1 is what the attention mask alone gives, 2 twice as much.", chosen=50, neutral=1.0,
    ),
    Method(
        "chefer", "Chefer relevance", "attention", False, _BACKWARD, "Chefer et al. 2021", needs_attention_gradients,
        partial(_maps, name="chefer"), note="Shows support for the class only, never evidence against it.", chosen=60,
    ),
    Method(
        "attention_rollout", "attention rollout", "attention", False, _FORWARD, "Abnar and Zuidema 2020",
        _needs_every_direction, partial(_maps, name="attention_rollout"), note=_BLIND,
    ),
    Method(
        "raw_attention", "raw attention", "attention", False, _FORWARD, "Vaswani et al. 2017", needs_attention,
        partial(_maps, name="raw_attention"), note=f"{_BLIND} Last layer only.",
    ),
    Method(
        "gradient_rollout", "gradient rollout", "attention", False, _BACKWARD,
        "Gildenblat 2020, after Abnar and Zuidema 2020", needs_attention_gradients,
        partial(_maps, name="gradient_rollout"),
        note="Depends on the scale of the logits, and under a causal mask it favours the top of the image.",
    ),
    Method(
        "gradient_attention", "gradient × attention", "attention", False, _BACKWARD, "after Barkan et al. 2021",
        needs_attention_gradients, partial(_maps, name="gradient_attention"), note="Last layer only.",
    ),
    Method(
        "legrad", "LeGrad", "attention", False, "1 forward, backward through each layer once",
        "Bousselham et al. 2024", _needs_states, partial(_maps, name="legrad"),
    ),
)  # fmt: skip
