"""Methods that follow gradients to the pixels; they fit any model that gives gradients."""

from __future__ import annotations

import torch

from xvision.errors import DataError
from xvision.explain.method import Asked, Maps, Method, architecture, needs_gradients
from xvision.methods import attribution, sampled_gradients
from xvision.methods.attribution import Attribution


def _integrated_gradients(asked: Asked) -> Maps:
    settings = asked.settings
    return _maps(
        attribution.integrated_gradients(
            asked.model.logits, asked.pixels, asked.targets, baseline=settings.baseline, references=asked.references,
            steps=settings.steps, internal_batch=settings.batch,
        )
    )  # fmt: skip


def _saliency(asked: Asked) -> Maps:
    return _maps(attribution.saliency(asked.model.logits, asked.pixels, asked.targets))


def _input_x_gradient(asked: Asked) -> Maps:
    return _maps(attribution.input_x_gradient(asked.model.logits, asked.pixels, asked.targets))


def _expected_gradients(asked: Asked) -> Maps:
    settings = asked.settings
    return _maps(
        sampled_gradients.expected_gradients(
            asked.model.logits, asked.pixels, asked.targets, references=_references(asked), seeds=asked.seeds,
            samples=settings.samples, internal_batch=settings.batch,
        )
    )  # fmt: skip


def _smooth_grad(asked: Asked) -> Maps:
    settings = asked.settings
    return _maps(
        sampled_gradients.smooth_grad(
            asked.model.logits, asked.pixels, asked.targets, seeds=asked.seeds, noise=settings.noise,
            samples=settings.samples, internal_batch=settings.batch,
        )
    )  # fmt: skip


def _var_grad(asked: Asked) -> Maps:
    settings = asked.settings
    return _maps(
        sampled_gradients.var_grad(
            asked.model.logits, asked.pixels, asked.targets, seeds=asked.seeds, noise=settings.noise,
            samples=settings.samples, internal_batch=settings.batch,
        )
    )  # fmt: skip


def _references(asked: Asked) -> torch.Tensor:
    if asked.references is None:
        raise DataError(
            f"expected gradients compares with images of the data and {architecture(asked.model)} was asked about"
            " without any: give references, or use integrated_gradients"
        )
    return asked.references


def _maps(found: Attribution) -> Maps:
    return Maps(found.maps, found.gap, found.difference)


METHODS: tuple[Method, ...] = (
    Method(
        "integrated_gradients", "integrated gradients", "gradient", True, "steps + 2 forward, steps backward",
        "Sundararajan et al. 2017", needs_gradients, _integrated_gradients, chosen=10,
    ),
    Method(
        "saliency", "saliency", "gradient", False, "1 forward, 1 backward", "Simonyan et al. 2014", needs_gradients,
        _saliency, chosen=20,
    ),
    Method(
        "input_x_gradient", "input × gradient", "gradient", True, "1 forward, 1 backward", "Shrikumar et al. 2016",
        needs_gradients, _input_x_gradient,
    ),
    Method(
        "expected_gradients", "expected gradients", "gradient", True,
        "samples + 1 forward, samples backward; 1 forward for each reference", "Erion et al. 2021", needs_gradients,
        _expected_gradients,
    ),
    Method(
        "smooth_grad", "smoothed gradient", "gradient", False, "samples forward, samples backward",
        "Smilkov et al. 2017", needs_gradients, _smooth_grad,
    ),
    Method(
        "var_grad", "variance of the gradient", "gradient", False, "samples forward, samples backward",
        "Adebayo et al. 2018", needs_gradients, _var_grad,
    ),
)  # fmt: skip
