"""Vision transformers built as timm builds them: tokens, read-out and layers are looked at before they are believed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models.test_token_passes import blind_to
from xvision.errors import ModelError
from xvision.models.network import Facts
from xvision.models.preprocessing import Preprocessing
from xvision.models.protocols import InputSpec, TokenClassifier
from xvision.models.timm_attention import TimmAttentionClassifier, timm_classifier
from xvision.models.timm_model import TimmClassifier, _Normalised

SPEC = InputSpec(3, 16, 24)


class Block(nn.Module):
    """fused: attention in torch's one step, as timm prefers. window: tokens that attend to each other."""

    def __init__(self, *, fused: bool = True, window: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.fused, self.window = fused, window

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.proj(self.attend(self.norm1(tokens)))
        return tokens + self.mlp(self.norm2(tokens))

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.window:
            return torch.cat([self.within(part) for part in tokens.split(self.window, 1)], 1)
        return self.within(tokens)

    def within(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(tokens).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if self.fused:
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        weights = (query * 8**-0.5 @ key.transpose(-2, -1)).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).flatten(2)


class Patches(nn.Module):
    """turned: column by column, which is not the order that is expected."""

    def __init__(self, *, turned: bool = False, kernel: int = 4) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 16, kernel, stride=4, padding=(kernel - 4) // 2)
        self.turned = turned

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = self.proj(pixels)
        return (maps.transpose(2, 3) if self.turned else maps).flatten(2).transpose(1, 2)


class Vit(nn.Module):
    """With timm's names: ``blocks``, ``patch_embed``, ``num_prefix_tokens``, ``global_pool``, ``forward_head``."""

    def __init__(
        self, pool: str = "token", registers: int = 0, *, cls: bool = True, reads: str = "", kernel: int = 4, turned: bool = False,
        **block: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch_embed = Patches(turned=turned, kernel=kernel)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16)) if cls else None
        self.reg_token = nn.Parameter(torch.randn(1, registers, 16)) if registers else None
        self.num_prefix_tokens, self.global_pool, self.reads = cls + registers, pool, reads or pool
        self.pos_embed = nn.Parameter(torch.randn(1, 24, 16))
        self.blocks = nn.Sequential(Block(**block), Block(**block), Block(**block))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 2)

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embed(pixels) + self.pos_embed
        extra = [part.expand(len(tokens), -1, -1) for part in (self.cls_token, self.reg_token) if part is not None]
        return self.norm(self.blocks(torch.cat((*extra, tokens), 1)))

    def forward_head(self, tokens: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        pooled = tokens[:, 0] if self.reads == "token" else tokens[:, self.num_prefix_tokens :].mean(1)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(pixels))


