"""The one door for models of every form: what is given decides how it is read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from xvision.errors import ConfigError, ModelError
from xvision.models.folder import open_folder, read_config
from xvision.models.huggingface import adapt, preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.loading import check_model_type, load_weights
from xvision.models.predictions import load_predictions
from xvision.models.preprocessing import Preprocessing, read_preprocessing
from xvision.models.protocols import Classifier
from xvision.models.quantised import KEY, load_quantised
from xvision.models.timm_model import is_timm, load_timm

if TYPE_CHECKING:
    from xvision.config import PromptPlan

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def load_model(path_or_id: str | Path, *, device: str = "auto", prompt: PromptPlan | None = None) -> Classifier:
    """The classifier behind a path or a hub id, in float32 on ``device`` where it is a network.

    Read are: a Hugging Face folder or hub id of an image classifier or, with ``prompt``, of a vision-language model; a
    folder or hub id of timm's; a ``.pt2`` archive; an ``.onnx`` file (black-box access); a CSV of predictions (the scores
    tier). device: "auto" takes CUDA where there is one. Raises ModelError, with what to do, for pickles, code, missing or
    ill-fitting weights, contradictory labels and missing preprocessing, and ConfigError for a prompt that is missing or
    of no use; a local folder is never completed from the network.
    """
    suffix = Path(path_or_id).suffix.lower()
    target = _device(device)
    if prompt is not None and suffix in (".csv", ".pt2", ".onnx"):
        raise ConfigError(
            f"[model.prompt] is for vision-language models, but {path_or_id} is a {suffix} file: remove it."
        )
    if is_predictions(path_or_id):
        return load_predictions(Path(path_or_id))
    if suffix == ".pt2":
        from xvision.models.programs.exported import load_exported

        return load_exported(Path(path_or_id), target)
    if suffix == ".onnx":
        from xvision.models.programs.onnx_model import load_onnx

        return load_onnx(Path(path_or_id), target)
    if suffix in _PICKLES:
        raise ModelError(
            f"{path_or_id} is a pickle, which can run code when it is read: where you trust the file, convert it with "
            "model.save_pretrained(folder), or export it with torch.export.save to a .pt2 archive."
        )
    return _from_folder(path_or_id, target, prompt)


def is_predictions(path_or_id: str | Path) -> bool:
    """Whether ``load_model`` reads predictions there, so that no image is needed."""
    return Path(path_or_id).suffix.lower() == ".csv"


def _from_folder(path_or_id: str | Path, device: torch.device, prompt: PromptPlan | None) -> Classifier:
    folder = open_folder(path_or_id)
    config = read_config(folder)
    if not is_timm(config) and _speaks(check_model_type(folder, config), config):
        return _vision_language(folder, device, prompt, str(path_or_id))
    if prompt is not None:
        raise ConfigError(
            f"[model.prompt] is for vision-language models, but {folder} is an image classifier: remove it."
        )
    if is_timm(config):
        return load_timm(folder, config, device, source=str(path_or_id))
    return _image_classifier(folder, config, device, str(path_or_id))


def _speaks(kind: type, config: dict[str, Any]) -> bool:
    """Whether a folder holds a vision-language model; one that was saved with a classification head is a classifier."""
    headed = any("Classification" in str(name) for name in config.get("architectures") or ())
    classifies = kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not (classifies and headed)


def _vision_language(folder: Path, device: torch.device, prompt: PromptPlan | None, source: str) -> Classifier:
    if prompt is None:
        raise ConfigError(
            f"{folder} holds a vision-language model, which must be asked: write [model.prompt] in the plan, with labels = "
            '{ CLASS = "words that stand for it" }.'
        )
    from xvision.models.vlm.classifier import load_vlm

    return load_vlm(folder, prompt, device, source=source)


def _image_classifier(folder: Path, config: dict[str, Any], device: torch.device, source: str) -> Classifier:
    if check_model_type(folder, config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"{folder} holds a {config['model_type']} model, which is no image classifier: give one that is."
        )
    _check_labels(folder, config)
    if KEY in config:
        return load_quantised(folder, partial(_preprocessing, folder), device, source=source)
    module, unused = load_weights(AutoModelForImageClassification, folder)
    preprocessing = _preprocessing(folder, module)
    notes = (f"{len(unused)} weights of the folder are not part of the model",) if unused else ()
    module.to(device)  # type: ignore[arg-type]  # its decorator hides the signature
    return adapt(module, preprocessing, source=source, notes=notes)


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
