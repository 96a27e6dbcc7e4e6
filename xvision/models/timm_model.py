"""timm models from the folder that timm writes: config.json with ``architecture`` and ``pretrained_cfg``, safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from xvision.errors import ModelError
from xvision.models.loading import DAMAGE, reason
from xvision.models.network import Facts, NetworkClassifier, two_sided_names
from xvision.models.preprocessing import Preprocessing
from xvision.models.protocols import InputSpec

_FILTERS: dict[str, Literal["bilinear", "bicubic", "lanczos", "nearest"]] = {
    "bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos", "nearest": "nearest",
}  # fmt: skip
# What timm.create_model takes beside the arguments of the architecture: these load files, fetch, or compile.
_REFUSED = frozenset({
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable", "exportable",
    "no_jit", "model_name", "features_only", "pretrained_strict", "pretrained_filter_fn",
})  # fmt: skip


class TimmClassifier(NetworkClassifier):
    """A timm model with its normalisation inside; also an EmbeddingClassifier."""

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """What timm calls the pre-logits (B, D): pooled features, before the last linear layer."""
        module: Any = self.module
        network = module.network
        features = network.forward_features(module.normalised(pixels.float()))
        return torch.as_tensor(network.forward_head(features, pre_logits=True)).float().flatten(1)


class _Normalised(nn.Module):
    """Pixels in [0, 1] to outputs."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self._preprocessing = network, preprocessing

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._preprocessing.normalise(pixels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.network(self.normalised(pixels))
        return outputs


def is_timm(config: dict[str, Any]) -> bool:
    """Whether a config.json is one of timm's own."""
    return "model_type" not in config and "architecture" in config and isinstance(config.get("pretrained_cfg"), dict)


def load_timm(folder: Path, config: dict[str, Any], device: torch.device, *, source: str) -> TimmClassifier:
    """The classifier in a folder or hub snapshot of timm's, with the preprocessing of its ``pretrained_cfg``.

    Raises MissingExtra-like ModelError where timm cannot be imported (it needs torchvision), and ModelError for an unknown
    architecture, arguments that load or fetch, weights that do not fit, and missing preprocessing.
    """
    preprocessing = timm_preprocessing(folder, config)
    arguments = _arguments(folder, config)
    network = _built(folder, str(config["architecture"]), arguments)
    _load(network, folder)
    names, notes = _classes(folder, config)
    classes = two_sided_names(names, len(names))
    structure = json.dumps([config["architecture"], arguments, preprocessing.mean, preprocessing.std], sort_keys=True)
    facts = Facts(
        classes,
        False,
        preprocessing.input,
        str(config["architecture"]),
        source,
        structure,
        (*preprocessing.notes, *notes),
    )
    module = _Normalised(network.float().eval(), preprocessing).eval().to(device)
    from xvision.models.timm_attention import timm_classifier  # it builds on this file

    return timm_classifier(module, facts, device)


def timm_preprocessing(folder: Path, config: dict[str, Any]) -> Preprocessing:
    """Input size, filter, mean and standard deviation as ``pretrained_cfg`` states them; nothing is guessed."""
    where, stated = folder / "config.json", config["pretrained_cfg"]
    size = stated.get("input_size")
    if not (isinstance(size, list) and len(size) == 3 and all(type(side) is int and 0 < side <= 4096 for side in size)):
        raise ModelError(f"{where}: pretrained_cfg.input_size is {size!r}; state [channels, height, width].")
    interpolation = stated.get("interpolation")
    if interpolation not in _FILTERS:
        raise ModelError(
            f"{where}: pretrained_cfg.interpolation is {interpolation!r}; state one of {sorted(_FILTERS)}."
        )
    mean, std = (_numbers(stated.get(name), f"{where}: pretrained_cfg.{name}") for name in ("mean", "std"))
    cropped = stated.get("crop_pct") not in (None, 1.0)
    notes = (
        (f"training cropped the centre; the whole image is resized to {size[1]} × {size[2]} instead",)
        if cropped
        else ()
    )
    return Preprocessing(InputSpec(size[0], size[1], size[2], _FILTERS[interpolation]), 1.0, mean, std, notes)


def _numbers(value: object, where: str) -> tuple[float, ...]:
    if not isinstance(value, list) or not value or any(type(item) not in (int, float) for item in value):
        raise ModelError(f"{where} is {value!r}; state one number per channel.")
    return tuple(float(item) for item in value)


def _arguments(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What the architecture is built with: numbers, names and lists of them only."""
    stated = config.get("model_args") or {}
    where = f"{folder / 'config.json'}: model_args"
    if not isinstance(stated, dict):
        raise ModelError(f"{where} is {stated!r}; timm writes a table there.")
    for name, value in stated.items():
        items = value if isinstance(value, list) else [value]
        plain = all(item is None or isinstance(item, bool | int | float | str) for item in items)
        if name in _REFUSED or not plain or any(isinstance(item, str) and len(item) > 64 for item in items):
            raise ModelError(f"{where} has {name!r}, which is no plain argument of an architecture: remove it.")
    chosen = {"num_classes": config.get("num_classes"), "in_chans": config["pretrained_cfg"]["input_size"][0], **stated}
    if type(chosen["num_classes"]) is not int or chosen["num_classes"] < 1:
        raise ModelError(
            f"{folder / 'config.json'}: num_classes is {chosen['num_classes']!r}; a classifier has at least 1."
        )
    return chosen


def _built(folder: Path, architecture: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as problem:  # RuntimeError: torchvision was built for another torch
        raise ModelError(
            f"{folder} is a timm model, which needs timm and a torchvision that fits torch ({reason(problem)}): install both, "
            "or export the model to a .pt2 archive where they are."
        ) from None
    if not timm.is_model(architecture):
        raise ModelError(f"{folder / 'config.json'}: timm knows no architecture {architecture!r}.")
    try:
        network: nn.Module = timm.create_model(architecture, pretrained=False, **arguments)
    except DAMAGE as problem:
        raise ModelError(
            f"{folder}: timm cannot build {architecture} ({reason(problem)}): correct model_args."
        ) from problem
    return network


def _load(network: nn.Module, folder: Path) -> None:
    try:
        found = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as problem:
        raise ModelError(
            f"{folder} has no readable model.safetensors ({reason(problem)}): save the model again."
        ) from None
    try:
        network.load_state_dict(found, strict=True)
    except RuntimeError as problem:
        raise ModelError(f"{folder}: the weights do not fit the architecture ({reason(problem)}).") from None


def _classes(folder: Path, config: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names as timm stores them, or numbered ones with a note."""
    count = (config.get("model_args") or {}).get("num_classes", config.get("num_classes"))
    names = config.get("label_names") or config["pretrained_cfg"].get("label_names")
    if isinstance(names, list) and len(names) == count and len(set(map(str, names))) == count:
        return tuple(map(str, names)), ()
    if names:
        raise ModelError(
            f"{folder / 'config.json'} has {len(names)} label_names for {count} outputs: give each output one."
        )
    generic = tuple(f"LABEL_{place}" for place in range(int(count or 0)))
    return generic, (f"the classes have no names ({', '.join(generic[:4])}, …): their meaning is assumed",)
