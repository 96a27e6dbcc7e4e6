"""From a plan to a checkpoint: data, model, loop, and an evaluation on patients the loop never saw."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from xvision import text
from xvision.config import Plan
from xvision.data.dataset import AuditDataset
from xvision.data.manifest import load_data
from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.intervals import Estimate, proportion
from xvision.methods.scores import auroc
from xvision.models.checkpoint import load_model
from xvision.models.llm_classifier import LlmImageClassifier, preset
from xvision.models.protocols import Classifier, InputSpec
from xvision.store import write_atomic
from xvision.training.loop import Arrays, Progress, TrainingSummary, finetune

_SPLITS = ("train", "validation", "test")


class Bar(Protocol):
    """Where progress is shown."""

    def update(self, title: str, done: float, total: float, note: str = "") -> None: ...

    def close(self) -> None: ...

    def say(self, sentence: str) -> None: ...


@dataclass(frozen=True)
class FinetuneReport:
    """What a fine-tuning run gave; ``str`` is what the command prints."""

    checkpoint: Path
    summary: TrainingSummary
    test_auroc: Estimate
    test_accuracy: Estimate

    def __str__(self) -> str:
        auroc_text = text.value(
            self.test_auroc.value, self.test_auroc.low, self.test_auroc.high, reason=self.test_auroc.reason
        )
        accuracy = text.value(
            self.test_accuracy.value, self.test_accuracy.low, self.test_accuracy.high, reason=self.test_accuracy.reason
        )
        best, baseline = self.summary.validation.auroc, self.summary.baseline_auroc
        lines = [
            f"Checkpoint: {self.checkpoint} (epoch {self.summary.best_epoch} of {self.summary.epochs}, by validation AUROC)",
            f"Test AUROC {auroc_text}, accuracy {accuracy}, on {text.plural(self.test_auroc.n, 'patient')} never trained on",
            f"Validation AUROC {text.number(best)}; plain pixels in a logistic regression reach {text.number(baseline)}",
        ]
        if not self.summary.beats_majority:
            lines.append("Warning: no better than always answering the commonest class.")
        if best is not None and baseline is not None and best <= baseline:
            lines.append(
                "Warning: no better than a logistic regression on plain pixels; the network adds nothing here."
            )
        return "\n".join(lines)


def finetune_plan(plan: Plan, *, console: Bar) -> FinetuneReport:
    """Trains what the plan describes and writes the checkpoint to ``model.path``."""
    out = Path(plan.model.path)
    columns = tuple(dict.fromkeys((*plan.data.groups, *plan.data.acquisition)))
    return finetune_data(
        load_data(plan.data.path, groups=columns, columns=plan.data.columns), plan, out, console=console
    )


def finetune_data(data: AuditDataset, plan: Plan, out: Path, *, console: Bar) -> FinetuneReport:
    """As ``finetune_plan`` for data already loaded. Raises DataError when a split is missing or shares a patient."""
    classes = _classes(data, plan)
    splits = _splits(data)
    model = build_model(plan, classes)
    shape = model.config
    spec = InputSpec(shape.num_channels, shape.image_size, shape.image_size)
    train, validation = (_arrays(splits[name], spec, classes, console) for name in ("train", "validation"))
    try:
        summary = finetune(model, train, validation, plan.training, out, progress=_shown(console))
    finally:
        console.close()
    trained = load_model(out)
    test_auroc, test_accuracy = evaluate(trained, splits["test"], classes)
    report = FinetuneReport(out, summary, test_auroc, test_accuracy)
    evaluation = {"test_auroc": test_auroc._asdict(), "test_accuracy": test_accuracy._asdict()}
    write_atomic(out / "evaluation.json", json.dumps(evaluation, indent=2, allow_nan=False).encode())
    return report


def build_model(plan: Plan, classes: tuple[str, ...]) -> LlmImageClassifier:
    """The untrained classifier that the plan's ``[backbone]`` describes."""
    backbone, pretrained = plan.backbone, plan.backbone.pretrained
    if backbone.start:
        return _continued(backbone.start, classes)
    make = partial(LlmImageClassifier.from_backbone, pretrained) if pretrained else partial(preset, backbone.preset)
    return make(
        image_size=backbone.image_size,
        patch_size=backbone.patch_size,
        channels=backbone.channels,
        classes=classes,
        attention=backbone.attention,
        stem=backbone.stem,
        seed=plan.training.seed,
    )


