"""Classifiers written as ONNX files, checked against the model they were made from."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xvision import codec
from xvision.errors import ModelError
from xvision.models.huggingface import HuggingFaceClassifier
from xvision.models.loading import DAMAGE, reason
from xvision.models.preprocessing import Preprocessing
from xvision.models.programs.card import Card
from xvision.models.programs.onnx_model import CARD, MAX_BYTES, OnnxClassifier, graphs, load_onnx, require
from xvision.store import write_atomic

TOLERANCE = 1e-4
"""Largest difference of a logit between the file and the model it was made from."""


def export_onnx(model: HuggingFaceClassifier, path: Path) -> float:
    """Writes a classifier, its normalisation inside, as an ONNX file for any number of images, with its classes.

    Returns the largest difference of a logit between file and model, measured on noise. Raises ModelError when the model
    cannot be exported or the difference is above 1e-4; then no file is left.
    """
    if path.suffix != ".onnx":
        raise ModelError(f"{path}: give the file a name that ends in .onnx.")
    spec, names = model.input, model.module.config.id2label
    card = Card(
        tuple(str(names[index]) for index in sorted(names)),
        "multi_label_classification" if model.task == "multilabel" else "single_label_classification",
        spec.resample,
        architecture=type(model.module).__name__,
    )
    return write_checked(_exported(model, card), model, path)


def write_checked(content: bytes, model: HuggingFaceClassifier, path: Path) -> float:
    """Keeps an ONNX file only when it repeats the model's logits; returns the largest difference."""
    write_atomic(path, content)
    gap = _gap(model, load_onnx(path, torch.device("cpu")))
    if not gap <= TOLERANCE:
        path.unlink()
        raise ModelError(f"{path}: the file's logits differ from the model's by {gap:.2g}; nothing is written.")
    return gap


class _Normalised(nn.Module):
    """Pixels in [0, 1] to logits."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.module, self.scale = module, preprocessing.scale
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(pixel_values=(pixels * self.scale - self.mean) / self.std).logits
        return logits


def _exported(model: HuggingFaceClassifier, card: Card) -> bytes:
    require("onnxscript", "onnx")
    spec, module = model.input, _Normalised(model.module, model.preprocessing).to(model.device).eval()
    pixels = torch.full((2, spec.channels, spec.height, spec.width), 0.5, device=model.device)
    try:
        with _quiet():
            program = torch.export.export(module, (pixels,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            made = torch.onnx.export(
                program, input_names=["pixels"], output_names=["logits"], dynamo=True, verbose=False
            )
    except DAMAGE as problem:
        name = type(model.module).__name__
        raise ModelError(f"{name} cannot be exported for any number of images: {reason(problem)}") from problem
    if made is None:
        raise ModelError(f"{type(model.module).__name__}: torch gave no ONNX program.")
    document: Any = made.model_proto
    if document.ByteSize() > MAX_BYTES:
        raise ModelError(
            f"{type(model.module).__name__} has more weights than one ONNX file holds (2 GiB): export it to .pt2."
        )
    _forget_source(document)
    document.metadata_props.add(key=CARD, value=json.dumps(codec.plain(card), ensure_ascii=False))
    content: bytes = document.SerializeToString()
    return content


def _forget_source(document: Any) -> None:
    """Without the stack traces that torch adds to every node: they are half of a small file and name the maker's folders."""
    graph = document.graph
    graph.ClearField("value_info")
    for nodes, tensors in graphs(document):
        for part in (document, graph, *graph.input, *graph.output, *document.functions, *nodes, *tensors):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")


@torch.no_grad()
def _gap(model: HuggingFaceClassifier, twin: OnnxClassifier) -> float:
    """On three images of noise, which is another number of images than the export was traced with."""
    spec = model.input
    noise = torch.rand(3, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(1))
    return float((model.logits(noise.to(model.device)).cpu() - twin.logits(noise)).abs().max())


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs what it skips, and tracebacks of what it then raises; copying an exported program meets its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
