"""Captured attention is what the model multiplies its values with, and its gradients are those of that product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models.builders import PRESETS, VISION, seeded
from tests.models.test_token_passes import images, wrapped
from xvision.errors import ModelError
from xvision.models.attention_mode import OpenAttention, attend
from xvision.models.llm.classifier import preset

FAMILIES: dict[str, Callable[[], Any]] = {
    **{name: lambda build=build: wrapped(seeded(build)) for name, build in VISION.items()},
    **{f"{name}/{mode}": lambda name=name, mode=mode: wrapped(
        seeded(lambda: preset(name, image_size=16, patch_size=4, attention=mode, seed=0)))
       for name in PRESETS for mode in ("causal", "bidirectional")},
}  # fmt: skip
VALUES = ("v_proj", "attention.self.value", "attn.c_attn")
LAST = ("o_proj", "out_proj", "attention.output.dense", "attn.c_proj")


@contextmanager
def projections(module: nn.Module) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """The values of each layer (B, T, heads × width), and what its last projection reads (B, T, heads × width)."""
    values: list[torch.Tensor] = []
    products: list[torch.Tensor] = []
    hooks: list[Any] = []
    for name, part in module.named_modules():
        if name.endswith(VALUES) and "head." not in name:
            fused = name.endswith("c_attn")
            hooks.append(part.register_forward_hook(
                lambda _, __, output, fused=fused: values.append((output.chunk(3, -1)[2] if fused else output).detach())
            ))  # fmt: skip
        elif name.endswith(LAST) and "head." not in name:
            hooks.append(part.register_forward_pre_hook(lambda _, given: products.append(given[0].detach())))
    try:
        yield values, products
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_times_values_are_what_the_layer_goes_on_with(name: str) -> None:
    model = FAMILIES[name]()
    pictures = images(model)
    expected = model.logits(pictures)
    model.embedded(pictures)  # the layers are found once, with a pass of their own
    with projections(model.module) as (values, products):
        found = model.attention(pictures)
    assert len(values) == len(products) == len(found.weights) == 2
    for weights, value, product in zip(found.weights, values, products, strict=True):
        heads = weights.shape[1]
        width = product.shape[2] // heads
        grouped = value.unflatten(2, (-1, width)).transpose(1, 2)
        own = grouped.repeat_interleave(heads // grouped.shape[1], dim=1)
        torch.testing.assert_close((weights @ own).transpose(1, 2).flatten(2), product, atol=1e-5, rtol=1e-5)
        assert (weights.sum(dim=-1) - 1).abs().max() <= 1e-5
    assert (found.logits - expected).abs().max() <= 1e-6
    assert torch.equal(model.logits(pictures), expected)


@pytest.mark.parametrize("name", PRESETS)
def test_causal_attention_never_looks_ahead_and_has_a_map_for_every_query_head(name: str) -> None:
    model = FAMILIES[f"{name}/causal"]()
    text = model.module.config.text_config
    for weights in model.attention(images(model)).weights:
        assert weights.triu(diagonal=1).count_nonzero() == 0
        assert weights.shape[1] == text.num_attention_heads == 4
    assert getattr(text, "num_key_value_heads", 4) == (4 if name in ("tiny-gpt2", "tiny-bert") else 2)


@contextmanager
def nudged(layer: int, change: torch.Tensor) -> Iterator[None]:
    """Torch's attention with ``change`` added to the weights of one layer."""
    original, calls = F.scaled_dot_product_attention, [0]

    def attend_changed(query: Any, key: Any, value: Any, **given: Any) -> torch.Tensor:
        given.pop("dropout_p", None)
        _, weights = attend(query, key, value, **given)
        if given.get("enable_gqa"):
            value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        calls[0] += 1
        return (weights + change if calls[0] == layer + 1 else weights) @ value

    nn.functional.scaled_dot_product_attention = attend_changed
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = original


@pytest.mark.parametrize("name", ["vit", "dinov2-registers", "tiny-llama/causal", "tiny-bert/bidirectional"])
def test_gradients_of_the_weights_are_finite_differences(name: str) -> None:
    model = FAMILIES[name]()
    pictures = images(model, 1)
    found = model.attention(pictures)
    slopes = torch.autograd.grad(found.logits[0, 1], found.weights)
    for layer, slope in enumerate(slopes):
        direction = slope / slope.norm() + 0.3 * F.normalize(torch.sign(slope.flip(1)), dim=(1, 2, 3))
        scores = []
        for step in (0.02, -0.02):
            with nudged(layer, step * direction):
                scores.append(float(model.logits(pictures)[0, 1]))
        assert (scores[0] - scores[1]) / 0.04 == pytest.approx(float((slope * direction).sum()), rel=2e-2)


