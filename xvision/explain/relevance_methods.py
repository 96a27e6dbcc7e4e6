"""Layer-wise relevance propagation to the tokens of a transformer; taken only when it is named."""

from __future__ import annotations

from typing import Any

import torch

from xvision.explain.method import Asked, Maps, Method, architecture, needs_gradients
from xvision.methods.relevance import NOTE, token_relevance
from xvision.methods.rollout import to_pixels
from xvision.methods.target import checked, finite_maps


def needs_token_passes(model: Any) -> str | None:
    """Refuses a model that cannot be run from its embedded tokens, or whose tokens have no known place in the image."""
    if reason := needs_gradients(model):
        return reason
    if getattr(model, "convolutional", False):
        return f"{architecture(model)} is a convolutional network, for which it has no rules: use hires_cam"
    if getattr(model, "token_map", None) is None or not hasattr(model, "from_embedded"):
        return (
            f"{architecture(model)} cannot be followed from token to token (windowed or hybrid attention, or an"
            " architecture that has not been checked): use integrated_gradients"
        )
    return None


def _cp_lrp(asked: Asked) -> Maps:
    pixels, targets = checked(asked.pixels, asked.targets)
    with torch.no_grad():
        tokens = asked.model.embedded(pixels)
    shares = token_relevance(asked.model.from_embedded, tokens, targets)
    known = asked.model.token_map
    found = finite_maps(shares[:, torch.from_numpy(known.image).to(shares.device)].unsqueeze(1), "CP-LRP")[:, 0]
    return Maps(to_pixels(found, known.boxes, *pixels.shape[2:]))


METHODS: tuple[Method, ...] = (
    Method(
        "cp_lrp", "CP-LRP", "token", True, "2 forward, 1 backward", "Ali et al. 2022, Achtibat et al. 2024",
        needs_token_passes, _cp_lrp, note=NOTE,
    ),
)  # fmt: skip
