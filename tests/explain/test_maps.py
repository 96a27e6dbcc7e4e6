"""Maps of an audit: made once, the same in any batch, bounded in memory, and a case that cannot be explained costs only itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.analyses.subjects import SIDE, square, subject
from xvision.audit import Audit
from xvision.engine import Batch, Engine
from xvision.errors import ModelError
from xvision.explain import maps as maps_module
from xvision.explain.maps import Explainer, explained, likeness, prepared, where_defined
from xvision.explain.method import Settings
from xvision.methods.units import grid
from xvision.models.metered import Meter, MeteredClassifier
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.protocols import InputSpec


def pictures(count: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, SIDE, SIDE)).astype(np.float32)


def weights() -> np.ndarray:
    return np.random.default_rng(9).normal(size=(SIDE, SIDE)).astype(np.float32)


def batch_of(audit: Audit, places: list[int], meter: Meter | None = None) -> Batch:
    ids = tuple(str(audit.ids[place]) for place in places)
    labels = torch.from_numpy(audit.labels[places])
    model = MeteredClassifier(audit.model, meter or Meter())
    return Batch(ids, torch.from_numpy(audit.pixels(places)), labels, model)


class Root(nn.Module):
    """Log-odds of the square root of the sum: no finite gradient where the image is black."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1).sum(dim=1, keepdim=True).sqrt() - 8.0


def rooted(pixels: np.ndarray) -> Audit:
    audit = subject(weights(), pixels)
    facts = Facts(("normal", "lesion"), False, InputSpec(1, SIDE, SIDE), "Root", "a test", "root")
    return replace(audit, model=NetworkClassifier(Root(), facts, torch.device("cpu")), engine=Engine(part=4))


def test_the_map_of_a_linear_model_is_its_weights() -> None:
    audit = subject(weights(), pictures())
    explainer = prepared(audit, ("saliency", "input_x_gradient"), with_controls=False)
    found = explainer.maps(batch_of(audit, [0, 3]))
    np.testing.assert_allclose(found["saliency"].values, np.abs(weights())[None].repeat(2, 0), rtol=1e-6)
    np.testing.assert_allclose(found["input_x_gradient"].values, weights() * pictures()[[0, 3]], rtol=1e-5)


def test_maps_are_made_once_and_are_the_same_in_any_batch() -> None:
    audit = subject(weights(), pictures())
    explainer, meter = prepared(audit, ("saliency", "smooth_grad"), with_controls=True), Meter()
    first = explainer.maps(batch_of(audit, [0, 1, 2], meter))
    spent = (meter.forward, meter.backward)
    again = prepared(audit, ("saliency", "smooth_grad")).maps(batch_of(audit, [2, 0], meter))
    assert (meter.forward, meter.backward) == spent
    fresh = prepared(subject(weights(), pictures()), ("saliency", "smooth_grad")).maps(batch_of(audit, [2], meter))
    for name, found in first.items():
        np.testing.assert_array_equal(again[name].values, found.values[[2, 0]])
        np.testing.assert_allclose(fresh[name].values[0], found.values[2], atol=1e-6)


def test_other_options_are_other_maps() -> None:
    audit = subject(weights(), pictures())
    black, blur = (
        prepared(audit, ("integrated_gradients",), with_controls=False, settings=Settings(baseline=kind)).maps(
            batch_of(audit, [0])
        )["integrated_gradients"]
        for kind in ("black", "blur")
    )
    np.testing.assert_allclose(black.values[0], weights() * pictures()[0], rtol=1e-4, atol=1e-6)
    assert not np.allclose(black.values, blur.values)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps_module, "MEMORY", 3 * SIDE * SIDE * 4)
    audit = subject(weights(), pictures())
    explainer = prepared(audit, ("saliency",), with_controls=False)
    full = explainer.maps(batch_of(audit, [0, 1, 2, 3, 4, 5]))["saliency"].values
    assert audit.shared["maps"].size == 3 * SIDE * SIDE * 4
    np.testing.assert_array_equal(explainer.maps(batch_of(audit, [5, 0]))["saliency"].values, full[[5, 0]])


def test_samples_are_nested_and_the_same_for_all_analyses() -> None:
    audit = subject(weights(), pictures(20))
    small = prepared(audit, ("saliency",)).sample(5)
    audit.task = "another"
    large = prepared(audit, ("saliency",)).sample(12)
    assert set(small) <= set(large)
    assert len(small) == 5
    np.testing.assert_array_equal(large, np.sort(large))
    np.testing.assert_array_equal(prepared(audit, ("saliency",)).sample(99), np.arange(20))


