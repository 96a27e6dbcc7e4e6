"""The sequence of tokens read before the first layer, shortened, and sent on; heads put on the states of any layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.models.adapting import SETTINGS, adapted
from tests.models.builders import PRESETS, RGB, TEXTS, VISION, WITHOUT_MAP, pixels, seeded
from xvision.errors import ModelError
from xvision.models.huggingface import HuggingFaceAttentionClassifier, adapt, preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.models.llm.config import Stem
from xvision.models.protocols import TokenClassifier

LANGUAGE = [
    (name, attention, readout)
    for name in PRESETS
    for attention in ("causal", "bidirectional")
    for readout in ("last", "mean")
]


def language(name: str, **changes: Any) -> HuggingFaceAttentionClassifier:
    """A model of 16 patches whose weights are far from zero."""
    return wrapped(seeded(lambda: preset(name, **{"image_size": 16, "patch_size": 4, "seed": 0, **changes})))


def wrapped(module: PreTrainedModel) -> HuggingFaceAttentionClassifier:
    preprocessing = preprocessing_of(module.config) if isinstance(module, LlmImageClassifier) else RGB
    found = adapt(module, preprocessing, source="memory")
    assert isinstance(found, HuggingFaceAttentionClassifier)
    return found


def reading(name: str, readout: str = "last", texts: int = 1, stem: Stem = "conv") -> Any:
    module = seeded(
        lambda: preset(
            name, image_size=16, patch_size=4, readout=readout, text_tokens=6, texts=TEXTS, stem=stem, seed=0
        )
    )
    return wrapped(module).with_text(TEXTS[:texts])


def images(model: Any, count: int = 3) -> torch.Tensor:
    spec = model.input
    return torch.rand(count, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(1))


BUILD: dict[str, Callable[[], Any]] = {
    **{name: lambda build=build: wrapped(seeded(build)) for name, build in VISION.items()},
    **{"/".join(key): lambda key=key: language(key[0], attention=key[1], readout=key[2]) for key in LANGUAGE},
    **{f"{name}/text": lambda name=name: reading(name) for name in PRESETS},
    "tiny-qwen3/text/mean": lambda: reading("tiny-qwen3", "mean"),
    **{f"adapter/{kind}": lambda kind=kind: wrapped(adapted(kind)) for kind in SETTINGS},
    **{f"adapter/{kind}/{name}": lambda kind=kind, name=name: wrapped(adapted(kind, name))
       for kind in ("prefix", "prompt") for name in ("tiny-gpt2", "tiny-bert", "tiny-gemma3")},
}  # fmt: skip


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).detach().abs().max())


@pytest.mark.parametrize("name", BUILD)
def test_tokens_sent_on_unchanged_give_the_same_logits(name: str) -> None:
    model = BUILD[name]()
    pictures = images(model).requires_grad_()
    tokens = model.embedded(pictures)
    count = len(model.token_map.names)
    assert (tokens.shape[:2], tokens.dtype) == ((3, count), torch.float32)
    expected = model.logits(pictures)
    assert gap(model.from_embedded(tokens), expected) <= 1e-6
    every = torch.arange(count).expand(3, -1)
    assert gap(model.from_embedded(tokens, every), expected) <= 1e-6
    (through,) = torch.autograd.grad(model.from_embedded(tokens)[:, 1].sum(), pictures)
    (direct,) = torch.autograd.grad(expected[:, 1].sum(), pictures)
    torch.testing.assert_close(through, direct, atol=1e-5, rtol=1e-4)
    assert direct.abs().max() > 0


@pytest.mark.parametrize("name", BUILD)
def test_the_head_on_the_states_of_the_last_layer_gives_the_logits(name: str) -> None:
    model = BUILD[name]()
    pictures = images(model)
    found = model.attention(pictures)
    assert len(found.hidden) == len(found.weights) == 2
    count = len(found.tokens.names)
    assert all(state.shape[:2] == (3, count) and state.requires_grad for state in found.hidden)
    assert gap(model.read_out(found.hidden[-1]), found.logits) <= 1e-6
    assert gap(model.read_out(found.hidden[0]), found.logits) > 1e-4
    assert gap(model.read_out(model.embedded(pictures)), model.read_out(found.hidden[0])) > 1e-4
    for node in (*found.hidden, *found.weights):
        (slope,) = torch.autograd.grad(found.logits[:, 1].sum(), node, retain_graph=True)
        assert slope.abs().max() > 0
    score = model.read_out(found.hidden[0])[:, 1].sum()
    (slope,) = torch.autograd.grad(score, found.hidden[0], retain_graph=True)
    assert slope.abs().max() > 0


# --- leaving out ------------------------------------------------------------------------------------------------------


@contextmanager
def blind_to(gone: list[int]) -> Iterator[None]:
    """No query attends to these keys: an attention of our own in the place of torch's."""
    original = F.scaled_dot_product_attention

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        scores[..., gone] = -torch.inf
        return scores.softmax(dim=-1).nan_to_num() @ value  # what is gone itself may have nothing left to attend to

    nn.functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = original