def test_attention_that_is_not_given_is_an_error() -> None:
    model = FAMILIES["vit"]()
    whole = model.module.forward

    def forward(**given: Any) -> Any:
        output = whole(**given)
        output.attentions = ()
        return output

    model.module.forward = forward
    with pytest.raises(ModelError, match="gave attention for 0 of 2 layers: use gradient methods instead"):
        model.attention(images(model))
    assert model.module.config._attn_implementation == "sdpa"


# --- attention that torch computes in one step -------------------------------------------------------------------------


def heads(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GIVEN: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.7},
    "truth mask": {"attn_mask": heads(2, 1, 5, 7, seed=3) > -0.8},
    "added mask": {"attn_mask": heads(5, 7, seed=4)},
    "forbidding mask": {"attn_mask": torch.zeros(5, 7).masked_fill(heads(5, 7, seed=5) > 0.8, -torch.inf)},
    "groups": {"enable_gqa": True},
    "groups, causal": {"enable_gqa": True, "is_causal": True, "scale": 0.3},
}


class Attending(nn.Module):
    """A layer of other people's that calls torch's function."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.given = given

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, **self.given)


@pytest.mark.parametrize("name", GIVEN)
def test_open_attention_equals_torchs_with_its_gradients(name: str) -> None:
    given = GIVEN[name]
    groups = 2 if given.get("enable_gqa") else 4
    inputs = [heads(2, 4, 5, 8), heads(2, groups, 7, 8, seed=1), heads(2, groups, 7, 6, seed=2)]
    layer, mode = Attending(given), OpenAttention()
    theirs, ours = ([item.clone().requires_grad_() for item in inputs] for _ in range(2))
    expected = layer(*theirs)
    with mode:
        found = layer(*ours)
    assert (found - expected).abs().max() <= 5e-7
    (weights,) = mode.weights
    assert weights.shape == (2, 4, 5, 7)
    assert (weights.sum(dim=-1) - 1).abs().max() <= 1e-6
    (slope,) = torch.autograd.grad(found.square().sum(), weights, retain_graph=True)
    repeated = ours[2].repeat_interleave(4 // groups, dim=1)
    torch.testing.assert_close(slope, 2 * found @ repeated.transpose(-2, -1))
    slopes = [torch.autograd.grad(one.square().sum(), given) for one, given in ((found, ours), (expected, theirs))]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


def test_a_query_that_may_attend_to_nothing_gives_zero() -> None:
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[2] = False
    query = heads(1, 1, 5, 8).requires_grad_()
    given = (heads(1, 1, 7, 8, seed=1), heads(1, 1, 7, 8, seed=2))
    for kind in (mask, torch.zeros(5, 7).masked_fill(~mask, -torch.inf)):
        output, weights = attend(query, *given, kind)
        assert weights[0, 0, 2].count_nonzero() == output[0, 0, 2].count_nonzero() == 0
        assert (output - F.scaled_dot_product_attention(query, *given, kind)).abs().max() <= 5e-7
        (slope,) = torch.autograd.grad(output.sum(), query)
        assert slope.isfinite().all()


def test_attention_in_training_is_refused() -> None:
    with OpenAttention(), pytest.raises(ModelError, match="drops attention at random: put it in eval mode"):
        F.scaled_dot_product_attention(heads(1, 1, 5, 8), heads(1, 1, 5, 8), heads(1, 1, 5, 8), dropout_p=0.1)


@pytest.mark.parametrize("name", ["vit", "tiny-llama/causal", "tiny-gpt2/causal"])
def test_open_attention_sees_what_transformers_gives(name: str) -> None:
    model = FAMILIES[name]()
    pictures, mode = images(model), OpenAttention()
    with mode:
        logits = model.logits(pictures)
    found = model.attention(pictures)
    assert (logits - found.logits).abs().max() <= 2e-6
    for one, other in zip(mode.weights, found.weights, strict=True):
        assert (one - other).abs().max() <= 1e-6


def test_an_exported_program_is_seen() -> None:
    inputs = (heads(2, 4, 5, 8), heads(2, 4, 5, 8, seed=1), heads(2, 4, 5, 8, seed=2))
    program = torch.export.export(Attending({"is_causal": True}), inputs).module()
    mode = OpenAttention()
    with mode:
        found = program(*inputs)
    assert len(mode.weights) == 1
    assert (found - program(*inputs)).abs().max() <= 5e-7
