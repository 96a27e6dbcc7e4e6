"""The controls: maps drawn without asking the model. Every metric of a method is read beside theirs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xvision.explain.method import Asked, Maps, Method, needs_nothing
from xvision.methods.controls import centre_prior, input_magnitude, random_maps, sobel_edges


def _control(name: str, label: str, source: str, draw: Callable[[Asked], np.ndarray]) -> Method:
    return Method(name, label, "control", False, "none", source, needs_nothing, lambda asked: Maps(draw(asked)))


METHODS: tuple[Method, ...] = (
    _control(
        "random", "random", "uniform noise, a seed per image",
        lambda asked: random_maps(asked.seeds, asked.pixels.shape[2], asked.pixels.shape[3]),
    ),
    _control("edges", "edges", "Sobel, after Adebayo et al. 2018", lambda asked: sobel_edges(asked.pixels)),
    _control(
        "centre", "centre prior", "Gaussian, a quarter of the shorter side wide",
        lambda asked: centre_prior(len(asked.pixels), asked.pixels.shape[2], asked.pixels.shape[3]),
    ),
    _control(
        "brightness", "input magnitude", "distance from the image's own mean",
        lambda asked: input_magnitude(asked.pixels),
    ),
)  # fmt: skip
