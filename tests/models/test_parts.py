"""Networks as rows of parts, and weights shuffled part by part."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.adapting import SETTINGS, adapted
from tests.models.archives import Net, load, named, save
from tests.models.builders import PRESETS, RGB, VISION, WITHOUT_MAP, seeded
from xvision.errors import ModelError
from xvision.models.huggingface import adapt, preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.protocols import InputSpec, RandomisableClassifier

SMALL = InputSpec(3, 16, 16)


class Plain(nn.Module):
    """Filters one after the other, no blocks; the weights registered in an order of its own, and two of them tied."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.rand(1, 3, 1, 1))
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)
        )
        if tied:
            self.features[4].weight = self.features[2].weight

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(pixels * self.scale).mean((2, 3)))
        return logits


def network(module: nn.Module, spec: InputSpec = SMALL) -> NetworkClassifier:
    facts = Facts(("normal", "lesion"), False, spec, type(module).__name__, "here", "")
    return NetworkClassifier(module.eval(), facts, torch.device("cpu"))


def plain(*, tied: bool = True) -> Plain:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Plain(tied=tied)


def ours(module: LlmImageClassifier) -> Any:
    return adapt(module, preprocessing_of(module.config), source="here")


BUILD: dict[str, Callable[[], Any]] = {
    **{name: lambda build=build: adapt(seeded(build), RGB, source="here")
       for name, build in {**VISION, **WITHOUT_MAP}.items()},
    **{name: lambda name=name: ours(seeded(lambda: preset(name, image_size=16, seed=0))) for name in PRESETS},
    **{kind: lambda kind=kind: ours(adapted(kind)) for kind in SETTINGS},
    "plain": lambda: network(plain()),
}  # fmt: skip


def changed(before: Any, after: Any) -> set[str]:
    own = dict(after.module.named_parameters())
    return {name for name, weights in before.module.named_parameters() if not torch.equal(weights, own[name])}


@pytest.mark.parametrize("name", BUILD)
def test_every_parameter_is_in_exactly_one_part(name: str) -> None:
    model = BUILD[name]()
    assert isinstance(model, RandomisableClassifier)
    parts = model._known_parts()
    listed = [weights for inside in parts.values() for weights in inside]
    assert sorted(listed) == sorted(own for own, _ in model.module.named_parameters())
    assert len(set(listed)) == len(listed)
    assert model.parts == tuple(parts)
    assert len(parts) >= 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit", ("vit.embeddings", "vit.layers.0", "vit.layers.1", "vit.layernorm", "classifier")),
        ("tiny-gpt2", ("stem", "positions", "backbone.wte", "backbone.wpe", "backbone.h.0", "backbone.h.1", "backbone.ln_f",
                       "cls_norm", "classifier")),
        ("tiny-bert", ("stem", "positions", "backbone.embeddings", "backbone.encoder.layer.0", "backbone.encoder.layer.1",
                       "cls_norm", "classifier")),
        ("tiny-llama", ("stem", "positions", "backbone.embed_tokens", "backbone.layers.0", "backbone.layers.1",
                        "backbone.norm", "cls_norm", "classifier")),
        ("resnet", ("resnet.embedder", "resnet.encoder.stages.0", "resnet.encoder.stages.1", "classifier")),
        ("plain", ("own weights", "features.0", "features.2", "features.4", "classifier")),
    ],
)  # fmt: skip
def test_parts_stand_in_the_order_in_which_an_image_meets_them(name: str, expected: tuple[str, ...]) -> None:
    assert BUILD[name]().parts == expected


def test_residual_stages_of_several_blocks_are_split_into_them() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic")
    model = adapt(seeded(lambda: ResNetForImageClassification(config)), RGB, source="here")
    stages = [f"resnet.encoder.stages.{stage}.layers.{block}" for stage in (0, 1) for block in (0, 1)]
    assert [part.removesuffix(".layer") for part in model.parts] == ["resnet.embedder", *stages, "classifier"]


def test_exported_programs_have_the_parts_of_what_was_exported(tmp_path: Path) -> None:
    path = named(save(plain(tied=False), tmp_path / "net.pt2", dim=torch.export.Dim("batch"), size=(3, 16, 16)))
    model = load(path)
    assert model.parts == ("own weights", "features.0", "features.2", "features.4", "classifier")
    inside = [name for names in model._known_parts().values() for name in names]
    assert sorted(inside) == sorted(name for name, _ in model.module.named_parameters())
    twin = model.randomised(3, ["features.0"])
    assert changed(model, twin) == {"features.0.weight", "features.0.bias"}
    revived = pickle.loads(pickle.dumps(twin))  # noqa: S301  # our own bytes
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(revived.logits(images), twin.logits(images))
    assert not torch.equal(twin.logits(images), model.logits(images))


class Named(nn.Module):
    """Blocks with names of their own, in no list."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.s1 = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.s2 = nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.s2(self.s1(pixels)).mean((2, 3)))
        return logits


def test_without_lists_the_modules_side_by_side_are_the_parts() -> None:
    assert network(Net(), InputSpec(1, 8, 8)).parts == ("head",)
    assert network(Named()).parts == ("s1", "s2", "head")
    assert network(nn.Sequential(Named())).parts == ("0.s1", "0.s2", "0.head")


@pytest.mark.parametrize("name", ["vit", "tiny-gpt2", "resnet", "plain"])
def test_only_the_parts_asked_for_are_shuffled(name: str) -> None:
    model = BUILD[name]()
    for part in model.parts:
        twin, inside = model.randomised(1, [part]), set(model._known_parts()[part])
        assert changed(model, twin) <= inside
        values = dict(twin.module.named_parameters())
        for own, weights in model.module.named_parameters():
            assert torch.equal(values[own].flatten().sort().values, weights.flatten().sort().values)
    assert changed(model, model.randomised(1, [])) == set()


@pytest.mark.parametrize("name", ["vit", "tiny-gpt2", "plain"])
def test_a_part_is_shuffled_alike_alone_and_with_others(name: str) -> None:
    model = BUILD[name]()
    twin = model
    for part in model.parts:
        twin = twin.randomised(5, [part])
    whole = model.randomised(5)
    assert changed(whole, twin) == set() == changed(whole, model.randomised(5, model.parts))
    assert changed(model, whole) >= {own for own, weights in model.module.named_parameters() if weights.ndim > 1}
    assert changed(whole, model.randomised(6))


def test_tensors_of_equal_shape_have_orders_of_their_own() -> None:
    module = nn.Sequential(*(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)) for _ in range(3)))
    with torch.no_grad():
        for weights in module.parameters():
            weights.copy_(torch.arange(weights.numel()).view_as(weights))
    model = network(nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(1), module, nn.Linear(9, 2)), InputSpec(1, 9, 9))
    orders = [tuple(weights.flatten().tolist()) for weights in model.randomised(0).module.parameters()]
    assert len(set(orders)) == len(orders)


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ModelError, match=r"has no part 'vit\.layers\.2'.*vit\.layers\."):
        BUILD["vit"]().randomised(0, ["vit.layers.2"])
