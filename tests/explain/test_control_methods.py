"""The controls as methods: names that the analyses know, no model asked, no image's map dependent on its neighbours."""

from __future__ import annotations

import numpy as np
import torch

from xvision.explain.catalogue import controls
from xvision.explain.method import Asked, Maps, Settings
from xvision.methods.units import grid

PIXELS = torch.rand(3, 2, 12, 16, generator=torch.Generator().manual_seed(0))


def drawn(name: str, rows: slice = slice(None)) -> Maps:
    """Of no model: a control that asked one would fail."""
    seeds = (5, 6, 7)[rows]
    targets = torch.zeros(len(seeds), dtype=torch.int64)
    return controls()[name].run(Asked(None, PIXELS[rows], targets, seeds, grid(12, 16, 4), Settings()))


def test_the_controls_have_the_names_and_labels_that_pages_show() -> None:
    found = {name: (method.label, method.family, method.refuse(None)) for name, method in controls().items()}
    assert found == {
        "random": ("random", "control", None),
        "edges": ("edges", "control", None),
        "centre": ("centre prior", "control", None),
        "brightness": ("input magnitude", "control", None),
    }
    assert all(method.passes == "none" and not method.signed for method in controls().values())


def test_each_control_draws_finite_maps_that_do_not_depend_on_the_batch() -> None:
    for name in controls():
        together = drawn(name)
        assert together.values.shape == (3, 12, 16)
        assert together.values.dtype == np.float32
        assert np.isfinite(together.values).all()
        assert together.gap is None
        np.testing.assert_array_equal(drawn(name, slice(1, 2)).values[0], together.values[1])


def test_the_controls_differ_from_each_other() -> None:
    flat = [drawn(name).values[0].ravel() for name in controls()]
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 0.5
