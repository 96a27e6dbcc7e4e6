"""The models of the comparison: of usual shape and size, with random weights; nothing is downloaded."""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    BertConfig,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from xvision.explain.catalogue import units_of
from xvision.explain.method import Asked, Settings
from xvision.models.huggingface import HuggingFaceClassifier, adapt, preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.llm.config import LlmImageClassifierConfig
from xvision.models.preprocessing import Preprocessing
from xvision.models.protocols import InputSpec

_RESNETS = {
    "ResNet-18": {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
    "ResNet-50": {"hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "layer_type": "bottleneck"},
}


def bert(
    image_size: int, *, layers: int = 4, width: int = 128, patch: int = 16, stem: str = "linear"
) -> HuggingFaceClassifier:
    """Grey image patches into a BERT body, the mean of its last tokens out: (size / patch)² tokens, two classes.

    stem: "linear" makes each token from its own patch, as vision transformers do; "conv" lets neighbours see each other.
    """
    body = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=4 * width, vocab_size=8,
        max_position_embeddings=260, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return _of_tokens(body, image_size, patch, {"attention": "bidirectional", "readout": "mean", "stem": stem})


def gpt(
    image_size: int, *, layers: int = 4, width: int = 128, patch: int = 16, stem: str = "linear"
) -> HuggingFaceClassifier:
    """The same with a GPT-2 body, in which a token depends on earlier ones alone, read at a token put last."""
    body = GPT2Config(
        n_embd=width, n_layer=layers, n_head=4, n_positions=260, vocab_size=8, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return _of_tokens(body, image_size, patch, {"attention": "causal", "readout": "last", "stem": stem})


def _of_tokens(body: PreTrainedConfig, size: int, patch: int, shape: dict[str, str]) -> HuggingFaceClassifier:
    torch.manual_seed(0)
    config = LlmImageClassifierConfig(
        text_config=body, image_size=size, patch_size=patch, id2label={0: "normal", 1: "lesion"},
        label2id={"normal": 0, "lesion": 1}, **shape,
    )  # fmt: skip
    module = livelier(LlmImageClassifier(config))
    return adapt(module, preprocessing_of(module.config), source="random weights")


def resnet(name: str) -> HuggingFaceClassifier:
    """An RGB residual network of 224 px with statistics in its normalisation layers, two classes."""
    torch.manual_seed(0)
    module = ResNetForImageClassification(ResNetConfig(**_RESNETS[name], num_labels=2)).eval()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0.0, 0.05)
                part.running_var.uniform_(0.5, 1.5)
    preprocessing = Preprocessing(InputSpec(3, 224, 224), 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return adapt(module, preprocessing, source="random weights")


def livelier(module: PreTrainedModel) -> PreTrainedModel:
    """Random weights so large that one patch more or less shows well above the rounding of the score."""
    with torch.no_grad():
        for weights in module.parameters():
            weights.add_(0.2 * torch.randn_like(weights))
    return module.eval()


def images(count: int, channels: int, size: int, seed: int = 0) -> torch.Tensor:
    """Pixels in [0, 1]: soft blobs under noise, so that maps are neither flat nor all noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((count, channels, 7, 7), dtype=np.float32))
    soft = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    noise = torch.from_numpy(rng.random((count, channels, size, size), dtype=np.float32))
    return (0.8 * soft + 0.2 * noise).clamp(0.02, 1.0)


def asked(model: HuggingFaceClassifier, pixels: torch.Tensor, settings: Settings | None = None) -> Asked:
    """The question every method is asked here: why the second class."""
    targets = torch.ones(len(pixels), dtype=torch.int64)
    return Asked(model, pixels, targets, tuple(range(len(pixels))), units_of(model), settings or Settings())
