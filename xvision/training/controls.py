"""Does the language model contribute? What is reached without it, or with less of it, beside the model itself.

A classifier built on a language model can be good because of its patch stem, or in spite of the body's weights (Lu et
al., 2021, train around a frozen body; random bodies are the control of that idea). Every control is trained with the
same loop and plan on the same images and compared with the model on the same test cases.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xvision import text
from xvision.errors import ModelError
from xvision.methods.intervals import not_estimable
from xvision.models.evidence import Change, Control, ControlName, ControlTable, Measure, contribution
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.recipe import BackbonePlan, Policy, TrainingPlan
from xvision.training import state
from xvision.training.evaluation import Cases, change, evaluate_logits, figure
from xvision.training.loop import finetune
from xvision.training.record import Arrays, Progress
from xvision.training.scores import BASELINE_SIDE, pixel_logits
from xvision.training.validation import predict
from xvision.training.world import world

Build = Callable[[], LlmImageClassifier]
Listener = Callable[[str, Progress], None]


@dataclass(frozen=True)
class _Setting:
    """What every control is trained on and compared with."""

    plan: TrainingPlan
    train: Arrays
    validation: Arrays
    test: Arrays
    cases: Cases
    model_logits: np.ndarray
    folder: Path
    progress: Listener | None

    def row(
        self,
        name: ControlName,
        logits: np.ndarray,
        *,
        measures: Sequence[Measure] = ("auroc", "accuracy"),
        trained: int = 0,
        note: str = "",
    ) -> Control:
        """The control with these test logits (N, K) beside the model."""
        seed = self.plan.seed
        found = evaluate_logits(logits, self.cases, seed=seed)
        gain = change(self.model_logits, logits, self.cases, measures=measures, seed=seed)
        return Control(name, found.auroc, found.accuracy, gain, trained, note)


def run_controls(
    plan: TrainingPlan,
    backbone: BackbonePlan,
    classes: Sequence[str],
    train: Arrays,
    validation: Arrays,
    test: Arrays,
    patients: np.ndarray,
    model_logits: np.ndarray,
    *,
    build: Build,
    folder: Path | None = None,
    progress: Listener | None = None,
) -> ControlTable:
    """The model beside the majority class, plain pixels, its stem alone, and its body frozen.

    patients: (N,) of the test images. model_logits: (N, K) of the trained model on them. build: makes the model as it was
    before training; it is called once. folder: where checkpoints go while the controls are trained, removed afterwards;
    several processes must be given the same one. progress: told the control's name as well.

    The gain is the model's AUROC (mean over classes when there are more than two) minus the control's on the same
    patients; accuracy against the majority class, whose AUROC is 0.5 whatever it says. A control trained with the
    model's plan may do better with a plan of its own: "no better than" is stronger evidence than "adds".
    """
    with _working_folder(folder) as place:
        cases = Cases(test.labels, np.asarray(patients, dtype=str))
        setting = _Setting(_plain(plan), train, validation, test, cases, model_logits, place, progress)
        rows = [_majority(setting, len(classes)), _pixels(setting, len(classes))]
        rows += _trained_controls(setting, backbone, build)
    model = evaluate_logits(model_logits, cases, seed=plan.seed)
    note = "the controls start from new weights, the model went on from an earlier checkpoint" if backbone.start else ""
    return ControlTable(model.auroc, model.accuracy, tuple(rows), note)


def printed(table: ControlTable) -> str:
    """The table as the command line shows it."""
    lines = [f"{'Control':<27} {'AUROC':<24} {'Accuracy':<24} Model minus control"]
    lines.append(f"{'the model':<27} {_said(table.auroc):<24} {_said(table.accuracy):<24}")
    for row in table.rows:
        gain = f"{text.label(row.gain.measure)} {_said(row.gain.figure)}: {contribution(row)}"
        lines.append(f"{row.name:<27} {_said(row.auroc):<24} {_said(row.accuracy):<24} {gain}")
    return "\n".join([*lines, table.note] if table.note else lines)


def _said(found: Any) -> str:
    return text.value(found.value, found.low, found.high, reason=found.reason)


def stem_only(model: LlmImageClassifier) -> LlmImageClassifier:
    """A new classifier of the same shape whose body has no layers: patches → stem → positions → mean → head.

    Nothing in it lets one patch know of another, and it reads no text.
    """
    config = deepcopy(model.config)
    body = config.text_config
    body.num_hidden_layers = 0
    if getattr(body, "layer_types", None):
        body.layer_types = []
    config.readout, config.head, config.label_words, config.adapter = "mean", "linear", None, None
    config.text_tokens, config.text_ids = 0, None
    return _seeded(config, 0)


def random_body(model: LlmImageClassifier, seed: int) -> LlmImageClassifier:
    """A new classifier of the same shape; nothing in it was ever trained."""
    config = deepcopy(model.config)
    config.adapter = None
    new = _seeded(config, seed)
    new.vocabulary = model.vocabulary
    return new


def _majority(setting: _Setting, classes: int) -> Control:
    labels = setting.train.labels
    if labels.ndim == 2:
        share = (labels.sum(axis=0) + 0.5) / (len(labels) + 1)
        constant = np.log(share / (1 - share))
    else:
        constant = np.log(np.bincount(labels, minlength=classes) + 0.5)
    logits = np.tile(constant, (len(setting.cases.patients), 1))
    return setting.row("majority class", logits, measures=("accuracy",))


def _pixels(setting: _Setting, classes: int) -> Control:
    logits = pixel_logits(setting.train, setting.test, classes, setting.plan.seed)
    fitted = 1 if classes == 2 and setting.train.labels.ndim == 1 else classes
    return setting.row("pixel logistic regression", logits, trained=fitted * (BASELINE_SIDE**2 + 1))


def _trained_controls(setting: _Setting, backbone: BackbonePlan, build: Build) -> Iterator[Control]:
    started, seed = build(), setting.plan.seed
    blind = "reads no text" if started.config.text_tokens else ""
    yield _trained(_without_text(setting), "stem only", stem_only(started), "full", note=blind)
    yield _trained(setting, "frozen random body", random_body(started, seed), "fpt")
    source = "an earlier checkpoint" if backbone.start else backbone.pretrained and "a pretrained language model"
    if source:
        yield _trained(setting, "frozen pretrained body", started, "fpt", note=f"body of {source}")


def _without_text(setting: _Setting) -> _Setting:
    train, validation, test = (part._replace(text=None) for part in (setting.train, setting.validation, setting.test))
    return replace(setting, train=train, validation=validation, test=test)


def _trained(
    setting: _Setting, name: ControlName, model: LlmImageClassifier, policy: Policy, *, note: str = ""
) -> Control:
    """One control through the loop; one that cannot be trained is a row with the reason, not the end of the training."""
    progress = setting.progress
    told = None if progress is None else lambda step: progress(name, step)
    plan, out = replace(setting.plan, policy=policy), setting.folder / name.replace(" ", "-")
    _clear(out)  # what a kill may have left
    try:
        summary = finetune(model, setting.train, setting.validation, plan, out, progress=told)
    except ModelError as problem:
        missing = figure(not_estimable(f"its training failed: {str(problem).split(';')[0][:120]}"))
        return Control(name, missing, missing, Change("auroc", missing), 0, note)
    finally:
        _clear(out)
    logits = predict(model, setting.test, plan)
    return setting.row(name, logits, trained=summary.trained_parameters, note=note)


def _clear(out: Path) -> None:
    """Nothing of a control's checkpoint stays; under several processes the first one clears for all."""
    here = world()
    here.wait()
    if here.first:
        shutil.rmtree(out, ignore_errors=True)
        state.forget(out)
    here.wait()


def _plain(plan: TrainingPlan) -> TrainingPlan:
    """The plan without what belongs to the model's own training only."""
    return replace(plan, trackers=(), controls=False, state_every=0)


def _seeded(config: Any, seed: int) -> LlmImageClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LlmImageClassifier(config)


@contextmanager
def _working_folder(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="xvision-controls-") as name:
            yield Path(name)
        return
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    with suppress(OSError):
        folder.rmdir()  # only when nothing else is in it