def classifier(**changes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Vit(**changes)
        with torch.no_grad():
            for weights in network.parameters():
                weights.add_(0.1 * torch.randn_like(weights))
    return around(network)


def around(network: nn.Module) -> Any:
    module = _Normalised(network.eval(), Preprocessing(SPEC, 1.0, (0.5,) * 3, (0.25,) * 3))
    facts = Facts(("normal", "lesion"), False, SPEC, type(network).__name__, "here", "")
    return timm_classifier(module.eval(), facts, torch.device("cpu"))


def pictures(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(2))


KINDS: dict[str, dict[str, Any]] = {
    "cls": {}, "registers": {"registers": 3}, "mean": {"pool": "avg", "cls": False},
    "mean beside cls": {"pool": "avg"}, "softmax of its own": {"fused": False},
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_attention_states_and_tokens(name: str) -> None:
    model = classifier(**KINDS[name])
    assert isinstance(model, TimmAttentionClassifier)
    assert isinstance(model, TokenClassifier)
    found, logits = model.attention(pictures()), model.logits(pictures())
    count = len(model.token_map.names)
    assert (found.logits - logits).abs().max() <= 1e-6
    assert [weights.shape for weights in found.weights] == [(2, 2, count, count)] * 3
    assert all((weights.sum(dim=-1) - 1).abs().max() <= 1e-6 for weights in found.weights)
    for node in (*found.weights, *found.hidden):
        (slope,) = torch.autograd.grad(found.logits[:, 1].sum(), node, retain_graph=True)
        assert slope.abs().max() > 0
    assert (model.read_out(found.hidden[-1]) - logits).abs().max() <= 1e-6
    assert (model.from_embedded(model.embedded(pictures())) - logits).abs().max() <= 1e-6
    assert not model.convolutional
    first = model.module.network.blocks[0]
    query, key, _ = first.qkv(first.norm1(model.embedded(pictures()))).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(found.weights[0], (query @ key.transpose(-2, -1) / 8**0.5).softmax(-1))


def test_the_token_map_says_what_the_model_says() -> None:
    tokens = classifier(registers=2).token_map
    assert tokens.names == ("cls", "register", "register", *("image",) * 24)
    assert tokens.readout.tolist() == [1.0] + [0.0] * 26
    np.testing.assert_array_equal(tokens.boxes[[0, 1, 6]], [[0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8]])
    np.testing.assert_allclose(classifier(pool="avg").token_map.readout, [0.0] + [1 / 24] * 24)


def test_a_token_left_out_is_one_that_nobody_attends_to() -> None:
    model = classifier(registers=2)
    kept = torch.tensor([[place for place in range(27) if place not in (2, 9)]]).expand(2, -1)
    found = model.from_embedded(model.embedded(pictures())[:, kept[0]], kept)
    with blind_to([2, 9]):
        expected = model.logits(pictures())
    assert (found - expected).abs().max() <= 1e-5
    assert (found - model.logits(pictures())).abs().max() > 1e-4
    with pytest.raises(ModelError, match=r"Token 0 \(cls\) was left out but the head reads it"):
        model.from_embedded(model.embedded(pictures())[:, 1:], torch.arange(1, 27).expand(2, -1))


def test_positions_inside_the_layers_keep_every_token() -> None:
    model = classifier()
    model.module.network.rope = nn.Identity()
    tokens = model.embedded(pictures())
    model.from_embedded(tokens)
    with pytest.raises(ModelError, match="Vit has positions inside its layers, so that no token can be left out"):
        model.from_embedded(tokens[:, :-1], torch.arange(24).expand(2, -1))


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 5},  # windowed
        {"pool": "map"},  # a head that attends
        {"pool": "avg", "reads": "token"},  # the head reads something else than it says
        {"turned": True},  # patches in another order
        {"kernel": 6},  # patches that overlap, as of a stem
    ],
)
def test_other_models_have_no_attention(changes: dict[str, Any]) -> None:
    model = classifier(**changes)
    assert type(model) is TimmClassifier
    assert not any(hasattr(model, offer) for offer in ("attention", "token_map", "embedded"))


def test_hybrid_and_convolutional_models_have_no_attention() -> None:
    hybrid = Vit()
    hybrid.patch_embed.backbone = nn.Identity()
    assert type(around(hybrid)) is TimmClassifier

    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.fc(self.conv(pixels).mean((2, 3)))
            return logits

    model = around(Convolutional())
    assert type(model) is TimmClassifier
    assert model.convolutional
    assert model.features(pictures()).maps.shape == (2, 4, 14, 22)


def test_a_layer_that_gives_no_attention_is_an_error() -> None:
    model = classifier()
    model.module.network.blocks[1].window = 5
    with pytest.raises(ModelError, match=r"Vit gave attention \[\(5, 5\), \(25, 25\)\] in 7 of 3 layers for 25 tokens"):
        model.attention(pictures())


@pytest.mark.parametrize("name", ["cls", "registers"])
def test_against_timm_itself(name: str) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=2, img_size=(16, 24), patch_size=4, depth=2,
        embed_dim=24, num_heads=2, reg_tokens=4 if name == "registers" else 0,
    )  # fmt: skip
    model = around(network)
    assert isinstance(model, TimmAttentionClassifier)
    assert (model.attention(pictures()).logits - model.logits(pictures())).abs().max() <= 1e-5
