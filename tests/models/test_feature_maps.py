"""The last feature map of convolutional networks of every form, and refusals of all others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BitConfig,
    BitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    FocalNetConfig,
    FocalNetForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    MobileNetV1Config,
    MobileNetV1ForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileViTConfig,
    MobileViTForImageClassification,
    PoolFormerConfig,
    PoolFormerForImageClassification,
    PreTrainedModel,
    RegNetConfig,
    RegNetForImageClassification,
)

from tests.models.archives import Net, load, named, save
from tests.models.builders import RGB, VISION, WITHOUT_MAP, pixels, seeded
from tests.models.test_parts import network, plain
from xvision.errors import ModelError
from xvision.models.feature_maps import find_map
from xvision.models.huggingface import adapt
from xvision.models.protocols import FeatureClassifier, InputSpec

TWO: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
FOUR: dict[str, Any] = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
EFFICIENT: dict[str, Any] = {
    "width_coefficient": 0.25, "hidden_dim": 320, "in_channels": [32, 16], "out_channels": [16, 24], "kernel_sizes": [3, 3],
    "strides": [1, 2], "num_block_repeats": [1, 1], "expand_ratios": [1, 6], "depthwise_padding": [],
}  # fmt: skip
CONVOLUTIONAL: dict[str, tuple[Callable[[], PreTrainedModel], tuple[int, ...]]] = {
    "resnet": (WITHOUT_MAP["resnet"], (16, 8, 8)),
    "convnext": (lambda: ConvNextForImageClassification(ConvNextConfig(**TWO, num_stages=2)), (16, 8, 8)),
    "convnextv2": (lambda: ConvNextV2ForImageClassification(ConvNextV2Config(**TWO, num_stages=2)), (16, 8, 8)),
    "efficientnet": (lambda: EfficientNetForImageClassification(EfficientNetConfig(**EFFICIENT)), (320, 16, 16)),
    "mobilenet-v1": (
        lambda: MobileNetV1ForImageClassification(MobileNetV1Config(depth_multiplier=0.25, min_depth=4)), (256, 2, 2)
    ),
    "mobilenet-v2": (
        lambda: MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.25, depth_divisible_by=4)),
        (1280, 2, 2),
    ),
    "regnet": (lambda: RegNetForImageClassification(RegNetConfig(embedding_size=8, **TWO, groups_width=4)), (16, 8, 8)),
    "bit": (
        lambda: BitForImageClassification(BitConfig(embedding_size=8, hidden_sizes=[32, 64], depths=[1, 1], num_groups=4)),
        (64, 8, 8),
    ),
    "poolformer": (lambda: PoolFormerForImageClassification(PoolFormerConfig(**FOUR)), (16, 2, 2)),
}  # fmt: skip
ATTENDING: dict[str, Callable[[], PreTrainedModel]] = {
    "vit": VISION["vit"],
    "swin": WITHOUT_MAP["swin"],
    "levit": lambda: LevitForImageClassification(
        LevitConfig(
            image_size=64, hidden_sizes=[16, 32, 32], num_attention_heads=[1, 2, 2], depths=[1] * 3, key_dim=[8] * 3
        )
    ),
    "mobilevit": lambda: MobileViTForImageClassification(
        MobileViTConfig(
            image_size=64,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32],
            num_attention_heads=2,
        )
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_networks_of_transformers(name: str) -> None:
    build, shape = CONVOLUTIONAL[name]
    model, pictures = adapt(seeded(build), RGB, source="here"), pixels(3)
    assert isinstance(model, FeatureClassifier)
    assert model.convolutional
    with torch.no_grad():  # the map is the start of a graph whatever the caller's mode
        found, expected = model.features(pictures), model.logits(pictures)
    assert found.maps.shape == (3, *shape)
    assert (found.logits - expected).abs().max() <= 1e-6
    (slope,) = torch.autograd.grad(found.logits[:, 1].sum(), found.maps)
    assert all(own.isfinite().all() and own.abs().max() > 0 for own in slope)
    assert all(weights.grad is None and not weights.requires_grad for weights in model.module.parameters())
    assert not model.logits(pictures).requires_grad
    single = torch.cat([model.features(pictures[[place]]).maps for place in range(3)])
    torch.testing.assert_close(found.maps, single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ATTENDING)
def test_networks_that_attend_are_not_convolutional(name: str) -> None:
    model = adapt(seeded(ATTENDING[name]), RGB, source="here")
    assert not model.convolutional
    with pytest.raises(
        ModelError, match=r"has no convolutional feature map: it attends, and attention lets every place"
    ):
        model.features(pixels(1))
    assert hasattr(model, "attention") == (name == "vit")


def test_patches_in_a_sequence_are_no_map() -> None:
    config = FocalNetConfig(
        image_size=64, embed_dim=8, depths=[1, 1], hidden_sizes=[8, 16], focal_levels=[1, 1], focal_windows=[3, 3]
    )
    model = adapt(seeded(lambda: FocalNetForImageClassification(config)), RGB, source="here")
    assert not model.convolutional
    with pytest.raises(ModelError, match="it goes on with patches as a sequence of tokens"):
        model.features(pixels(1))


# --- plain networks ---------------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """Filters, an activation in place, the mean of the map, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.filters = nn.Conv2d(3, 6, 3, stride=2)
            self.head = nn.Linear(6, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.relu(self.filters(images), inplace=True)
        logits: torch.Tensor = self.head(maps.mean((2, 3)))
        return logits


def small(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_gradient_of_a_pooled_map_is_its_weight_over_its_size() -> None:
    """Closed form: logit = w · mean(map) + b."""
    module = Pooled()
    found = network(module).features(small())
    torch.testing.assert_close(found.maps, module.filters(small()).relu())
    for target in (0, 1):
        (slope,) = torch.autograd.grad(found.logits[:, target].sum(), found.maps, retain_graph=True)
        expected = module.head.weight[target].view(1, 6, 1, 1).expand(2, 6, 7, 7) / 49
        torch.testing.assert_close(slope, expected)


def test_exported_programs_have_the_map_of_what_was_exported(tmp_path: Path) -> None:
    free, module = torch.export.Dim("batch"), plain(tied=False)
    found = load(named(save(module, tmp_path / "free.pt2", dim=free, size=(3, 16, 16)))).features(small(3))
    expected = network(module).features(small(3))
    torch.testing.assert_close(found.maps, expected.maps)
    slopes = [torch.autograd.grad(one.logits[:, 1].sum(), one.maps)[0] for one in (found, expected)]
    torch.testing.assert_close(*slopes)
    fixed = load(named(save(module, tmp_path / "fixed.pt2", size=(3, 16, 16))))
    assert not fixed.convolutional
    with pytest.raises(ModelError, match="exported for a fixed number of images: export it with a free one"):
        fixed.features(small())


class Sidetracked(Pooled):
    """Computes a second map that nothing reads, after the one that is read."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.filters(images)
        self.unread = maps * 2.0
        logits: torch.Tensor = self.head(maps.mean((2, 3)))
        return logits


def test_a_map_that_nothing_reads_is_not_the_last() -> None:
    module = Sidetracked()
    model = network(module)
    assert find_map(model.logits, small(1)).place == 0
    torch.testing.assert_close(model.features(small()).maps, module.filters(small()))


class Branched(Pooled):
    """Two maps that the head reads side by side, behind one that both come from."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.filters(images)
        one, other = maps.relu(), (-maps).relu()
        logits: torch.Tensor = self.head(one.mean((2, 3)) - 2.0 * other.mean((2, 3)))
        return logits


def test_a_branch_is_not_the_map_that_the_logits_follow_from() -> None:
    module = Branched()
    torch.testing.assert_close(network(module).features(small()).maps, module.filters(small()))


class Mixer(Pooled):
    """Patches as tokens that linear layers mix."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(49, 49)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.mix(self.filters(images).flatten(2))
        logits: torch.Tensor = self.head(tokens.mean(2))
        return logits


class LinearAttention(Pooled):
    """Attention without softmax, on a map."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.filters(images)
        flat = maps.flatten(2)
        logits: torch.Tensor = self.head((flat @ flat.transpose(1, 2) @ flat).view_as(maps).mean((2, 3)))
        return logits


class Heads(Pooled):
    """Torch's own attention layer behind filters."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.filters(images).flatten(2).transpose(1, 2)
        logits: torch.Tensor = self.head(self.attend(tokens, tokens, tokens)[0].mean(1))
        return logits


class Unread(Pooled):
    """Filters whose map nothing reads."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.filters(images)
        logits: torch.Tensor = self.head(images.mean(3).flatten(1)[:, :6])
        return logits


class ChannelsLast(Pooled):
    """Pools a map whose channels come last, behind one whose channels come first."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(6, 40)
        self.head = nn.Linear(40, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.widen(self.filters(images).permute(0, 2, 3, 1)).mean((1, 2)))
        return logits


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Mixer(), "it goes on with patches as a sequence of tokens"),
        (LinearAttention(), "it attends, and attention lets every place know of others"),
        (Heads(), "it attends, and attention lets every place know of others"),
        (Unread(), "the logits depend on no one map alone"),
    ],
)
def test_other_networks_have_no_map(module: nn.Module, reason: str) -> None:
    model = network(module)
    assert not model.convolutional
    with pytest.raises(ModelError, match=f"{type(module).__name__} has no convolutional feature map: {reason}"):
        model.features(small())


def test_a_network_without_filters_has_no_map() -> None:
    model = network(Net(), InputSpec(1, 8, 8))
    with pytest.raises(
        ModelError, match="Net has no convolutional feature map: its layers give no two-dimensional map"
    ):
        model.features(torch.rand(1, 1, 8, 8))


def test_a_map_with_channels_last_is_not_taken_for_one_with_channels_first() -> None:
    assert network(ChannelsLast()).features(small()).maps.shape == (2, 6, 7, 7)


def test_a_network_without_gradients_has_no_map() -> None:
    model = network(Pooled())
    model.access = "black-box"
    assert not model.convolutional
    with pytest.raises(ModelError, match="no gradient passes through it"):
        model.features(small())


def test_a_map_that_is_not_met_again_is_said_so() -> None:
    model = network(Pooled())
    assert model.convolutional
    model._map = model._map._replace(place=9)
    with pytest.raises(ModelError, match="feature map of Pooled was not met again in another pass"):
        model.features(small())


def test_shuffled_weights_keep_the_map() -> None:
    model = network(Pooled())
    found, twin = model.features(small()), model.randomised(0).features(small())
    assert twin.maps.shape == found.maps.shape
    assert (twin.maps - found.maps).abs().max() > 1e-3
