"""Smaller forms of one classifier; :mod:`xvision.compression` says what they cost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Literal, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from xvision import codec
from xvision.errors import ConfigError, ModelError, nearest
from xvision.models.checkpoint import refuse_foreign_files
from xvision.models.folder import open_folder
from xvision.models.huggingface import HuggingFaceClassifier
from xvision.models.loading import quiet
from xvision.models.open import load_model
from xvision.models.programs.exported import export_pt2
from xvision.models.programs.onnx_export import export_onnx
from xvision.models.pruning import prune_weights, without_units
from xvision.models.quantised import KEY, QuantisedKind, quantise, save_quantised

How = Literal["int8", "int8-dynamic", "bfloat16", "prune-magnitude", "prune-structured", "onnx", "pt2"]
EXPORTS = ("onnx", "pt2")
PRUNING = ("prune-magnitude", "prune-structured")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@codec.record
class Size:
    """bytes: of the weights on disk. flops: of one image, multiply and add apart, in float32; None where not countable."""

    bytes: int
    parameters: int
    zeros: int | None
    """Parameters that are exactly 0; None where the weights cannot be read."""
    flops: int | None


def compress(model_folder: Path | str, how: How, out: Path, *, amount: float = 0.3) -> Path:
    """Writes a smaller form of the classifier in a Hugging Face folder, and returns where it is.

    "int8": 8-bit weights, inputs stay float32. "int8-dynamic": inputs are rounded too; no gradients. "bfloat16": weights
    stored in 16 bits; they are read back as float32 numbers, so arithmetic is not faster here. "prune-magnitude": the
    share ``amount`` of weights set to 0, nothing stored smaller. "prune-structured": ``amount`` of the feed-forward units
    taken out. "onnx", "pt2": exported for other programs. ``out`` is a folder, or a file that ends in .onnx or .pt2.
    Deterministic. Raises ConfigError and ModelError, with what to do; an earlier checkpoint in ``out`` is replaced.
    """
    if how not in get_args(How):
        raise ConfigError(f"how is {how!r}. {nearest(str(how), get_args(How))}")
    if how in PRUNING and not 0 < amount < 1:
        raise ConfigError(f"amount is {amount}: give the share to prune, above 0 and below 1.")
    model = _loaded(model_folder)
    if how not in EXPORTS:
        return _folder(model, open_folder(model_folder), how, out, amount)
    if out.suffix != f".{how}":
        raise ConfigError(f"{out}: give the file a name that ends in .{how}.")
    if model.takes_text:
        raise ModelError(
            f"{model_folder} reads clinical text before the image; a .{how} file takes pixels alone and would be another model."
        )
    export: Callable[[HuggingFaceClassifier, Path], object] = export_onnx if how == "onnx" else export_pt2
    export(model, out)
    return out


def _loaded(model_folder: Path | str) -> HuggingFaceClassifier:
    model = load_model(model_folder, device="cpu")
    if not isinstance(model, HuggingFaceClassifier):
        found = model.description.get("architecture", type(model).__name__)
        raise ModelError(
            f"{model_folder} is a model of another form ({found}): give the Hugging Face folder it was made from."
        )
    if getattr(model.module.config, KEY, None):
        raise ModelError(f"{model_folder} already has 8-bit weights: give the folder it was made from.")
    return model


def _folder(model: HuggingFaceClassifier, source: Path, how: How, out: Path, amount: float) -> Path:
    """A checkpoint folder, whole or not at all."""
    if out.resolve() == source.resolve():
        raise ConfigError(f"{out} is the model itself: choose another folder, so that both can be audited.")
    refuse_foreign_files(out)
    staging = out.parent / f".{out.name}.{os.getpid()}.new"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        with quiet():
            _write(model, how, staging, amount)
        for name in _PROCESSORS:
            if (source / name).is_file():
                shutil.copyfile(source / name, staging / name)
        shutil.rmtree(out, ignore_errors=True)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def _write(model: HuggingFaceClassifier, how: How, folder: Path, amount: float) -> None:
    module = model.module
    if how in get_args(QuantisedKind):
        save_quantised(quantise(deepcopy(module), how), folder)  # type: ignore[arg-type]  # just checked
    elif how == "bfloat16":
        deepcopy(module).to(torch.bfloat16).save_pretrained(folder)
    elif how == "prune-structured":
        without_units(module, amount).save_pretrained(folder)
    else:
        pruned = deepcopy(module)
        prune_weights(pruned, amount)
        pruned.save_pretrained(folder)


def size(path: Path | str) -> Size:
    """What a model takes, as it lies on disk."""
    model, place = load_model(path, device="cpu"), Path(path)
    files = [place] if place.is_file() else sorted(open_folder(path).glob("*.safetensors"))
    stored = sum(file.stat().st_size for file in files)
    parameters = int(model.description.get("parameters", 0))
    if not isinstance(model, HuggingFaceClassifier):
        return Size(stored, parameters, None, None)
    zeros = sum(int((weights == 0).sum()) for weights in model.module.parameters())
    return Size(stored, parameters, zeros, None if getattr(model.module.config, KEY, None) else _flops(model))


@torch.no_grad()
def _flops(model: HuggingFaceClassifier) -> int:
    spec, counter = model.input, FlopCounterMode(display=False)
    with counter:
        model.logits(torch.full((1, spec.channels, spec.height, spec.width), 0.5, device=model.device))
    return int(counter.get_total_flops())
