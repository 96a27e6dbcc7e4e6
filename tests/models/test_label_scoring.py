"""Label scores with a shared prompt: equal to full re-encoding for every family, padding and label length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from xvision.models.vlm.classifier import VlmClassifier
from xvision.models.vlm.families import patch_rows
from xvision.models.vlm.scoring import Prompt, Tail, normalise, score_naive, score_shared

from .vlm_builders import FAMILIES, ID, SIDE, TEN, load, pixels, save_vlm

TAILS: tuple[Tail, ...] = ((20,), (21, 22), (23, 24, 25), (26, 27, 28, 29), (21, 30), (31,))


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VlmClassifier:
    return load(save_vlm(tmp_path_factory.mktemp("vlm") / request.param, request.param))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> VlmClassifier:
    return load(save_vlm(tmp_path_factory.mktemp("vlm") / "llava", "llava"), TEN)


def seen(model: VlmClassifier, count: int = 3) -> torch.Tensor:
    return model.preprocessing.normalise(pixels(count))


def as_its_processor(model: VlmClassifier, picture: np.ndarray, tokens: torch.Tensor) -> dict[str, Any]:
    """What the family's own processor would give the model beside the tokens of one prompt."""
    numbers = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    marks = (tokens == ID["<image>"]).long()
    if model.module.config.model_type.startswith("qwen"):
        processor = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, do_resize=False, **numbers
        )
        return {**processor(images=picture, return_tensors="pt"), "mm_token_type_ids": marks}
    plain = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, **numbers)
    given = dict(plain(images=picture, return_tensors="pt"))
    return {**given, "token_type_ids": marks} if model.module.config.model_type == "gemma3" else given


def shared(model: VlmClassifier, tails: tuple[Tail, ...], count: int = 3) -> torch.Tensor:
    tokens = torch.tensor(model.asked.tokens).expand(count, -1)
    return score_shared(model.module, model.family, seen(model, count), Prompt(tokens, torch.ones_like(tokens)), tails)


def naive(model: VlmClassifier, tails: tuple[Tail, ...], count: int = 3) -> torch.Tensor:
    tokens = torch.tensor(model.asked.tokens).expand(count, -1)
    return score_naive(model.module, model.family, seen(model, count), tokens, tails)


@contextmanager
def passes(module: PreTrainedModel) -> Iterator[list[int]]:
    """How many tokens each pass of the model reads."""
    counted: list[int] = []

    def count(_module: object, _args: object, given: dict[str, Any]) -> None:
        counted.append(given["input_ids"].numel())

    hook = module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counted
    finally:
        hook.remove()


@pytest.mark.parametrize("tail", TAILS, ids=len)
def test_naive_scores_are_the_loss_that_transformers_computes(model: VlmClassifier, tail: Tail) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    tokens = torch.tensor([[*model.asked.tokens, *tail]])
    wanted = tokens.clone()
    wanted[:, : -len(tail)] = -100
    loss = model.module(input_ids=tokens, labels=wanted, **as_its_processor(model, picture, tokens)).loss
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    found = score_naive(
        model.module, model.family, model.preprocessing.normalise(image), torch.tensor([model.asked.tokens]), (tail,)
    )
    assert found.item() == pytest.approx(-loss.item() * len(tail), abs=2e-5)