def _continued(folder: str, classes: tuple[str, ...]) -> LlmImageClassifier:
    earlier = load_model(folder, device="cpu")
    module = getattr(earlier, "module", None)
    if not isinstance(module, LlmImageClassifier):
        raise ModelError(
            f"{folder}: only a classifier made by xvision can be trained on, this is {type(module).__name__}."
        )
    if earlier.classes != classes:
        raise ModelError(
            f"{folder}: has the classes {', '.join(earlier.classes)}, the data {', '.join(classes)}. They must agree."
        )
    return module.requires_grad_(True)


def evaluate(model: Classifier, data: AuditDataset, classes: tuple[str, ...]) -> tuple[Estimate, Estimate]:
    """AUROC (of the last class when there are two, else not given) and accuracy on a split."""
    labels = data.label_codes(classes)
    ids = [str(name) for name in data.table.index]
    parts = [ids[start : start + 64] for start in range(0, len(ids), 64)]
    with torch.inference_mode():
        logits = torch.cat(
            [model.logits(torch.from_numpy(data.pixels(part, model.input)).to(model.device)).cpu() for part in parts]
        )
    patients = data.table["patient"].to_numpy(dtype=str)
    accuracy = proportion(logits.argmax(1).numpy() == labels, patients)
    if len(classes) != 2:
        return Estimate(None, None, None, len(set(patients)), "", "more than two classes; see the audit"), accuracy
    return auroc((logits[:, 1] - logits[:, 0]).double().numpy(), labels == 1, patients), accuracy


def _classes(data: AuditDataset, plan: Plan) -> tuple[str, ...]:
    """Class names in alphabetical order, the declared positive class last."""
    found = sorted(set(data.table["label"]))
    positive = plan.decision.positive
    if positive is None:
        return tuple(found)
    if positive not in found:
        raise ConfigError(f"decision.positive is {positive!r}, but the labels are {', '.join(found)}.")
    return (*[name for name in found if name != positive], positive)


def _splits(data: AuditDataset) -> dict[str, AuditDataset]:
    found = {name: data.split(name) for name in _SPLITS if (data.table["split"] == name).any()}
    missing = [name for name in _SPLITS if name not in found]
    if missing:
        have = ", ".join(sorted(set(data.table["split"])))
        raise DataError(
            f"fine-tuning needs the splits train, validation and test; {', '.join(missing)} is missing (found: {have})."
        )
    owners: dict[str, str] = {}
    for name, part in found.items():
        for patient in set(part.table["patient"]):
            if owners.setdefault(patient, name) != name:
                raise DataError(
                    f"patient {patient!r} is in both {owners[patient]} and {name}: split by patient, or the test says nothing."
                )
    return found


def _arrays(data: AuditDataset, spec: InputSpec, classes: tuple[str, ...], console: Bar) -> Arrays:
    """A split in memory at 8 bits, decoded once."""
    ids = [str(name) for name in data.table.index]
    pixels = np.empty((len(ids), spec.channels, spec.height, spec.width), dtype=np.uint8)
    for start in range(0, len(ids), 64):
        part = ids[start : start + 64]
        pixels[start : start + len(part)] = np.rint(data.pixels(part, spec) * 255.0)
        console.update("Reading images", start + len(part), len(ids))
    console.close()
    return Arrays(pixels, np.array(data.label_codes(classes)))


def _shown(console: Bar) -> Callable[[Progress], None]:
    def show(progress: Progress) -> None:
        note = f"loss {progress.loss:.3f}, {progress.images_per_second:.0f} images/s"
        console.update(f"Fine-tuning, epoch {progress.epoch}", progress.step, progress.total, note)

    return show
