"""Perturbation methods of a model that reads one patch: each must find it. Then a real transformer, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from xvision.errors import ModelError
from xvision.explain.catalogue import methods, units_of
from xvision.explain.method import Asked, Settings
from xvision.explain.perturbation_methods import METHODS
from xvision.methods.perturbation import kernel_shap, patch_ablation, shapley_bank
from xvision.methods.removal import pixel_evaluator
from xvision.methods.target import score_of
from xvision.methods.units import grid
from xvision.models.huggingface import adapt
from xvision.models.preprocessing import Preprocessing
from xvision.models.protocols import InputSpec

SIDE = 16
NAMES = tuple(method.name for method in METHODS)
PIXELS = torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
MARKED = np.zeros((SIDE, SIDE), dtype=bool)
MARKED[4:8, 8:12] = True
SETTINGS = Settings(baseline="black", masks=120)


@dataclass
class OnePatch:
    """Two classes; the score of the second grows with the brightness of one patch, and with nothing else."""

    weights: torch.Tensor = field(default_factory=lambda: torch.as_tensor(MARKED).float())
    input: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(height=SIDE, width=SIDE))
    access: str = "black-box"

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        score = (pixels * self.weights).flatten(1).sum(dim=1) - 3.0
        return torch.stack((torch.zeros_like(score), score), dim=1)


def asked(model: object, targets: tuple[int, ...] = (1, 1, 1), rows: slice = slice(None)) -> Asked:
    chosen = torch.tensor(targets[rows])
    return Asked(model, PIXELS[rows], chosen, (5, 6, 7)[rows], grid(SIDE, SIDE, 4), SETTINGS)


def values(name: str, question: Asked) -> np.ndarray:
    found = methods()[name].run(question)
    assert found.gap is None
    assert found.difference is None
    assert found.values.dtype == np.float32
    return found.values


def test_the_methods_that_need_only_scores() -> None:
    assert NAMES == ("patch_ablation", "occlusion", "kernel_shap", "kernel_shap_superpixels", "rise")
    assert [method.label for method in METHODS if method.chosen is not None] == ["patch ablation"]
    assert all(method.refuse(OnePatch()) is None and method.signed for method in METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_each_method_finds_the_patch_that_is_read(name: str) -> None:
    found = values(name, asked(OnePatch()))
    assert found.shape == (3, SIDE, SIDE)
    inside, outside = found[:, MARKED].mean(axis=1), found[:, ~MARKED].mean(axis=1)
    assert (inside > 2 * np.abs(outside)).all()
    if name != "kernel_shap_superpixels":  # its regions follow the image, not the patch
        np.testing.assert_allclose(found[:, MARKED], found.max(axis=(1, 2))[:, None].repeat(16, axis=1), atol=1e-5)


@pytest.mark.parametrize("name", ["patch_ablation", "kernel_shap"])
def test_a_pixel_carries_its_patch_s_value_undivided(name: str) -> None:
    expected = (PIXELS[:, 0] * torch.as_tensor(MARKED)).sum(dim=(1, 2)).numpy()
    np.testing.assert_allclose(values(name, asked(OnePatch())), expected[:, None, None] * MARKED, atol=1e-5)


def test_windows_are_two_patches_wide_and_one_apart() -> None:
    found = values("occlusion", asked(OnePatch()))
    inside = (PIXELS[:, 0] * torch.as_tensor(MARKED)).sum(dim=(1, 2)).numpy()
    np.testing.assert_allclose(found[:, 4, 8], inside, atol=1e-5)
    np.testing.assert_allclose(found[:, 4, 4], inside / 2, atol=1e-5)  # half of its windows hold the patch beside it
    np.testing.assert_allclose(found[:, 0, 0], 0.0, atol=1e-5)
    np.testing.assert_allclose(found[:, 0, 8], inside * 1.0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_other_class_gets_the_opposite_map(name: str) -> None:
    np.testing.assert_allclose(values(name, asked(OnePatch(), (0, 0, 0))), -values(name, asked(OnePatch())), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_map_depends_neither_on_the_batch_nor_on_the_size_of_a_pass(name: str) -> None:
    question = asked(OnePatch())
    together = values(name, question)
    np.testing.assert_allclose(values(name, asked(OnePatch(), rows=slice(1, 2)))[0], together[1], atol=1e-6)
    smaller = replace(question, settings=replace(SETTINGS, batch=5))
    np.testing.assert_allclose(values(name, smaller), together, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_that_is_no_number_is_said_with_its_row(name: str) -> None:
    class Broken(OnePatch):
        def logits(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().logits(pixels) / (pixels[:, 0, -1:, -1] < 1.0)

    question = replace(asked(Broken()), pixels=PIXELS.clone())
    question.pixels[1, 0, -1, -1] = 1.0
    with pytest.raises(ModelError, match=r"the score is NaN or infinite for 1 of 3 images .* the first in row 1"):
        methods()[name].run(question)


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_image_gets_a_finite_map(name: str) -> None:
    flat = Asked(
        OnePatch(), torch.full((1, 1, SIDE, SIDE), 0.5), torch.ones(1).long(), (0,), grid(SIDE, SIDE, 4), SETTINGS
    )
    assert np.isfinite(values(name, flat)).all()


def test_a_real_transformer_gets_the_same_maps_by_tokens_as_by_pixels() -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=SIDE, patch_size=4,
        num_channels=1, initializer_range=0.5,
    )  # fmt: skip
    model = adapt(
        ViTForImageClassification(config),
        Preprocessing(InputSpec(1, SIDE, SIDE), 1.0, (0.5,), (0.5,)),
        source="random weights",
    )
    question = replace(asked(model), units=units_of(model))
    assert question.units.count == 16
    evaluate = pixel_evaluator(
        score_of(model.logits), PIXELS, question.targets, question.units, "black", seeds=question.seeds
    )
    expected = question.units.painted(patch_ablation(evaluate, 3, question.units))
    np.testing.assert_allclose(values("patch_ablation", question), expected, atol=1e-5)
    bank = shapley_bank(evaluate, question.seeds, question.units, masks=120, purpose="explanation")
    np.testing.assert_allclose(values("kernel_shap", question), question.units.painted(kernel_shap(bank)), atol=1e-4)
    assert np.ptp(expected) > 0.05


def test_the_level_of_the_score_changes_no_map_of_rise() -> None:
    class Shifted(OnePatch):
        def logits(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().logits(pixels) + torch.tensor([0.0, 40.0])

    np.testing.assert_allclose(values("rise", asked(Shifted())), values("rise", asked(OnePatch())), atol=1e-4)
