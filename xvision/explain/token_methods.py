"""Methods that change the sequence of tokens before the first layer: along a path, or by leaving tokens out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from xvision.explain.attention_methods import needs_patches
from xvision.explain.method import Asked, Maps, Method, architecture, needs_gradients
from xvision.methods import token_attribution
from xvision.methods.attribution import baseline_pixels
from xvision.methods.rollout import to_pixels
from xvision.methods.target import checked, finite_maps
from xvision.methods.token_attribution import TokenAttribution


def needs_tokens(model: Any) -> str | None:
    """Refuses a model whose tokens cannot be read and sent on before its first layer."""
    if reason := needs_patches(model, "tokens"):
        return reason
    if hasattr(model, "from_embedded"):
        return None
    return (
        f"the tokens of {architecture(model)} cannot be changed before its first layer: use integrated_gradients or"
        " patch_ablation"
    )


def token_integral(asked: Asked) -> TokenAttribution:
    """Integrated gradients of all tokens, (B, T): image, words of a bound text, and 0 for the learned tokens."""
    settings, model = asked.settings, asked.model
    pixels, targets = checked(asked.pixels, asked.targets)
    with torch.no_grad():
        tokens = model.embedded(pixels)
        blank = model.embedded(baseline_pixels(pixels, settings.baseline, asked.references))
    start = token_attribution.baseline_tokens(tokens, blank, model.token_map.names)
    return token_attribution.embedded_integrated_gradients(
        model.from_embedded, tokens, start, targets, steps=settings.steps, batch=settings.batch
    )


def _needs_token_gradients(model: Any) -> str | None:
    return needs_tokens(model) or needs_gradients(model)


def _needs_removable_tokens(model: Any) -> str | None:
    return needs_tokens(model) or token_attribution.irremovable(model.token_map)


def _embedding_integrated_gradients(asked: Asked) -> Maps:
    found = token_integral(asked)
    maps = _painted(asked, found.values[:, asked.model.token_map.image], "embedding integrated gradients")
    return Maps(maps, found.gap, found.difference)


def _token_ablation(asked: Asked) -> Maps:
    values = token_attribution.token_ablation(asked.model, asked.pixels, asked.targets, batch=asked.settings.batch)
    return Maps(_painted(asked, values, "token ablation"))


def _painted(asked: Asked, values: np.ndarray, name: str) -> np.ndarray:
    height, width = asked.pixels.shape[2:]
    boxes = asked.model.token_map.boxes
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)  # so that a patch adds up to its token's value
    painted = to_pixels(values / areas, boxes, int(height), int(width))
    return finite_maps(torch.from_numpy(painted), name)


METHODS: tuple[Method, ...] = (
    Method(
        "embedding_integrated_gradients", "embedding integrated gradients", "token", True,
        "steps + 2 forward, steps backward", "Sundararajan et al. 2017", _needs_token_gradients,
        _embedding_integrated_gradients, note="Words of a text are compared with the mean word of the same text.",
    ),
    Method(
        "token_ablation", "token ablation", "token", True, "1 forward, and 1 for each image token", "Jain et al. 2022",
        _needs_removable_tokens, _token_ablation,
    ),
)  # fmt: skip
