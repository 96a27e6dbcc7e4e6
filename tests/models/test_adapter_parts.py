"""Virtual tokens and bottlenecks: where they enter a backbone, and that nothing else moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.models.adapting import MODES, PRESETS, adapted, gap, images, logits
from xvision.models.llm.adapter_parts import Bottleneck
from xvision.models.llm.adapters import adapter_weights
from xvision.models.llm.classifier import LlmImageClassifier, preset


@pytest.fixture(autouse=True)
def same_numbers_in_every_run() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", PRESETS)
def test_bottlenecks_stand_behind_attention_and_feed_forward_and_start_as_nothing(name: str) -> None:
    model = adapted("bottleneck", name, moved=False)
    places = [part for part, found in model.backbone.named_modules() if isinstance(found, Bottleneck)]
    endings = {
        "tiny-gpt2": ("attn.c_proj.bottleneck", "mlp.c_proj.bottleneck"),
        "tiny-bert": ("attention.output.dense.bottleneck", "output.dense.bottleneck"),
    }.get(name, ("self_attn.o_proj.bottleneck", "mlp.down_proj.bottleneck"))
    assert len(places) == 4
    assert all(place.endswith(endings[number % 2]) for number, place in enumerate(places))
    assert gap(logits(model), logits(preset(name, image_size=16, seed=0))) == 0.0
    with torch.no_grad():
        for weights in adapter_weights(model.backbone):
            weights.add_(0.3 * torch.randn_like(weights))  # a constant would not get through a LayerNorm
    assert gap(logits(model), logits(preset(name, image_size=16, seed=0))) > 1e-2


def test_bottleneck_is_down_gelu_up_and_added() -> None:
    linear = next(part for part in adapted("bottleneck").backbone.modules() if hasattr(part, "bottleneck"))
    weights, down, up = linear.weight, linear.bottleneck.down, linear.bottleneck.up
    entered = torch.randn(2, weights.shape[1])
    plain = entered @ weights.T
    narrow = F.gelu(plain @ down.weight.T + down.bias)
    assert narrow.shape == (2, 5)
    assert gap(linear(entered), plain + narrow @ up.weight.T + up.bias) < 1e-5


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", PRESETS)
def test_prompt_equals_the_backbone_given_the_longer_sequence(name: str, attention: Any, implementation: str) -> None:
    model = adapted("prompt", name, attention=attention)
    plain = preset(name, image_size=16, attention=attention, seed=0)
    model.set_attn_implementation(implementation)
    plain.set_attn_implementation(implementation)
    tokens = torch.randn(2, 5, 64)
    rows = model.backbone.virtual.embedding.weight
    given = torch.cat((rows.expand(2, -1, -1), tokens), dim=1)
    mask, places = torch.ones(2, 8, dtype=torch.long), torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4]])
    with torch.no_grad():
        expected = plain.backbone(inputs_embeds=given, attention_mask=mask, position_ids=places).last_hidden_state
        found = model.backbone(inputs_embeds=tokens).last_hidden_state
    assert found.shape == (2, 5, 64)
    assert gap(found, expected[:, 3:]) < 1e-6
    assert gap(found, plain.backbone(inputs_embeds=tokens).last_hidden_state) > 1e-2


def first_attention(model: LlmImageClassifier) -> torch.Tensor:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found: torch.Tensor = model(images(), output_attentions=True).attentions
    return found


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", PRESETS)
def test_virtual_tokens_are_seen_by_all_and_leave_the_others_in_their_places(
    name: str, attention: Any, kind: str
) -> None:
    """In the first layer, tokens look at each other as they did without virtual ones, but for the share these take."""
    plain = first_attention(preset(name, image_size=16, attention=attention, seed=0))
    found = first_attention(adapted(kind, name, attention=attention))
    assert found[0].shape == (2, 4, 8, 8)
    own = found[0][..., 3:, 3:]
    assert gap(own / own.sum(dim=-1, keepdim=True), plain[0]) < 1e-5
    assert (found[-1][..., 3:, :3] > 0).all()
    if kind == "prefix":
        assert torch.equal(found[0][..., :3, :], torch.eye(3, 8).expand(2, 4, 3, 8))
    else:
        assert bool((found[-1][..., :3, 3:] > 0).any()) == (attention == "bidirectional")


@pytest.mark.parametrize("name", PRESETS)
def test_prefix_gives_keys_and_values_of_every_layer_and_head(name: str) -> None:
    """A score is linear in its key: how often a token is read, over how often one with a key of zeros is, is exp(q·k)."""
    model = adapted("prefix", name)
    heads = 4 if name in ("tiny-gpt2", "tiny-bert") else 2
    stored = model.backbone.virtual.embedding.weight.data.view(3, 2, 2, heads, 16)  # token, layer, key or value, head
    stored[:] = 0.0
    base = logits(model)
    for layer, head in ((0, 0), (0, heads - 1), (1, 0), (1, heads - 1)):
        stored[0, layer, 1, head] = 2.0
        assert gap(logits(model), base) > 1e-4
        stored[0, layer, 1, head] = 0.0
    key = torch.randn(16)
    stored[2, -1, 0, 1], stored[1, -1, 0, 1] = 2 * key, key
    scores = first_attention(model)[-1][:, :, 3:, :3].log()
    once, twice = scores[..., 1] - scores[..., 0], scores[..., 2] - scores[..., 0]
    assert gap(twice, 2 * once) < 1e-5
    read = (1,) if heads == 4 else (2, 3)  # with two heads of keys, queries 2 and 3 share the second
    assert tuple(head for head in range(4) if once[:, head].abs().max() > 1e-2) == read
    assert tuple(head for head in range(4) if once[:, head].any()) == read


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_virtual_tokens_stand_before_a_text_and_its_padding_changes_nothing(kind: str) -> None:
    for name in ("tiny-qwen3", "tiny-gpt2", "tiny-bert"):
        model = adapted(kind, name, text_tokens=4, texts=["fever and cough"])
        short = torch.tensor([[2, 3], [3, 1]])
        long = torch.cat((torch.full((2, 2), -1), short), dim=1)
        with torch.no_grad():
            read = model(images(), text=short).logits
            assert gap(model(images(), text=long).logits, read) < 1e-5
            assert gap(logits(model), read) > 1e-4


def test_a_new_prefix_is_small_and_its_tokens_differ() -> None:
    """Tokens that start alike would stay alike; large ones would drown what a pretrained body attends to."""
    rows = adapted("prefix", moved=False).backbone.virtual.embedding.weight
    assert 0.015 < rows.std() < 0.025
    assert gap(rows[0], rows[1]) > 0.01
