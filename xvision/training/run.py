"""From a plan to a checkpoint: data, model, loop, and the evidence of what training did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from xvision import text
from xvision.config import Plan
from xvision.data.dataset import AuditDataset
from xvision.data.plan_data import load_plan_data
from xvision.errors import ModelError
from xvision.methods.intervals import Estimate
from xvision.models.evidence import TrainingEvidence, write_evaluation
from xvision.models.huggingface import adapt, preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.models.open import load_model
from xvision.recipe import TrainingPlan
from xvision.training import state
from xvision.training.aftermath import After, evidence_of, lines_of
from xvision.training.evaluation import predict
from xvision.training.inputs import Bar, Inputs, classes_of, read_inputs, splits_of, texts_of
from xvision.training.loop import Progress, TrainingSummary, Validation, finetune
from xvision.training.rehearsal import old_data, remembered
from xvision.training.search import search, told
from xvision.training.world import world

__all__ = ["Bar", "FinetuneReport", "build_model", "finetune_data", "finetune_plan"]


@dataclass(frozen=True)
class FinetuneReport:
    """What a fine-tuning run gave; ``str`` is what the command prints."""

    checkpoint: Path
    summary: TrainingSummary
    evidence: TrainingEvidence
    selected_by: str

    @property
    def test_auroc(self) -> Estimate:
        return self._test("auroc")

    @property
    def test_accuracy(self) -> Estimate:
        return self._test("accuracy")

    def _test(self, name: str) -> Estimate:
        part = self.evidence.split("test")
        if part is None:
            raise ModelError(f"{self.checkpoint} was not tested.")
        found = getattr(part.after, name)
        return Estimate(found.value, found.low, found.high, found.n, found.method, found.reason)

    def __str__(self) -> str:
        summary, chosen = self.summary, "AUROC" if self.selected_by == "auroc" else "the worst group's AUROC"
        best, baseline = summary.validation.auroc, summary.baseline_auroc
        lines = [
            f"Checkpoint: {self.checkpoint} (epoch {summary.best_epoch} of {summary.epochs}, by validation {chosen})",
            f"Test AUROC {_said(self.test_auroc)}, accuracy {_said(self.test_accuracy)}, on "
            f"{text.plural(self.test_auroc.n, 'patient')} never trained on",
            f"Validation AUROC {text.number(best)}; plain pixels in a logistic regression reach {text.number(baseline)}",
            f"Trained {summary.trained_parameters:,} of {summary.parameters:,} weights in {summary.seconds:.0f} s: "
            f"{summary.images_per_second:.0f} images/s, {100 * summary.mfu:.0f} % of this device's matrix rate",
            *lines_of(self.evidence),
            *(f"Note: {note}." for note in summary.notes),
        ]
        return "\n".join(lines)


def _said(found: Estimate) -> str:
    return text.value(found.value, found.low, found.high, reason=found.reason)


def finetune_plan(plan: Plan, *, console: Bar, resume: bool = False, searching: bool = False) -> FinetuneReport:
    """Trains what the plan describes and writes the checkpoint to ``model.path``."""
    return finetune_data(
        load_plan_data(plan.data), plan, Path(plan.model.path), console=console, resume=resume, searching=searching
    )


def finetune_data(
    data: AuditDataset, plan: Plan, out: Path, *, console: Bar, resume: bool = False, searching: bool = False
) -> FinetuneReport:
    """As ``finetune_plan`` for data already loaded. searching: first look for the best recipe, as ``[search]`` says.

    Raises DataError when a split is missing or shares a patient, ConfigError for a plan that does not fit the data.
    """
    classes, splits = classes_of(data, plan), splits_of(data)
    old = old_data(plan)
    build = partial(build_model, plan, classes, splits["train"], multilabel=data.multilabel)
    model = build()
    inputs = read_inputs(
        splits, None if old is None else old.split("train"), model, plan, state.folder_of(out), console
    )
    if searching:
        plan = _searched(plan, build, inputs, out, console)
    before = _before(model, plan, splits)
    try:
        summary = finetune(
            model, inputs.arrays["train"], inputs.arrays["validation"], plan.training, out, old=inputs.old, resume=resume,
            flip=not plan.data.laterality, keep_state=True, record={"source": remembered(plan, out)},
            progress=_shown(console, "Fine-tuning"),
        )  # fmt: skip
        after = After(load_model(out), plan, classes, inputs, old, before, summary)
        evidence = evidence_of(after, build, out, progress=lambda name, update: _shown(console, name)(update))
    finally:
        console.close()
    if world().first:
        write_evaluation(out, evidence)
        state.forget(out)
    return FinetuneReport(out, summary, evidence, plan.training.select)


def build_model(
    plan: Plan, classes: tuple[str, ...], train: AuditDataset, *, multilabel: bool = False
) -> LlmImageClassifier:
    """The untrained classifier that the plan's ``[backbone]`` describes; its vocabulary is that of the training texts."""
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
        head=backbone.head,
        label_words=backbone.label_words,
        multilabel=multilabel,
        dropout=backbone.dropout,
        text_tokens=backbone.text_tokens,
        texts=texts_of(train) if backbone.text_tokens else (),
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


def _before(model: LlmImageClassifier, plan: Plan, splits: dict[str, AuditDataset]) -> dict[str, np.ndarray]:
    """Logits on validation and test of an earlier classifier; nothing where training starts from scratch."""
    if not plan.backbone.start:
        return {}
    found = adapt(model, preprocessing_of(model.config), source=plan.backbone.start)
    return {name: predict(found, splits[name]) for name in ("validation", "test")}


def _searched(plan: Plan, build: Callable[[], LlmImageClassifier], inputs: Inputs, out: Path, console: Bar) -> Plan:
    """The plan with the best recipe found; trials are trained as the real thing will be, into folders of their own."""
    folder = out.with_name(f"{out.name}.search")

    def trained(recipe: TrainingPlan, place: Path) -> Validation:
        arrays = inputs.arrays
        summary = finetune(
            build(), arrays["train"], arrays["validation"], recipe, place, old=inputs.old,
            flip=not plan.data.laterality, resume=True, progress=_shown(console, place.name),
        )  # fmt: skip
        return summary.validation

    best, trials = search(plan.training, plan.search, trained, folder)
    console.close()
    console.say(told(trials))
    return replace(plan, training=best)


def _shown(console: Bar, title: str) -> Callable[[Progress], None]:
    def show(progress: Progress) -> None:
        note = f"loss {progress.loss:.3f}, {progress.images_per_second:.0f} images/s"
        if progress.mfu is not None:
            note += f", MFU {100 * progress.mfu:.0f} %"
        console.update(f"{title}, epoch {progress.epoch}", progress.step, progress.total, note)

    return show
