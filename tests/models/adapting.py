"""Tiny classifiers with adapters whose weights are moved away from where they do nothing."""

from __future__ import annotations

from typing import Any

import torch

from xvision.models.llm.adapters import adapter_weights, attach, read_adapter
from xvision.models.llm.classifier import LlmImageClassifier, preset

PRESETS = ("tiny-qwen3", "tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-bert")
MODES: tuple[Any, ...] = ("causal", "bidirectional")
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 3, "alpha": 6.0, "dropout": 0.0, "targets": []},
    "dora": {"kind": "dora", "rank": 3, "alpha": 6.0, "dropout": 0.0, "targets": []},
    "adalora": {"kind": "adalora", "rank": 2, "alpha": 8.0, "dropout": 0.0, "targets": []},
    "ia3": {"kind": "ia3", "targets": []},
    "prefix": {"kind": "prefix", "virtual_tokens": 3},
    "prompt": {"kind": "prompt", "virtual_tokens": 3},
    "bottleneck": {"kind": "bottleneck", "width": 5},
}
MERGED = ("lora", "dora", "adalora", "ia3")
KEPT = ("prefix", "prompt", "bottleneck")


def images(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def adapted(kind: str, name: str = "tiny-qwen3", *, moved: bool = True, **changes: Any) -> LlmImageClassifier:
    """A tiny classifier with an adapter, its weights moved away from where they do nothing."""
    model = preset(name, **{"image_size": 16, "seed": 0, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        attach(model.backbone, read_adapter(SETTINGS[kind]))
        model.config.adapter = dict(SETTINGS[kind])
        with torch.no_grad():
            for weights in adapter_weights(model.backbone) if moved else ():
                weights.add_(0.3 * torch.randn_like(weights))
    return model.eval()


@torch.no_grad()
def logits(model: LlmImageClassifier, pixels: torch.Tensor | None = None) -> torch.Tensor:
    found: torch.Tensor = model(images() if pixels is None else pixels).logits
    return found


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).detach().abs().max())
