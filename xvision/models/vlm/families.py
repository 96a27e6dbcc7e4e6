"""Kinds of vision-language models: how an image enters the prompt, and what the model is given beside the tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from xvision.errors import ModelError
from xvision.models.folder import read_json
from xvision.models.preprocessing import Preprocessing, read_preprocessing
from xvision.models.vlm.scoring import Prompt

SIDE = 448
"""Pixels each way where a processor accepts any size in a range: four times the area of the usual 224."""
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_QWEN_KEYS = frozenset({"patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels"})


@dataclass(frozen=True)
class ImageFamily:
    """LLaVA and its like: one image token in the text stands for all, pixels go in as (B, C, H, W).

    placeholder: the text that a chat template puts where the image is. image: the number of the token that image
    features replace.
    """

    image: int
    placeholder: str

    @property
    def plain(self) -> str:
        """The image in a prompt that no chat template writes."""
        return self.placeholder

    def expanded(self, count: int) -> str:
        """What stands in the placeholder's stead before the text is cut into tokens."""
        return self.placeholder * count

    def image_inputs(self, pixels: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel_values": pixels}

    def positions(self, module: PreTrainedModel, prompt: Prompt, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return (prompt.mask.cumsum(-1) - 1).clamp(min=0)

    def features(self, module: PreTrainedModel, pixels: torch.Tensor) -> Any:
        """The image's features (P, D), in one piece or in a list."""
        look: Any = module.get_image_features
        return look(pixel_values=pixels, return_dict=True).pooler_output


@dataclass(frozen=True)
class GemmaFamily(ImageFamily):
    """Gemma 3 and MedGemma: image tokens see each other in both directions, so the model is told which they are."""

    begin: str
    end: str
    token: str

    def expanded(self, count: int) -> str:
        return f"\n\n{self.begin}{self.token * count}{self.end}\n\n"

    def image_inputs(self, pixels: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel_values": pixels, "token_type_ids": (tokens == self.image).long()}


@dataclass(frozen=True)
class QwenFamily(ImageFamily):
    """Qwen2-VL, 2.5-VL and 3-VL: patches in a row, 2 × 2 of them merged, and positions in time, height and width."""

    begin: str
    end: str
    patch: int
    merge: int
    frames: int

    @property
    def plain(self) -> str:
        return f"{self.begin}{self.placeholder}{self.end}"

    def image_inputs(self, pixels: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**self._patches(pixels), "mm_token_type_ids": (tokens == self.image).int()}

    def positions(self, module: PreTrainedModel, prompt: Prompt, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        # Asked for here and handed over in both passes: left alone, the model would keep them between calls.
        positions, _ = module.model.get_rope_index(
            prompt.tokens,
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=prompt.mask,
        )
        return positions

    def features(self, module: PreTrainedModel, pixels: torch.Tensor) -> Any:
        look: Any = module.get_image_features
        return look(**self._patches(pixels), return_dict=True).pooler_output

    def _patches(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        flat = patch_rows(pixels, self.patch, self.merge, self.frames)
        grid = torch.tensor([1, pixels.shape[2] // self.patch, pixels.shape[3] // self.patch], device=pixels.device)
        return {"pixel_values": flat, "image_grid_thw": grid.expand(len(pixels), -1)}


def patch_rows(pixels: torch.Tensor, patch: int, merge: int, frames: int) -> torch.Tensor:
    """Pixels (B, C, H, W) as rows of patches (B × P, C × frames × patch × patch), merged neighbours beside each other.

    A still image is repeated for the frames of one time step. Only views and copies: gradients pass.
    """
    images, channels, height, width = pixels.shape
    block = patch * merge
    cut = pixels.reshape(images, channels, height // block, merge, patch, width // block, merge, patch)
    rows = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)
    return rows[:, :, None].expand(-1, -1, frames, -1, -1).flatten(1)


def image_token_count(family: ImageFamily, module: PreTrainedModel, pixels: torch.Tensor) -> int:
    """How many tokens the model makes of one image (1, C, H, W)."""
    return sum(math.prod(part.shape[:-1]) for part in family.features(module, pixels))


def family_of(folder: Path, config: Any, name_of: Callable[[int], str | None]) -> ImageFamily:
    """The family of a model configuration; ``name_of`` gives a token's text. ModelError where no token is the image's."""
    image = getattr(config, "image_token_id", None)
    text = name_of(image) if isinstance(image, int) else None
    if not isinstance(image, int) or text is None:
        raise ModelError(
            f"{folder}: config.json gives image_token_id = {image!r}, which the tokenizer does not have, so nothing in a "
            "prompt can stand for the image: give a vision-language model with its own tokenizer.json."
        )
    if config.model_type == "gemma3":
        begin, end = (_named(folder, config, key, name_of) for key in ("boi_token_id", "eoi_token_id"))
        return GemmaFamily(image, begin, begin, end, text)
    if config.model_type in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"):
        begin, end = (_named(folder, config, key, name_of) for key in ("vision_start_token_id", "vision_end_token_id"))
        sizes = (_whole(folder, config, key) for key in ("patch_size", "spatial_merge_size", "temporal_patch_size"))
        return QwenFamily(image, text, begin, end, *sizes)
    return ImageFamily(image, text)


def preprocessing_for(folder: Path, config: Any) -> Preprocessing:
    """What the processor file states, in the terms of ``read_preprocessing``.

    Gemma's pan-and-scan numbers have no effect unless it is switched on. Qwen's file has a range of areas instead of a
    size: the square nearest to SIDE inside it is used, and said in the notes; to choose, state
    ``{"height": H, "width": W}`` in the file.
    """
    vision = getattr(config, "vision_config", None)
    channels = int(getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3)
    settings = _settings(folder)
    if not settings:
        return read_preprocessing(folder, channels)  # which says what is missing
    if config.model_type == "gemma3" and not settings.get("do_pan_and_scan"):
        return _read({key: value for key, value in settings.items() if "pan_and_scan" not in key}, channels)
    if not config.model_type.startswith("qwen"):
        return read_preprocessing(folder, channels)
    return _qwen(folder, config, settings, channels)


def _qwen(folder: Path, config: Any, settings: Mapping[str, Any], channels: int) -> Preprocessing:
    patch, merge = (_whole(folder, config, key) for key in ("patch_size", "spatial_merge_size"))
    block = patch * merge
    for key, own in (("patch_size", patch), ("merge_size", merge)):
        if settings.get(key, own) != own:
            raise ModelError(f"{folder}: the processor has {key} = {settings[key]!r} but the model {own}: correct it.")
    kept = {key: value for key, value in settings.items() if key not in _QWEN_KEYS}
    size = kept.get("size") or {}
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        found = _read(kept, channels)
        if found.input.height % block or found.input.width % block:
            raise ModelError(f"{folder}: the processor's size {size} is no multiple of {block} pixels: correct it.")
        return found
    low, high = (settings.get(old) or size.get(new) for old, new in _AREAS)
    side = _side(folder, low, high, block)
    found = _read({**kept, "size": {"height": side, "width": side}}, channels)
    note = f"the processor takes images of {low} to {high} pixels; the whole image is resized to {side} × {side}"
    return Preprocessing(found.input, found.scale, found.mean, found.std, (*found.notes, note))


_AREAS = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))


def _side(folder: Path, low: object, high: object, block: int) -> int:
    """The multiple of ``block`` nearest to SIDE whose square lies between the two areas."""
    sides: list[int] = []
    if isinstance(low, int) and isinstance(high, int):
        sides = [side for side in range(block, math.isqrt(max(high, 0)) + 1, block) if low <= side * side <= high]
    if not sides:
        raise ModelError(
            f"{folder}: the processor takes images of {low!r} to {high!r} pixels, and no square of a multiple of {block} "
            'lies between: state the image size as {"height": H, "width": W} in preprocessor_config.json.'
        )
    return min(sides, key=lambda side: abs(side - SIDE))


def _settings(folder: Path) -> dict[str, Any]:
    """The image processor's own entries; empty where there are none."""
    for name in _PROCESSORS:
        data = read_json(folder / name) if (folder / name).is_file() else {}
        nested = data.get("image_processor") if name == _PROCESSORS[1] else data
        if isinstance(nested, dict) and nested:
            return nested
    return {}


def _read(settings: Mapping[str, Any], channels: int) -> Preprocessing:
    with TemporaryDirectory() as folder:
        (Path(folder) / _PROCESSORS[0]).write_text(json.dumps(settings), encoding="utf-8")
        return read_preprocessing(Path(folder), channels)


def _whole(folder: Path, config: Any, key: str) -> int:
    value = getattr(config.vision_config, key, None)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{folder}: config.json gives vision_config.{key} = {value!r}: it must be a whole number.")
    return value


def _named(folder: Path, config: Any, key: str, name_of: Callable[[int], str | None]) -> str:
    number = getattr(config, key, None)
    text = name_of(number) if isinstance(number, int) else None
    if text is None:
        raise ModelError(
            f"{folder}: config.json gives {key} = {number!r}, which the tokenizer does not have: restore it."
        )
    return text
