"""What happens to an image before the network: read from preprocessor_config.json as data, never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from xvision.errors import ModelError
from xvision.models.folder import read_json
from xvision.models.protocols import InputSpec

Resample = Literal["bilinear", "bicubic", "lanczos", "nearest"]
RESAMPLE: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters, as processor files store them."""

_FILE = "preprocessor_config.json"
_CROPPING = frozenset({"do_center_crop", "crop_size", "crop_pct"})
_UNDERSTOOD = _CROPPING | {
    "size", "resample", "do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
}  # fmt: skip
_WITHOUT_EFFECT = frozenset({
    "image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "do_grayscale",
    "default_to_square", "data_format", "input_data_format", "return_tensors", "device", "disable_grouping",
    "_valid_processor_keys", "_processor_class", "image_seq_length", "transformers_version",
})  # fmt: skip


@dataclass(frozen=True)
class Preprocessing:
    """Pixels in [0, 1] become ``(pixels × scale − mean) / std``, per channel, inside the model.

    notes: what differs from the processor file, for the report.
    """

    input: InputSpec
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = (len(self.mean), len(self.std))
        if counts != (self.input.channels,) * 2:
            raise ModelError(
                f"The mean and standard deviation have {counts[0]} and {counts[1]} values but the model takes "
                f"{self.input.channels} channels: correct image_mean and image_std in {_FILE}."
            )
        if not all(math.isfinite(value) for value in (self.scale, *self.mean, *self.std)) or min(self.std) <= 0:
            raise ModelError(f"image_std {list(self.std)} in {_FILE} must be above 0, and all its numbers finite.")

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the network sees of pixels (B, C, H, W) in [0, 1]."""
        mean, std = (torch.tensor(values, device=pixels.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels * self.scale - mean) / std


def read_preprocessing(folder: Path, channels: int) -> Preprocessing:
    """The preprocessing stated in a checkpoint folder; ModelError when a number is missing or a step is unknown."""
    settings = _settings(folder)
    _refuse_unknown_steps(settings)
    height, width = _size(settings)
    rescale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    normalise = settings.get("do_normalize", True)
    return Preprocessing(
        input=InputSpec(channels, height, width, _resample(settings)),
        scale=255.0 * _number(rescale, "rescale_factor"),
        mean=_per_channel(settings, "image_mean", channels) if normalise else (0.0,) * channels,
        std=_per_channel(settings, "image_std", channels) if normalise else (1.0,) * channels,
        notes=_notes(settings, height, width),
    )


def _settings(folder: Path) -> Mapping[str, Any]:
    for name, key in ((_FILE, None), ("processor_config.json", "image_processor")):
        if (folder / name).is_file():
            data = read_json(folder / name)
            nested = data.get(key) if key else data
            if isinstance(nested, dict):
                return nested
    raise ModelError(
        f"{folder} has no {_FILE}: add it (size, resample, image_mean, image_std, as in training), "
        "because guessed preprocessing changes every number of the audit."
    )


def _refuse_unknown_steps(settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if value not in (None, False) and key not in _UNDERSTOOD | _WITHOUT_EFFECT:
            raise ModelError(
                f"{_FILE} asks for {key} = {value!r}, a step that xvision does not reproduce: "
                "apply it to the images beforehand and remove it."
            )


def _size(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that reach the network: the crop where there is one, else the size."""
    key = "crop_size" if settings.get("do_center_crop") and settings.get("crop_size") else "size"
    value = settings.get(key)
    if isinstance(value, dict):
        value = (value["height"], value["width"]) if {"height", "width"} <= value.keys() else value.get("shortest_edge")
    sides = (value, value) if isinstance(value, int) else value
    if not (isinstance(sides, tuple | list) and len(sides) == 2 and all(_is_side(side) for side in sides)):
        raise ModelError(
            f"{_FILE} gives {key} = {settings.get(key)!r}: state the image size as "
            '{"height": H, "width": W} or {"shortest_edge": S}.'
        )
    return sides[0], sides[1]


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096


def _resample(settings: Mapping[str, Any]) -> Resample:
    number = settings.get("resample")
    if not isinstance(number, int) or number not in RESAMPLE:
        raise ModelError(
            f"{_FILE} gives resample = {number!r}: state the filter that training used, "
            "one of 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic."
        )
    return RESAMPLE[number]


def _per_channel(settings: Mapping[str, Any], key: str, channels: int) -> tuple[float, ...]:
    value = settings.get(key)
    if value is None:
        raise ModelError(f"{_FILE} normalises but has no {key}: add it, one number per channel.")
    values = value if isinstance(value, list) else [value] * channels
    return tuple(_number(item, key) for item in values)


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"{_FILE} gives {key} = {value!r}: it must be a number.")
    return float(value)


def _notes(settings: Mapping[str, Any], height: int, width: int) -> tuple[str, ...]:
    """The whole image is always audited: where training cropped, or kept the aspect ratio, the report says so."""
    target = f"the whole image is resized to {height} × {width} instead"
    if settings.get("do_center_crop") or settings.get("crop_pct"):
        return (f"the processor crops the centre; {target}",)
    size = settings.get("size")
    if isinstance(size, dict) and "shortest_edge" in size:
        return (f"the processor keeps the aspect ratio; {target}",)
    return ()
