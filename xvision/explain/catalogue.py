"""Every method by name: which of them fit a model, which are refused, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xvision.errors import ConfigError, nearest
from xvision.explain.method import Method
from xvision.methods.units import Units, grid
from xvision.result import NotApplicable

PATCHES_A_SIDE = 14
"""A model without tokens is explained on a grid of about this many patches along the shorter side."""


def methods() -> Mapping[str, Method]:
    """All methods but the controls, in the order in which they are listed."""
    from xvision.explain import (
        activation_methods,
        attention_methods,
        gradient_methods,
        perturbation_methods,
        relevance_methods,
        token_methods,
    )

    modules = (
        gradient_methods, perturbation_methods, activation_methods, attention_methods, token_methods, relevance_methods,
    )  # fmt: skip
    return {method.name: method for module in modules for method in module.METHODS}


def controls() -> Mapping[str, Method]:
    """Maps that know nothing of the model; a method that is no better than one of them has explained nothing."""
    from xvision.explain import control_methods

    return {method.name: method for method in control_methods.METHODS}


KNOWN_WRONG: Mapping[str, str] = {
    "deeplift": (
        "its rules cover few layer types and fall back to the plain gradient without a word for the others, so on a "
        "transformer it is input × gradient: use integrated_gradients"
    ),
    "deeplift_shap": "it rests on deeplift, which is wrong on most layers of today: use expected_gradients",
    "guided_backprop": (
        "it redraws the edges of the image whatever the weights (Adebayo et al. 2018), and without ReLU modules it is the "
        "plain gradient: use saliency or grad_cam"
    ),
    "layer_grad_cam": "on a layer of tokens it takes tokens for channels: use token_grad_cam",
    "lrp": "its general rules do not cover normalisation layers and attention: use cp_lrp",
    "attention_flow": "it is a maximum flow for each token, out of reach beyond about 64 of them: use corrected_rollout",
}
"""Methods that users may ask for and that other tools draw although the result does not mean what it says."""


def chosen(model: Any, names: Sequence[str]) -> tuple[Method, ...]:
    """The methods asked for, or those taken by default for such a model.

    Raises ConfigError for a name that is unknown or that is refused whatever the model, NotApplicable with the reason
    for one that does not fit this model or when none fits.
    """
    known = methods()
    if not names:
        fitting = [method for method in known.values() if method.chosen is not None and method.refuse(model) is None]
        if not fitting:
            raise NotApplicable("no method of explanation fits this model")
        return tuple(sorted(fitting, key=lambda method: method.chosen or 0))
    for name in names:
        if name in KNOWN_WRONG:
            raise ConfigError(f"{name} is refused: {KNOWN_WRONG[name]}.")
        if name not in known:
            raise ConfigError(f"there is no method of explanation {name!r}. {nearest(name, known)}")
        if reason := known[name].refuse(model):
            raise NotApplicable(f"{name} is refused: {reason}")
    return tuple(known[name] for name in dict.fromkeys(names))


def refusals(model: Any) -> Mapping[str, str]:
    """Methods that must not be used on this model, with the reason of each."""
    unfit = {name: method.refuse(model) for name, method in methods().items()}
    return {**{name: reason for name, reason in unfit.items() if reason}, **KNOWN_WRONG}


def units_of(model: Any) -> Units:
    """What is removed together: the model's own patches where it has tokens, else a grid."""
    spec = model.input
    tokens = getattr(model, "token_map", None)
    if tokens is not None and _regular(tokens.boxes, spec.height, spec.width):
        return grid(spec.height, spec.width, int(tokens.boxes[0, 2] - tokens.boxes[0, 0]))
    return grid(spec.height, spec.width, max(1, round(min(spec.height, spec.width) / PATCHES_A_SIDE)))


def _regular(boxes: Any, height: int, width: int) -> bool:
    """Whether the boxes are square patches that fill the image row by row."""
    side = int(boxes[0, 2] - boxes[0, 0])
    return bool(
        (boxes[:, 2] - boxes[:, 0] == side).all()
        and (boxes[:, 3] - boxes[:, 1] == side).all()
        and len(boxes) * side * side == height * width
    )
