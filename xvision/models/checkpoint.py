"""Checkpoint folders in and out: safetensors only, no code from the checkpoint, nothing silently re-initialised."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from xvision.errors import ModelError
from xvision.models.folder import open_folder, read_config
from xvision.models.huggingface import adapt, preprocessing_of
from xvision.models.llm_classifier import LlmImageClassifier
from xvision.models.llm_config import image_processor
from xvision.models.loading import check_model_type, load_weights, quiet
from xvision.models.preprocessing import Preprocessing, read_preprocessing
from xvision.models.protocols import Classifier

_PARTS = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors.index.json",
    "metrics.jsonl",
    "run.json",
    "evaluation.json",
    "tokenizer.json",
)


def load_model(path_or_id: str | Path, *, device: str = "auto") -> Classifier:
    """The classifier in a Hugging Face folder, or behind a hub id, in float32 on ``device``.

    It also has attention where the order of its tokens is known. device: "auto" takes CUDA where there is one. Raises
    ModelError, with what to do, for pickles, code, missing or ill-fitting weights, contradictory labels and missing
    preprocessing; a local folder is never completed from the network.
    """
    _refuse_other_forms(str(path_or_id))
    target = _device(device)
    folder = open_folder(path_or_id)
    config = read_config(folder)
    if check_model_type(folder, config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"{folder} holds a {config['model_type']} model, which is no image classifier: give one that is."
        )
    _check_labels(folder, config)
    module, unused = load_weights(AutoModelForImageClassification, folder)
    preprocessing = _preprocessing(folder, module)
    notes = (f"{len(unused)} weights of the folder are not part of the model",) if unused else ()
    module.to(target)  # type: ignore[arg-type]  # its decorator hides the signature
    return adapt(module, preprocessing, source=str(path_or_id), notes=notes)


def save_model(module: LlmImageClassifier, folder: Path, *, keep: tuple[str, ...] = ()) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json; the folder is the old or the new one.

    Everything is written and synced beside the folder, then renamed. keep: files of the old folder that move along.
    Raises ModelError when the folder holds anything but a checkpoint, because it would be lost.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    refuse_foreign_files(folder, keep)
    staging, old = (folder.parent / f".{folder.name}.{os.getpid()}.{kind}" for kind in ("new", "old"))
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        with quiet():
            module.save_pretrained(staging)
            image_processor(module.config).save_pretrained(staging)
        for name in keep:
            if (folder / name).is_file():
                shutil.copy2(folder / name, staging / name)
        _sync(*staging.iterdir(), staging)
        if folder.exists():
            folder.rename(old)
        staging.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _refuse_other_forms(name: str) -> None:
    suffix = Path(name).suffix.lower()
    if suffix in (".pt2", ".csv", ".onnx"):
        raise ModelError(f"{name}: this version reads Hugging Face folders and hub ids, not {suffix} files.")
    if suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"):
        raise ModelError(
            f"{name} is a pickle, which can run code when it is read; this version reads Hugging Face folders with "
            "model.safetensors: where you trust the file, convert it with model.save_pretrained(folder)."
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"device {name!r} is unknown: give auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {name!r} was asked for but this computer has no CUDA device: give auto or cpu.")
    return device


def _check_labels(folder: Path, config: dict[str, Any]) -> None:
    """``id2label`` must count 0, 1, 2, … and agree with ``label2id``: a swapped pair turns every finding around."""
    names, numbers = config.get("id2label"), config.get("label2id")
    if names is None:
        return
    where = folder / "config.json"
    if not isinstance(names, dict) or set(names) != {str(index) for index in range(len(names))}:
        raise ModelError(f"{where}: id2label is {names!r}; number the classes 0, 1, 2, … in the order of the outputs.")
    for index, name in names.items():
        if isinstance(numbers, dict) and str(numbers.get(name, index)) != index:
            raise ModelError(
                f"{where}: id2label calls output {index} {name!r} but label2id gives that name to output "
                f"{numbers[name]}: correct the wrong one."
            )


def _preprocessing(folder: Path, module: PreTrainedModel) -> Preprocessing:
    config = getattr(module.config, "vision_config", module.config)
    found = read_preprocessing(folder, getattr(config, "num_channels", 3))
    if isinstance(module, LlmImageClassifier):
        trained = preprocessing_of(module.config)
        if (found.input, found.mean, found.std) != (trained.input, trained.mean, trained.std):
            raise ModelError(
                f"{folder}: preprocessor_config.json ({found.input}, mean {found.mean}, std {found.std}) is not what "
                f"config.json was trained with ({trained.input}, mean {trained.mean}, std {trained.std}): restore it."
            )
    return found


def refuse_foreign_files(folder: Path, keep: tuple[str, ...] = ()) -> None:
    """ModelError when saving a model in ``folder`` would lose anything but an earlier checkpoint."""
    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder} is a file: give a folder to save the model in.")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.is_dir() or not (path.name in (*_PARTS, *keep) or path.suffix in (".safetensors", ".tmp")):
            raise ModelError(f"{path} is no part of a checkpoint and would be lost: save the model in another folder.")


def _sync(*paths: Path) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
