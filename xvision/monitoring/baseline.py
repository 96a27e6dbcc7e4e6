"""The reference that a hospital keeps: numbers of the audited images without names or pixels, and what was promised of them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xvision import codec, provenance
from xvision.config import Plan, PromptPlan
from xvision.data.plan_data import load_plan_data
from xvision.errors import ConfigError, RunError
from xvision.methods.decision import Decision
from xvision.methods.intervals import patient_codes
from xvision.methods.shift.windows import Cases
from xvision.models.finding import finding_view
from xvision.models.open import load_model
from xvision.models.protocols import Classifier
from xvision.monitoring.channels import Axes, Seen, channels, decided, look, reads_text
from xvision.store import Run, open_run, sha256, write_atomic

FORMAT = 2
WINDOWS = 999
"""Windows of the reference that new images are compared with: no chance below 1 in 1000 can be told."""
_RECORD, _ARRAYS, _SUMS = "baseline.json", "reference.npz", "checksums.txt"
_PROMISED = ("accuracy", "sensitivity", "specificity", "auroc")
_FEWEST, _FEWEST_PATIENTS = 50, 20


@codec.record
class Promised:
    """A figure of the audit with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float


@codec.record
class Record:
    """baseline.json. alarms: the chance of a false alarm that is allowed, for all channels of one comparison together. least: the
    distance below which a difference is no alarm, however certain it is. texts: whether the model got a text with each image.
    """

    format: int
    created: str
    name: str
    model: str
    prompt: PromptPlan | None
    device: str
    fingerprints: Mapping[str, str]
    classes: tuple[str, ...]
    positive: str | None
    threshold: float | None
    finding: str | None
    texts: bool
    channels: tuple[str, ...]
    images: int
    patients: int
    alarms: float
    least: float
    promised: tuple[Promised, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Baseline:
    """A baseline folder as read. logits: (N, K), labels: (N,) class indices of the reference cases."""

    record: Record
    cases: Cases
    logits: np.ndarray
    labels: np.ndarray
    axes: Axes | None

    @property
    def decision(self) -> Decision:
        positive = None if self.record.positive is None else self.record.classes.index(self.record.positive)
        return Decision(positive, self.record.threshold, True)

    def open_model(self, path: str | None) -> Classifier:
        """The audited model, from ``path`` or where the audit found it. Raises ConfigError for another model."""
        record = self.record
        model = load_model(path or record.model, device=record.device, prompt=record.prompt)
        model = finding_view(model, record.finding) if model.task == "multilabel" else model
        if model.fingerprint != record.fingerprints["model"]:
            raise ConfigError(
                f"{path or record.model}: is not the model of this baseline (fingerprint {model.fingerprint[:12]}, audited was"
                f" {record.fingerprints['model'][:12]}). A changed model needs an audit and a baseline of its own."
            )
        return model


def write_baseline(run: Path, out: Path, *, alarms: float, least: float, embeddings: bool) -> Baseline:
    """The baseline of an audited run, into the new folder ``out``. Everything that can be wrong is found before it is written.

    Raises ConfigError for a model or data that are not those of the run, and for settings out of range; RunError for a folder
    that is there already.
    """
    fewest = 1 / (WINDOWS + 1)
    if not fewest <= alarms < 1 or not 0 <= least < 1:
        raise ConfigError(
            f"found alarms {alarms} and least {least}: give a chance from {fewest} to below 1, and a distance from 0 to below 1"
        )
    if out.exists():
        raise RunError(f"{out}: exists already. Choose another --out, or remove it.")
    audited = open_run(run)
    plan = _plan(audited)
    model, seen, labels, texts = _looked(audited, plan, embeddings)
    axes = Axes.of(seen.embeddings, seen.patients) if seen.embeddings is not None else None
    decision = _decision(audited)
    names, values = channels(seen, model.classes, decision, axes)
    codes, patients = patient_codes(seen.patients, len(seen.ids))
    record = Record(
        format=FORMAT, created=provenance.now(), name=audited.info.name, model=plan.model.path, prompt=plan.model.prompt,
        device=plan.model.device, fingerprints=audited.info.fingerprints, classes=model.classes,
        positive=None if decision.positive is None else model.classes[decision.positive], threshold=decision.threshold,
        finding=plan.decision.positive if "finding" in model.description else None, texts=texts, channels=names,
        images=len(seen.ids), patients=patients,
        alarms=alarms, least=least, promised=tuple(_promised(audited)), versions=provenance.versions(),
    )  # fmt: skip
    found = Baseline(record, Cases(values, decided(seen, decision), codes.astype(str)), seen.logits, labels, axes)
    _write(found, out)
    return found


def _plan(run: Run) -> Plan:
    plan = codec.read(Plan, dict(run.info.plan), str(run.path / "run.json"), RunError)
    if plan.model.path.startswith("("):
        raise ConfigError(
            f"{run.path}: its model and data were given in Python, so they cannot be found again. Audit them by a plan first."
        )
    return plan


def _looked(run: Run, plan: Plan, embeddings: bool) -> tuple[Classifier, Seen, np.ndarray, bool]:
    """The model on the audited images again, their labels, and whether it read their texts."""
    data = load_plan_data(plan.data)
    model = load_model(plan.model.path, device=plan.model.device, prompt=plan.model.prompt)
    if model.access == "scores":
        raise ConfigError(f"{run.path}: only predictions were audited. Later images need the model itself.")
    if model.task == "multilabel":
        model = finding_view(model, plan.decision.positive)
        data = data.finding(str(plan.decision.positive)) if data.multilabel else data
    for what, own in (("model", model.fingerprint), ("data", data.fingerprint)):
        if own != run.info.fingerprints[what]:
            raise ConfigError(f"{run.path}: the {what} it names has changed since the audit. Audit it again first.")
    data = data.audited
    texts = reads_text(model, data)
    seen = look(model, data, embeddings=embeddings and hasattr(type(model), "embed"), texts=texts)
    patients = len(set(seen.patients))
    if len(seen.ids) < _FEWEST or patients < _FEWEST_PATIENTS:
        raise ConfigError(
            f"{run.path}: {len(seen.ids)} audited images of {patients} patients are too few for a baseline, {_FEWEST} of"
            f" {_FEWEST_PATIENTS} are needed."
        )
    labels = pd.Series(data.label_codes(model.classes), index=data.table.index)
    return model, seen, labels.loc[list(seen.ids)].to_numpy(), texts


def _decision(run: Run) -> Decision:
    said = run.info.decision
    positive = run.info.classes.index(str(said["positive"])) if said["positive"] else None
    threshold = said["threshold"]
    return Decision(positive, None if threshold is None else float(str(threshold)), True)


def _promised(run: Run) -> list[Promised]:
    """The overall figures of the audit."""
    found = run.metrics
    own = found[(found["analysis"] == "performance") & found["name"].isin(_PROMISED)]
    return [
        Promised(row["name"], row["value"], row["low"], row["high"])
        for row in own.to_dict("records")
        if not set(row["where"]) - {"threshold"} and pd.notna([row["value"], row["low"], row["high"]]).all()
    ]


def _write(found: Baseline, out: Path) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        "values": found.cases.values, "decisions": found.cases.decisions, "patients": found.cases.patients.astype(int),
        "logits": found.logits, "labels": found.labels,
    }  # fmt: skip
    if found.axes is not None:
        arrays |= {"mean": found.axes.mean, "directions": found.axes.directions}
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomic(out / _ARRAYS, buffer.getvalue())
    write_atomic(out / _RECORD, codec.dumps(codec.plain(found.record)).encode())
    sums = "".join(f"{sha256(out / name)}  {name}\n" for name in (_ARRAYS, _RECORD))
    write_atomic(out / _SUMS, sums.encode())  # last: without it the folder is not a baseline


def read_baseline(path: Path) -> Baseline:
    """A baseline as it was written. Raises ConfigError for a folder that is none, is half written or was changed."""
    try:
        stated = [line.partition("  ") for line in (path / _SUMS).read_text("utf-8").splitlines()]
        sums = {name: digest for digest, _, name in stated}
        for name in (_ARRAYS, _RECORD):
            if sums.get(name) != sha256(path / name):
                raise ConfigError(f"{path / name}: has changed since it was written. Make the baseline again.")
        data = json.loads((path / _RECORD).read_text("utf-8"))
        with np.load(path / _ARRAYS, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"{path}: is no complete baseline ({type(problem).__name__}). Make one with `xvision baseline RUN --out {path}`."
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigError(f"{path / _RECORD}: this version of xvision reads baselines of format {FORMAT}.")
    record = codec.read(Record, data, str(path / _RECORD), ConfigError)
    axes = Axes(arrays["mean"], arrays["directions"]) if "mean" in arrays else None
    cases = Cases(arrays["values"], arrays["decisions"], arrays["patients"].astype(str))
    return Baseline(record, cases, arrays["logits"], arrays["labels"], axes)