def test_shared_scores_equal_naive_ones(model: VlmClassifier) -> None:
    torch.testing.assert_close(shared(model, TAILS), naive(model, TAILS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tail", TAILS, ids=len)
def test_a_label_alone_equals_naive(model: VlmClassifier, tail: Tail) -> None:
    torch.testing.assert_close(shared(model, (tail,)), naive(model, (tail,)), atol=1e-5, rtol=0)


def test_labels_do_not_change_each_other(model: VlmClassifier) -> None:
    together = shared(model, TAILS)
    alone = torch.cat([shared(model, (tail,)) for tail in TAILS], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(shared(model, TAILS), together, atol=0, rtol=0)


def test_the_order_of_images_does_not_matter(model: VlmClassifier) -> None:
    alone = torch.cat([model.scores(pixels()[index : index + 1]) for index in range(3)])
    torch.testing.assert_close(model.scores(pixels()), alone, atol=1e-5, rtol=0)


def test_prompts_of_different_lengths_are_padded_on_the_left(model: VlmClassifier) -> None:
    whole = list(model.asked.tokens)
    rows = [whole, whole[:-3], whole[:-9]]
    padding = [len(whole) - len(row) for row in rows]
    prompt = Prompt(
        torch.tensor([[ID["<pad>"]] * gap + row for gap, row in zip(padding, rows, strict=True)]),
        torch.tensor([[0] * gap + [1] * len(row) for gap, row in zip(padding, rows, strict=True)]),
    )
    found = score_shared(model.module, model.family, seen(model), prompt, TAILS)
    for index, row in enumerate(rows):
        one = seen(model)[index : index + 1]
        expected = score_naive(model.module, model.family, one, torch.tensor([row]), TAILS)
        torch.testing.assert_close(found[index : index + 1], expected, atol=1e-5, rtol=0)


def test_gradients_equal_naive_ones_and_finite_differences(model: VlmClassifier) -> None:
    images = pixels(2).requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0])
    (found,) = torch.autograd.grad((model.scores(images) * weights).sum(), images)
    (expected,) = torch.autograd.grad((model.naive_scores(images) * weights).sum(), images)
    torch.testing.assert_close(found, expected, atol=1e-6 + 1e-4 * float(expected.abs().max()), rtol=0)
    step = 1e-3 * torch.sign(expected)
    with torch.no_grad():
        ahead, behind = ((model.scores(images + sign * step) * weights).sum() for sign in (1, -1))
    assert float(ahead - behind) / 2 == pytest.approx(float((expected * step).sum()), rel=0.02)


def test_labels_of_one_token_need_no_second_pass(llava: VlmClassifier) -> None:
    with passes(llava.module) as counted:
        shared(llava, ((20,), (21,), (22,)))
    assert counted == [3 * len(llava.asked.tokens)]


def test_ten_labels_read_four_times_fewer_tokens(llava: VlmClassifier) -> None:
    assert [len(tail) for tail in llava.asked.tails] == [2] * 10
    with passes(llava.module) as few:
        llava.scores(pixels())
    with passes(llava.module) as many:
        llava.naive_scores(pixels())
    assert len(many) == 10
    assert sum(many) / sum(few) >= 4


def test_normalisations_are_their_definitions() -> None:
    scores, prior = torch.tensor([[-2.0, -6.0], [-1.0, -9.0]]), torch.tensor([-1.5, -8.0])
    torch.testing.assert_close(normalise(scores, (1, 3), "sum"), scores)
    torch.testing.assert_close(normalise(scores, (1, 3), "mean"), torch.tensor([[-2.0, -2.0], [-1.0, -3.0]]))
    torch.testing.assert_close(normalise(scores, (1, 3), "pmi", prior), torch.tensor([[-0.5, 2.0], [0.5, -1.0]]))


def test_patch_rows_are_those_of_the_processor() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, SIDE, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, do_resize=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    expected = processor(images=picture, return_tensors="np")["pixel_values"]
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    found = patch_rows((image - 0.5) / 0.25, 4, 2, 2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 2), st.integers(1, 3))
def test_every_pixel_is_in_the_rows_once_per_frame(
    images: int, down: int, across: int, patch: int, merge: int, frames: int
) -> None:
    shape = (images, 3, down * patch * merge, across * patch * merge)
    whole = torch.arange(float(np.prod(shape))).view(shape)
    rows = patch_rows(whole, patch, merge, frames)
    assert rows.shape == (images * down * across * merge**2, 3 * frames * patch**2)
    assert torch.equal(rows.flatten().sort().values, whole.flatten().repeat_interleave(frames))
