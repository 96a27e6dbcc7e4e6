"""Archives of ``torch.export`` (.pt2) in and out: one input, pixels (B, C, H, W) in [0, 1]; one output, logits (B, K)."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from xvision import codec
from xvision.errors import ModelError
from xvision.models.feature_maps import FeatureMap
from xvision.models.huggingface import HuggingFaceClassifier
from xvision.models.loading import DAMAGE, reason
from xvision.models.network import Facts, NetworkClassifier, two_sided_names
from xvision.models.preprocessing import Preprocessing
from xvision.models.programs.archive import Archive, open_archive
from xvision.models.programs.card import Card, card_of, input_of
from xvision.store import write_atomic

CARD = "xvision.json"
_TOLERANCE = 1e-4
_Shuffle = tuple[int, tuple[str, ...] | None]


class ExportedClassifier(NetworkClassifier):
    """A program read from an archive. A fixed or bounded number of images is met by cutting and by repeating the last.

    content: a checked archive. It is kept, because the network inside cannot be sent to another process as it is.
    """

    def __init__(self, content: bytes, facts: Facts, device: torch.device, batch: tuple[int, int | None]) -> None:
        self._content, self._batch = content, batch
        self._shuffles: tuple[_Shuffle, ...] = ()
        super().__init__(_module(content, device, facts.source), facts, device)

    def randomised(self, seed: int, parts: Sequence[str] | None = None) -> ExportedClassifier:
        """The same program with every weight tensor of these parts (None: of all) shuffled."""
        twin = super().randomised(seed, parts)
        twin._shuffles = (*self._shuffles, (seed, None if parts is None else tuple(parts)))
        return twin

    def _feature_map(self) -> FeatureMap:
        if self._batch != (1, None):
            return FeatureMap(None, "it was exported for a fixed number of images: export it with a free one")
        return super()._feature_map()

    def __reduce__(self) -> tuple[object, ...]:
        return _revived, (self._content, self.facts, str(self.device), self._batch, self._shuffles)

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        fewest, most = self._batch
        return torch.cat([self._padded(part, fewest) for part in pixels.split(most or max(len(pixels), 1))])

    def _padded(self, pixels: torch.Tensor, fewest: int) -> torch.Tensor:
        missing = max(fewest - len(pixels), 0)
        outputs: torch.Tensor = self.module(torch.cat((pixels, pixels[-1:].expand(missing, -1, -1, -1))))
        return outputs[: len(pixels)]


def _revived(
    content: bytes, facts: Facts, device: str, batch: tuple[int, int | None], shuffles: tuple[_Shuffle, ...]
) -> ExportedClassifier:
    """The classifier in another process."""
    model = ExportedClassifier(content, facts, torch.device(device), batch)
    for seed, parts in shuffles:
        model = model.randomised(seed, parts)
    return model


def load_exported(path: Path, device: torch.device) -> ExportedClassifier:
    """The classifier in a .pt2 archive, which is checked before torch reads it.

    Classes come from the archive's own ``xvision.json``, else from ``NAME.classes.json`` beside it. Raises ModelError for
    anything that could run code, for another form than pixels to logits, and for missing class names.
    """
    archive = open_archive(path, str(path))
    card, notes = card_of(path, archive.extra.get(CARD), archive.program.outputs)
    return _classifier(archive, card, device, str(path), notes)


def export_pt2(model: HuggingFaceClassifier, path: Path) -> None:
    """Writes a classifier, its normalisation inside, as a .pt2 archive for any number of images, with its classes.

    The archive holds no pickles and no source paths. It is read back and compared before this returns. Raises ModelError
    when the model cannot be exported, reads text beside the image, or the archive does not repeat its logits.
    """
    if path.suffix != ".pt2":
        raise ModelError(f"{path}: give the archive a name that ends in .pt2.")
    if model.takes_text:
        raise ModelError(
            "The model reads clinical text, which has no place in an archive of pixels to logits: keep its folder."
        )
    spec, config = model.input, model.module.config
    card = Card(
        tuple(str(config.id2label[index]) for index in sorted(config.id2label)),
        "multi_label_classification" if model.task == "multilabel" else "single_label_classification",
        spec.resample,
        architecture=type(model.module).__name__,
    )
    archive = open_archive(_exported(model), str(path))
    _compare(model, _classifier(archive, card, model.device, str(path), ()), str(path))
    write_atomic(path, _with_card(archive.content, card))


class _Normalised(nn.Module):
    """Pixels in [0, 1] to logits."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, module: nn.Module, preprocessing: Preprocessing, device: torch.device) -> None:
        super().__init__()
        self.module, self.scale = module, preprocessing.scale
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values, device=device).view(1, -1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(pixel_values=(pixels * self.scale - self.mean) / self.std).logits
        return logits


def _exported(model: HuggingFaceClassifier) -> io.BytesIO:
    spec, stream = model.input, io.BytesIO()
    pixels = torch.full((2, spec.channels, spec.height, spec.width), 0.5, device=model.device)
    module = _Normalised(model.module, model.preprocessing, model.device).eval()
    try:
        with _quiet():
            program = torch.export.export(module, (pixels,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            torch.export.save(program, stream)
    except DAMAGE as problem:
        name = type(model.module).__name__
        raise ModelError(f"{name} cannot be exported for any number of images: {reason(problem)}") from problem
    stream.seek(0)
    return stream


def _with_card(content: bytes, card: Card) -> bytes:
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(f"model/extra/{CARD}"), codec.dumps(codec.plain(card)))
    return stream.getvalue()


@torch.no_grad()
def _compare(model: HuggingFaceClassifier, twin: ExportedClassifier, where: str) -> None:
    spec = model.input
    noise = torch.rand(3, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(1))
    pixels = noise.to(model.device)
    gap = float((model.logits(pixels) - twin.logits(pixels)).abs().max())
    if not gap <= _TOLERANCE:
        raise ModelError(
            f"{where}: the exported program's logits differ from the model's by {gap:.2g}; nothing is written."
        )


def _classifier(
    archive: Archive, card: Card, device: torch.device, source: str, notes: tuple[str, ...]
) -> ExportedClassifier:
    program = archive.program
    classes = two_sided_names(card.classes, program.outputs)
    if len(classes) != max(program.outputs, 2) or len(set(classes)) != len(classes):
        raise ModelError(
            f"{source} has {program.outputs} outputs but the classes are {list(card.classes)}: "
            "give one different name for each output."
        )
    multilabel = card.problem_type == "multi_label_classification" and program.outputs > 1
    structure = json.dumps(program.document, sort_keys=True)
    facts = Facts(
        classes,
        multilabel,
        input_of(source, card, archive.program.sides),
        f"{card.architecture} (.pt2)",
        source,
        structure,
        notes,
    )
    return ExportedClassifier(archive.content, facts, device, program.batch)


def _module(content: bytes, device: torch.device, source: str) -> nn.Module:
    try:
        with _quiet():
            program = torch.export.load(io.BytesIO(content))
            if device.type != "cpu":
                program = move_to_device_pass(program, device)
            return program.module(check_guards=False)
    except DAMAGE as problem:
        raise ModelError(f"{source} cannot be loaded ({reason(problem)}): export the model again.") from problem


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs tracebacks of what it then raises: what matters is raised here."""
    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