def droppable(model: Any) -> list[int]:
    """Two tokens that the head does not read."""
    tokens = model.token_map
    free = [place for place in np.flatnonzero(tokens.readout == 0) if tokens.names[place] != "virtual"]
    return [int(free[0]), int(free[-1])] if free else []


DROPPING = [name for name in BUILD if droppable(BUILD[name]())]


@pytest.mark.parametrize("name", DROPPING)
def test_a_token_left_out_is_one_that_nobody_attends_to(name: str) -> None:
    model = BUILD[name]()
    pictures, gone = images(model), droppable(model)
    tokens = model.embedded(pictures)
    kept = torch.tensor([[place for place in range(tokens.shape[1]) if place not in gone]]).expand(3, -1)
    shorter = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
    found = model.from_embedded(shorter, kept)
    with blind_to(gone):
        expected = model.logits(pictures)
    assert gap(found, expected) <= 1e-5
    assert gap(found, model.logits(pictures)) > 1e-5


def test_models_with_a_token_to_spare_are_the_expected_ones() -> None:
    """Where the head reads the mean of all patches, only other tokens can be left out."""
    assert {name for name in VISION if name in DROPPING} == {"vit", "deit", "dinov2-registers", "clip"}
    assert "tiny-qwen3/causal/mean" not in DROPPING
    assert "tiny-qwen3/text/mean" in DROPPING
    assert sum("/last" in name for name in DROPPING) == 10


@pytest.mark.parametrize("name", PRESETS)
def test_a_language_model_without_a_token_is_the_one_that_masks_it(name: str) -> None:
    """Transformers' own mask, with the positions that all tokens have."""
    model = language(name)
    pictures = images(model)
    tokens, gone = model.embedded(pictures), [3, 9]
    kept = torch.tensor([[place for place in range(17) if place not in gone]]).expand(3, -1)
    module = model.module
    mask = torch.ones(3, 17, dtype=torch.long)
    mask[:, gone] = 0
    words = module._tokens(model.preprocessing.normalise(pictures), None)
    body = module.backbone(inputs_embeds=words, attention_mask=mask, position_ids=torch.arange(17)[None])
    expected = module.decide(body.last_hidden_state)
    assert gap(model.from_embedded(tokens[:, kept[0]], kept), expected) <= 1e-5


def test_each_image_may_keep_its_own_tokens() -> None:
    for model in (language("tiny-llama"), wrapped(seeded(VISION["vit"]))):
        pictures = images(model, 2)
        tokens = model.embedded(pictures)
        count = tokens.shape[1]
        kept = torch.tensor(
            [[p for p in range(count) if p not in (4, 5)], [p for p in range(count) if p not in (7, 9)]]
        )
        shorter = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        both = model.from_embedded(shorter, kept)
        single = [model.from_embedded(shorter[row : row + 1], kept[row : row + 1]) for row in range(2)]
        assert gap(both, torch.cat(single)) <= 1e-5


@pytest.mark.parametrize("name", PRESETS)
def test_what_comes_before_a_token_left_out_does_not_notice_in_a_causal_model(name: str) -> None:
    model = language(name)
    tokens = model.embedded(images(model))
    kept = torch.tensor([[*range(15), 16]]).expand(3, -1)
    states: list[list[torch.Tensor]] = []
    for given, places in ((tokens, None), (tokens[:, kept[0]], kept)):
        seen: list[torch.Tensor] = []
        layers = model.module.get_submodule(model._layers_name)
        hooks = [
            layer.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].detach()))
            for layer in layers
        ]
        model.from_embedded(given, places)
        for hook in hooks:
            hook.remove()
        states.append(seen)
    for whole, short in zip(*states, strict=True):
        assert gap(whole[:, :15], short[:, :15]) <= 1e-6
    assert gap(states[0][1][:, 16], states[1][1][:, 15]) > 1e-5