def test_an_image_without_a_finite_gradient_has_no_map_and_the_others_keep_theirs() -> None:
    dark = pictures(4)
    dark[2] = 0.0
    audit = rooted(dark)
    found = prepared(audit, ("saliency",), with_controls=False).maps(batch_of(audit, [0, 1, 2, 3]))["saliency"].values
    np.testing.assert_array_equal(np.isfinite(found).all(axis=(1, 2)), [True, True, False, True])
    expected = 0.5 / np.sqrt(dark[0].sum())
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    alone = prepared(rooted(dark), ("saliency",), with_controls=False).maps(batch_of(audit, [2]))["saliency"].values
    assert np.isnan(alone).all()


def test_a_method_that_explains_no_image_says_why() -> None:
    audit = rooted(np.zeros((4, SIDE, SIDE), np.float32))
    explainer = prepared(audit, ("saliency",), with_controls=False)
    with pytest.raises(ModelError, match=r"saliency: .*NaN or infinite.*Leave it out with the option `methods`"):
        explained(explainer.methods[0], explainer.asked(batch_of(audit, [0, 1])))


def test_pictures_are_named_by_method_and_come_with_pixels_and_mask() -> None:
    masks = np.stack([square(2, 3, 5)] * 6)
    audit = subject(weights(), pictures(), masks)
    explainer = prepared(audit, ("input_x_gradient",))
    cases = explainer.cases()
    assert {case.id for case in cases} == {str(audit.ids[place]) for place in audit.showcase}
    for case in cases:
        assert set(case.pictures) == {"image", "input × gradient"}
        marked = case.id != str(audit.ids[-1])
        assert set(case.maps) == {"input × gradient", "pixels"} | ({"mask"} if marked else set())
        place = list(audit.ids).index(case.id)
        np.testing.assert_allclose(case.maps["pixels"], pictures()[place])


def test_scores_are_asked_for_finite_maps_only() -> None:
    values = np.ones((3, 2, 2))
    values[1, 0, 0] = np.nan
    asked: list[np.ndarray] = []
    found = where_defined(values, lambda at: asked.append(at) or values[at].sum(axis=(1, 2)))
    np.testing.assert_array_equal(asked[0], [0, 2])
    np.testing.assert_array_equal(found, [4.0, np.nan, 4.0])


def test_likeness_goes_by_unit_and_by_strength() -> None:
    units = grid(4, 4, 2)
    before = units.painted(np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]]))
    after = units.painted(np.array([[-1.0, -2.0, -3.0, -4.0], [1.0, 2.0, 3.0, 4.0]]))
    np.testing.assert_allclose(likeness(units, before, after), [1.0, np.nan])


def test_the_class_explained_is_the_positive_one_or_the_decided_one() -> None:
    audit = subject(weights(), pictures())
    assert set(prepared(audit, ("saliency",)).targets.values()) == {1}
    open_ended = replace(audit, decision=replace(audit.decision, positive=None, threshold=None))
    explainer: Explainer = prepared(open_ended, ("saliency",))
    assert list(explainer.targets.values()) == list(open_ended.predictions.decisions)


def test_each_decision_may_be_explained_instead() -> None:
    audit = subject(weights(), pictures())
    explainer = prepared(audit, ("input_x_gradient",), with_controls=False, decided=True)
    decided = audit.predictions.decisions
    assert set(decided) == {0, 1}
    assert [explainer.targets[str(name)] for name in audit.ids] == list(decided)
    found = explainer.maps(batch_of(audit, list(range(6))))["input_x_gradient"].values
    turned = np.where(decided == 1, 1.0, -1.0)[:, None, None]
    np.testing.assert_allclose(found, turned * weights() * pictures(), rtol=1e-5)
    positive = prepared(audit, ("input_x_gradient",), with_controls=False).maps(batch_of(audit, list(range(6))))
    np.testing.assert_allclose(positive["input_x_gradient"].values, weights() * pictures(), rtol=1e-5)


def test_what_says_nothing_is_left_uncoloured() -> None:
    audit = subject(weights(), pictures())
    explainer = prepared(audit, ("saliency",), with_controls=False)
    high = replace(explainer, methods=(replace(explainer.methods[0], neutral=100.0),))
    for case in high.cases():
        np.testing.assert_array_equal(case.pictures["saliency"], case.pictures["image"])
        assert not case.maps["saliency"].any()
    assert any((case.pictures["saliency"] != case.pictures["image"]).any() for case in explainer.cases())
