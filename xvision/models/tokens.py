"""Which attention token is which patch of the image, for architectures whose token order and head have been checked.

A model that is not listed here (windowed, hybrid, convolutional, unknown) is no AttentionClassifier: a map from a wrong
token order looks as convincing as one from the right order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel

from xvision.models.llm.adapters import virtual_tokens
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.protocols import InputSpec, TokenMap

Reads = Literal["cls", "patches", "cls and patches", "readout"]
"""What the head is fed: one token, the mean of the patches, or the CLS token beside the mean of the patches."""


@dataclass(frozen=True)
class Layout:
    """Tokens in order: those before the image, rows × columns patches, those after it."""

    before: tuple[str, ...]
    rows: int
    columns: int
    patch: tuple[int, int]
    after: tuple[str, ...]
    reads: Reads
    causal: bool = False
    sources: int = 0
    """Tokens at the start that are only read: prefixes are keys and values in every layer, and attend to nothing but themselves."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.before, *("image",) * (self.rows * self.columns), *self.after)


def layout_of(module: PreTrainedModel, spec: InputSpec, *, text: int = 0) -> Layout | None:
    """The token layout of a model at an input size, or None when its attention cannot be read as a map.

    text: tokens of clinical text before the image, without padding.
    """
    if isinstance(module, LlmImageClassifier):
        return _language_model(module, text)
    describe = _VISION_MODELS.get(type(module).__name__)
    if describe is None:
        return None
    vision = getattr(module.config, "vision_config", module.config)
    before, reads = describe(vision)
    high, wide = _pair(vision.patch_size)
    return Layout(before, spec.height // high, spec.width // wide, (high, wide), (), reads)


def token_map(layout: Layout) -> TokenMap:
    """The map that rollout and the other attention methods use."""
    names = np.array(layout.names)
    image = np.flatnonzero(names == "image")
    count = len(names)
    allowed = np.tri(count, dtype=bool) if layout.causal else np.ones((count, count), dtype=bool)
    allowed[: layout.sources] = np.eye(count, dtype=bool)[: layout.sources]
    return TokenMap(image, _boxes(layout), _readout(layout, names, image), allowed, layout.names)


def _boxes(layout: Layout) -> np.ndarray:
    """Pixel boxes row by row: left, top, right, bottom."""
    high, wide = layout.patch
    row, column = (axis.ravel() for axis in np.indices((layout.rows, layout.columns)))
    return np.stack((column * wide, row * high, (column + 1) * wide, (row + 1) * high), axis=1)


def _readout(layout: Layout, names: np.ndarray, image: np.ndarray) -> np.ndarray:
    weights = np.zeros(len(names))
    if layout.reads == "readout":
        weights[-1] = 1.0
        return weights
    shares = {"cls": (1.0, 0.0), "patches": (0.0, 1.0), "cls and patches": (0.5, 0.5)}
    cls, patches = shares[layout.reads]
    weights[names == "cls"] = cls
    weights[image] = patches / len(image)
    return weights


def _language_model(module: LlmImageClassifier, text: int) -> Layout | None:
    config = module.config
    virtual = virtual_tokens(config.adapter)
    if not _attends_everywhere(config.text_config, config.tokens + virtual):
        return None
    side = config.image_size // config.patch_size
    last = config.readout == "last"
    return Layout(
        ("virtual",) * virtual + ("text",) * text, side, side, _pair(config.patch_size), ("readout",) if last else (),
        "readout" if last else "patches", causal=config.attention == "causal",
        sources=virtual if virtual and config.adapter["kind"] == "prefix" else 0,
    )  # fmt: skip


def _attends_everywhere(text: PreTrainedConfig, tokens: int) -> bool:
    """No layer without attention, and no window shorter than the sequence."""
    if not hasattr(text, "num_attention_heads"):
        return False
    window = getattr(text, "sliding_window", None)
    wide = window is None or window >= tokens
    kinds = set(getattr(text, "layer_types", None) or (("full_attention",) if wide else ("sliding_attention",)))
    return kinds == {"full_attention"} or (wide and kinds <= {"full_attention", "sliding_attention"})


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _registers(config: PreTrainedConfig) -> tuple[str, ...]:
    return ("register",) * config.num_register_tokens


# Read from each head's forward pass. The distillation token of DeiT is not read here, so it only stores, as registers do.
_VISION_MODELS: Mapping[str, Callable[[PreTrainedConfig], tuple[tuple[str, ...], Reads]]] = {
    "ViTForImageClassification": lambda _: (("cls",), "cls"),
    "DeiTForImageClassification": lambda _: (("cls", "register"), "cls"),
    "Dinov2ForImageClassification": lambda _: (("cls",), "cls and patches"),
    "Dinov2WithRegistersForImageClassification": lambda config: (("cls", *_registers(config)), "cls and patches"),
    "IJepaForImageClassification": lambda _: ((), "patches"),
    "CLIPForImageClassification": lambda _: (("cls",), "patches"),
    "SiglipForImageClassification": lambda _: ((), "patches"),
}
