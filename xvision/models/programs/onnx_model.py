"""ONNX files as classifiers, run by onnxruntime on the CPU: the only door to onnx and onnxruntime.

A file is data: its operators are looked up by name in onnxruntime, so files that ask for operators from elsewhere, or for
weights outside their own folder, are refused before onnxruntime sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import nn

from xvision.errors import MissingExtra, ModelError
from xvision.models.loading import reason
from xvision.models.network import Facts, NetworkClassifier, two_sided_names
from xvision.models.programs.card import card_of, input_of
from xvision.store import sha256

if TYPE_CHECKING:
    import onnx

CARD = "xvision"
"""Key of the file's metadata: class names, input size and filter as JSON."""
MAX_BYTES = 2**31 - 1
"""Of the file itself, which is what its format can hold; larger weights lie in files beside it."""
MAX_WEIGHTS = 64 * 2**30
"""Of those files together."""
_FLOATS = frozenset({1, 10, 11, 16})  # float32, float16, float64, bfloat16
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


class OnnxClassifier(NetworkClassifier):
    """A Classifier whose logits come from onnxruntime on the CPU; black-box, because no gradient comes back.

    batch: the number of images that the file takes at once, None for any. A fixed number is met by cutting and by
    repeating the last image.
    """

    def __init__(self, module: nn.Module, facts: Facts, batch: int | None, parameters: int) -> None:
        self._batch, self._parameters = batch, parameters
        super().__init__(module, facts, torch.device("cpu"))

    @property
    def description(self) -> dict[str, str | int]:
        return {**super().description, "parameters": self._parameters}

    @property
    def parts(self) -> NoReturn:
        """Raises AttributeError: onnxruntime keeps the weights to itself."""
        raise AttributeError(f"{self.facts.source}: an ONNX file has no parts that could be shuffled.")

    def randomised(self, seed: int, parts: Sequence[str] | None = None) -> NoReturn:
        """Raises ModelError: onnxruntime keeps the weights to itself."""
        raise ModelError(f"{self.facts.source}: the weights of an ONNX file cannot be shuffled (seed {seed}).")

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._batch is None:
            return super()._run(pixels)
        padding = pixels[-1:].expand(-len(pixels) % self._batch, -1, -1, -1)
        parts = torch.cat((pixels, padding)).split(self._batch)
        return torch.cat([super(OnnxClassifier, self)._run(part) for part in parts])[: len(pixels)]


