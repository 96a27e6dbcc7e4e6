"""Small models with random weights, and the folders they are saved in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    IJepaConfig,
    IJepaForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from xvision.models.loading import quiet
from xvision.models.preprocessing import Preprocessing
from xvision.models.protocols import InputSpec

BODY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 8}
MLP = {"intermediate_size": 64}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
RGB = Preprocessing(InputSpec(3, 64, 64), 1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 64, "width": 64},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
LABELS: dict[str, Any] = {"id2label": {0: "normal", 1: "lesion"}, "label2id": {"normal": 0, "lesion": 1}}


def vit(**changes: Any) -> ViTForImageClassification:
    return ViTForImageClassification(ViTConfig(**{**BODY, **MLP, **LABELS, **changes}))


VISION: dict[str, Callable[[], PreTrainedModel]] = {
    "vit": vit,
    "deit": lambda: DeiTForImageClassification(DeiTConfig(**BODY, **MLP)),
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(**BODY)),
    "dinov2-registers": lambda: Dinov2WithRegistersForImageClassification(
        Dinov2WithRegistersConfig(**BODY, num_register_tokens=4)
    ),
    "ijepa": lambda: IJepaForImageClassification(IJepaConfig(**BODY, **MLP)),
    "clip": lambda: CLIPForImageClassification(
        CLIPConfig(vision_config={**BODY, **MLP}, text_config={**TEXT, **SPECIAL})
    ),
    "siglip": lambda: SiglipForImageClassification(
        SiglipConfig(vision_config={**BODY, **MLP}, text_config={**TEXT, **SPECIAL})
    ),
}
WITHOUT_MAP: dict[str, Callable[[], PreTrainedModel]] = {
    "resnet": lambda: ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    "swin": lambda: SwinForImageClassification(
        SwinConfig(image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    ),
}


def seeded(build: Callable[[], PreTrainedModel], seed: int = 0) -> PreTrainedModel:
    """Random weights large enough that a difference shows."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for weights in module.parameters():
                weights.add_(0.05 * torch.randn_like(weights))
    return module.eval()


def save_folder(folder: Path, module: PreTrainedModel, processor: dict[str, Any] | None = PROCESSOR) -> Path:
    with quiet():
        module.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def edit_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    data = {**json.loads((folder / name).read_text()), **changes}
    (folder / name).write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def pixels(count: int = 2, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, 64, 64, generator=torch.Generator().manual_seed(seed))