@pytest.mark.parametrize("name", ["tiny-qwen3/causal/last", "vit", "adapter/prefix"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = BUILD[name]()
    pictures = images(model)
    before, hooks = model.logits(pictures), hooks_of(model.module)
    tokens = model.embedded(pictures)
    model.read_out(tokens)
    model.from_embedded(tokens)
    for call in (
        lambda: model.embedded(pictures[:, :, 1:]),
        lambda: model.from_embedded(tokens[:, 1:]),
        lambda: model.read_out(tokens[..., :-1]),
        lambda: model.from_embedded(tokens[..., :-1]),
    ):
        with pytest.raises((ModelError, RuntimeError)):
            call()
    assert torch.equal(model.logits(pictures), before)
    assert hooks_of(model.module) == hooks
    assert all(weights.grad is None and not weights.requires_grad for weights in model.module.parameters())


def hooks_of(module: nn.Module) -> list[tuple[int, int, bool]]:
    return [
        (len(part._forward_hooks), len(part._forward_pre_hooks), "forward" in vars(part)) for part in module.modules()
    ]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([*range(16)], r"Token 16 \(readout\) was left out but the head reads it: keep it"),
        ([1, 0, *range(2, 16)], "must ascend within 0 to 16"),
        ([0, 0, *range(2, 16)], "must ascend within 0 to 16"),
        ([-1, *range(2, 17)], "must ascend within 0 to 16"),
        ([*range(2, 17), 17], "must ascend within 0 to 16"),
        ([*range(3, 17)], r"shape \(1, 14\); \(1, 16\) tokens need int64"),
    ],
)
def test_places_that_cannot_be_are_refused(kept: list[int], message: str) -> None:
    model = language("tiny-qwen3")
    tokens = model.embedded(images(model, 1))
    with pytest.raises(ModelError, match=message):
        model.from_embedded(tokens[:, :16], torch.tensor([kept]))


def test_tokens_of_another_number_or_kind_are_refused() -> None:
    model = language("tiny-qwen3")
    tokens = model.embedded(images(model, 1))
    with pytest.raises(ModelError, match=r"shape \(1, 16, 64\); this model has \(B, 17, D\), or say which are kept"):
        model.from_embedded(tokens[:, :16])
    with pytest.raises(ModelError, match=r"shape \(17, 64\); this model has"):
        model.read_out(tokens[0])
    with pytest.raises(ModelError, match=r"are torch\.bool of shape \(1, 17\)"):
        model.from_embedded(tokens, torch.ones(1, 17, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_learned_tokens_belong_to_the_model(kind: str) -> None:
    model = wrapped(adapted(kind))
    tokens = model.embedded(images(model, 1))
    assert model.token_map.names[:3] == ("virtual",) * 3
    kept = torch.arange(1, tokens.shape[1])[None]
    with pytest.raises(ModelError, match=r"Token 0 \(virtual\) was left out but it belongs to every layer"):
        model.from_embedded(tokens[:, 1:], kept)


def test_texts_of_different_lengths_have_no_one_sequence() -> None:
    model = reading("tiny-qwen3", texts=3)
    for call in (lambda: model.token_map, lambda: model.embedded(images(model)), lambda: model.read_out(None)):
        with pytest.raises(ModelError, match="different lengths: bind one text to read attention or tokens"):
            call()


def test_a_body_that_counts_positions_by_itself_cannot_lose_a_token() -> None:
    model = language("tiny-qwen3")
    tokens = model.embedded(images(model, 1))
    body, whole = model.module.backbone, model.module.backbone.forward

    def forward(inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        return whole(inputs_embeds=inputs_embeds, attention_mask=attention_mask)

    body.forward = forward
    assert gap(model.from_embedded(tokens), model.logits(images(model, 1))) <= 1e-6
    kept = torch.arange(1, 17)[None]
    with pytest.raises(ModelError, match="counts positions by itself, so that no token can be left out"):
        model.from_embedded(tokens[:, 1:], kept)


def test_layers_that_are_not_found_are_said_so() -> None:
    module = seeded(VISION["vit"])
    model = wrapped(module)
    module.vit.layers[1].register_forward_hook(lambda _, __, output: output[:, :, None])
    with pytest.raises(ModelError, match="states between the layers of ViTForImageClassification cannot be read"):
        model._layers()


@pytest.mark.parametrize("name", WITHOUT_MAP)
def test_models_without_a_token_map_do_not_offer_it(name: str) -> None:
    model = adapt(seeded(WITHOUT_MAP[name]), RGB, source="memory")
    assert not any(hasattr(model, offer) for offer in ("token_map", "embedded", "from_embedded", "read_out"))
    assert not isinstance(model, TokenClassifier)


def test_models_with_one_are_token_classifiers() -> None:
    assert isinstance(wrapped(seeded(VISION["vit"])), TokenClassifier)
    assert pixels().shape[1] == 3