class _Session(nn.Module):
    """Pixels to outputs through onnxruntime. A copy, also in another process, opens the file again."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self._run = _opened(path)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._run(np.ascontiguousarray(pixels.detach().cpu().numpy())))

    def __reduce__(self) -> tuple[type[_Session], tuple[str]]:
        return _Session, (self.path,)


class _Shape(NamedTuple):
    """sides: (C, H, W), None where free. batch: images at once, None for any. outputs: K. parameters: numbers in the weights."""

    sides: tuple[int | None, ...]
    batch: int | None
    outputs: int
    parameters: int


def load_onnx(path: Path, device: torch.device) -> OnnxClassifier:
    """The classifier in an ONNX file: one input, pixels (B, C, H, W) in [0, 1] in float32; one output, logits (B, K).

    Classes and input come from the file's own metadata, else from ``NAME.classes.json`` beside it. It runs on the CPU
    whatever ``device`` is, and says so. Raises ModelError for operators that are not ONNX's own, for weights outside the
    file's folder or too large, for another form than pixels to logits, and for missing class names.
    """
    document = _read(path)
    weights = _weight_files(path, document)
    _refuse_operators(path, document)
    shape = _shape(path, document)
    card, notes = card_of(path, _description(document), shape.outputs)
    classes = two_sided_names(card.classes, shape.outputs)
    if len(classes) != max(shape.outputs, 2) or len(set(classes)) != len(classes):
        raise ModelError(
            f"{path} has {shape.outputs} outputs but the classes are {list(card.classes)}: give one different name for each output."
        )
    if device.type != "cpu":
        notes = (*notes, f"runs on the CPU although {device.type} was asked for")
    structure = " ".join(sha256(file) for file in (path, *weights))
    multilabel = card.problem_type == "multi_label_classification" and shape.outputs > 1
    facts = Facts(
        classes,
        multilabel,
        input_of(str(path), card, shape.sides),
        card.architecture,
        str(path),
        structure,
        ("run by onnxruntime", *notes),
    )
    return OnnxClassifier(_Session(str(path.resolve())), facts, shape.batch, shape.parameters)


def _read(path: Path) -> onnx.ModelProto:
    """The file without the weights that lie beside it."""
    require("onnx", "onnxruntime")
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise ModelError(f"{path}: no such file. Give an ONNX file.")
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path} has more than 2 GiB, which no ONNX file can have: export it again.")
    try:
        document = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as problem:
        raise ModelError(f"{path} is not readable as ONNX ({reason(problem)}): export it again.") from None
    if not document.graph.node:
        raise ModelError(f"{path} is not readable as ONNX (it has no graph): export it again.")
    return document


def graphs(document: onnx.ModelProto) -> Iterator[tuple[Any, Any]]:
    """Nodes and stored tensors of every graph, those inside nodes and functions included."""
    waiting: list[Any] = [document.graph, *document.functions]
    while waiting:
        current = waiting.pop()
        tensors = list(getattr(current, "initializer", ()))
        for sparse in getattr(current, "sparse_initializer", ()):
            tensors += [sparse.values, sparse.indices]
        for node in current.node:
            for attribute in node.attribute:
                waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
                tensors += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
        yield current.node, tensors


def _weight_files(path: Path, document: onnx.ModelProto) -> tuple[Path, ...]:
    """Files of weights that the document names: regular files of its own folder, and not too large."""
    root, found = path.resolve().parent, set()
    for _, tensors in graphs(document):
        for tensor in tensors:
            for entry in tensor.external_data:
                if entry.key == "location":
                    found.add(_inside(path, root, entry.value))
    if (total := sum(file.stat().st_size for file in found)) > MAX_WEIGHTS:
        raise ModelError(
            f"{path} names {total / 2**30:.0f} GiB of weights; at most {MAX_WEIGHTS // 2**30} GiB are read."
        )
    return tuple(sorted(found))


def _inside(path: Path, root: Path, location: str) -> Path:
    file = root / location
    if "\0" in location or Path(location).is_absolute() or not file.resolve().is_relative_to(root):
        raise ModelError(
            f"{path} asks for weights in {location!r}, which is outside its own folder: do not use this file."
        )
    if not file.is_file():
        raise ModelError(f"{path} asks for weights in {location!r}, which is not beside it: copy it there.")
    return file


def _refuse_operators(path: Path, document: onnx.ModelProto) -> None:
    own = {(function.domain, function.name) for function in document.functions}
    for nodes, _ in graphs(document):
        for node in nodes:
            if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own:
                raise ModelError(
                    f"{path} uses the operator {node.domain}.{node.op_type}, which is not one of ONNX itself: export the model "
                    "again without custom operators."
                )


def _shape(path: Path, document: onnx.ModelProto) -> _Shape:
    stored = {tensor.name for tensor in document.graph.initializer}
    inputs = [item for item in document.graph.input if item.name not in stored]
    outputs = list(document.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs: export one input of pixels and one output of logits."
        )
    taken, given = (item.type.tensor_type for item in (inputs[0], outputs[0]))
    sizes, answers = ([_size(side) for side in item.shape.dim] for item in (taken, given))
    if len(sizes) != 4 or taken.elem_type != 1:
        raise ModelError(f"{path} does not take pixels (B, C, H, W) in float32: export it with such an input.")
    if len(answers) != 2 or answers[1] is None:
        raise ModelError(f"{path} gives an output with {len(answers)} axes; a classifier gives logits (B, K).")
    weights = [tensor for tensor in document.graph.initializer if tensor.data_type in _FLOATS]
    numbers = sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in weights)
    return _Shape(tuple(sizes[1:]), sizes[0], answers[1], numbers)


def _size(side: Any) -> int | None:
    return side.dim_value if side.HasField("dim_value") and side.dim_value > 0 else None


def _description(document: onnx.ModelProto) -> str | None:
    """What our own export wrote into the file's metadata."""
    return {item.key: str(item.value) for item in document.metadata_props}.get(CARD)


def _opened(path: str) -> Any:
    """A function from pixels to outputs."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    options.intra_op_num_threads = torch.get_num_threads()
    refusals = (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.NotImplemented,
        errors.RuntimeException,
    )
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (*refusals, errors.InvalidProtobuf, errors.NoSuchFile) as problem:
        raise ModelError(f"{path} cannot be loaded by onnxruntime ({reason(problem)}): export it again.") from None
    name = session.get_inputs()[0].name

    def run(pixels: np.ndarray) -> np.ndarray:
        try:
            outputs: np.ndarray = session.run(None, {name: pixels})[0]
        except refusals as problem:
            raise ModelError(f"{path} cannot be run on pixels of {pixels.shape}: {reason(problem)}") from None
        return outputs

    return run


def require(*packages: str) -> None:
    """MissingExtra naming the first package that is not installed."""
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise MissingExtra(package, "compress", "an ONNX file")
