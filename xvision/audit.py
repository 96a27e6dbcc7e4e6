"""The audit an analysis receives: a model, data, a decision and a seed; clean predictions computed once and shared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from xvision.config import FairnessPlan, Modality
from xvision.data.dataset import AuditDataset
from xvision.data.scores import names_of
from xvision.engine import Batch, Engine, Measure, Rows, Work
from xvision.errors import ConfigError
from xvision.methods.decision import Decision, decide, probabilities
from xvision.methods.intervals import Estimate, bootstrap, not_estimable, with_width
from xvision.methods.operating_point import OperatingPoint
from xvision.models.predictions import PredictionsClassifier
from xvision.models.protocols import Classifier
from xvision.result import Better, Metric, NotApplicable, Where


@dataclass(frozen=True)
class Predictions:
    """The model on the clean images. logits, probabilities: (N, K) float64; decisions: (N,) class index as deployed."""

    logits: np.ndarray
    probabilities: np.ndarray
    decisions: np.ndarray


@dataclass(frozen=True, eq=False)
class Outside:
    """Images from elsewhere. reference: where the model comes from. near, far: name → images that it was not made for."""

    reference: AuditDataset | None = None
    near: Mapping[str, AuditDataset] = field(default_factory=dict)
    far: Mapping[str, AuditDataset] = field(default_factory=dict)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each, as "reference", "near NAME" and "far NAME"."""
        sets = {f"{kind} {name}": data for kind in ("near", "far") for name, data in getattr(self, kind).items()}
        sets |= {} if self.reference is None else {"reference": self.reference}
        return {name: data.fingerprint for name, data in sorted(sets.items())}


@dataclass
class Audit:
    """Everything an analysis may ask for. ``everything`` holds all splits; all else speaks of the audited split."""

    model: Classifier
    everything: AuditDataset
    decision: Decision
    seed: int
    engine: Engine = field(default_factory=Engine)
    groups: tuple[str, ...] = ()
    """Columns that say who the patient is."""
    acquisition: tuple[str, ...] = ()
    """Columns that say how the image was taken."""
    pictures: bool = True
    task: str = "audit"
    """The analysis at work: names progress and parts."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The options of every analysis of this run, for the one that follows another's."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What several analyses of one run use, kept by whoever makes it; results never depend on its being there."""
    outside: Outside = field(default_factory=Outside)
    modality: Modality | None = None
    """How the images were made, as the plan declares it."""
    fairness: FairnessPlan = field(default_factory=FairnessPlan)
    """What was agreed about groups."""
    operating: OperatingPoint = field(default_factory=OperatingPoint)
    """How the threshold of the decision came about: declared, or chosen on validation cases."""
    called: str = "the audited images"
    """What these cases are, in words."""

    def on_split(self, name: str) -> Audit | None:
        """The same model and decision on another split of the same data; None where no case belongs to it."""
        if not (self.everything.table["split"] == name).any():
            return None
        return self._about(self.everything.split(name), f"the split {name!r}")

    @property
    def tuning(self) -> Audit | None:
        """The split "validation", on which thresholds, temperatures and the like may be fitted; None without one."""
        return self.on_split("validation")

    @property
    def reference(self) -> Audit | None:
        """Where the model comes from: the data set named so, else the split "validation", else "train"; None without any.

        A split whose cases are audited themselves, as where there is no split "test", is nothing to compare them with.
        """
        if self.outside.reference is not None:
            return self._about(self.outside.reference, "the reference data")
        audited = set(self.ids)
        others = (self.on_split(name) for name in ("validation", "train"))
        return next((other for other in others if other is not None and not audited & set(other.ids)), None)

    @property
    def near(self) -> dict[str, Audit]:
        """Named sets of images that could be mistaken for the right ones; they may have no labels."""
        return {name: self._about(data, f"the near set {name!r}") for name, data in self.outside.near.items()}

    @property
    def far(self) -> dict[str, Audit]:
        """Named sets of images that have nothing to do with the task; they may have no labels."""
        return {name: self._about(data, f"the far set {name!r}") for name, data in self.outside.far.items()}

    def _about(self, data: AuditDataset, called: str) -> Audit:
        """An audit of other cases, made once; what it computes is kept in the same engine."""
        key = f"about/{called}"
        if key not in self.shared:
            groups, acquisition = (
                tuple(c for c in names if c in data.table) for names in (self.groups, self.acquisition)
            )
            self.shared[key] = replace(
                self,
                everything=data,
                groups=groups,
                acquisition=acquisition,
                shared={},
                outside=Outside(),
                called=called,
            )
        other: Audit = self.shared[key]
        other.task = self.task
        return other

    @cached_property
    def data(self) -> AuditDataset:
        return self.everything.audited

    @cached_property
    def fingerprints(self) -> tuple[str, str]:
        """SHA-256 of the model and of all the data."""
        return self.model.fingerprint, self.everything.fingerprint

    @cached_property
    def ids(self) -> np.ndarray:
        return self.data.table.index.to_numpy(dtype=str)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) class indices."""
        return self.data.label_codes(self.model.classes)

    @cached_property
    def labelled(self) -> bool:
        """Whether every case has a label that is a class of the model."""
        if self.data.multilabel:
            return False
        known = {*self.model.classes, *(str(code) for code in range(len(self.model.classes)))}
        return bool(self.data.table["label"].isin(known).all())

    @cached_property
    def patients(self) -> np.ndarray:
        """(N,) patient of each case; a case without one is its own patient."""
        return self.data.table["patient"].to_numpy(dtype=str)

    def column(self, name: str) -> np.ndarray:
        """(N,) levels of a group or acquisition column, "unknown" where missing."""
        return self.data.table[name].to_numpy(dtype=str)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.model.classes

    @property
    def positive(self) -> int:
        """Class index of the positive class; NotApplicable for a model with more than two classes."""
        if self.decision.positive is None:
            raise NotApplicable(f"the model has {len(self.classes)} classes and this analysis needs a positive one")
        return self.decision.positive

    @cached_property
    def predictions(self) -> Predictions:
        if isinstance(self.model, PredictionsClassifier):
            logits = self.model.predicted(names_of(self.model, self.data))
        else:
            logits = self.map(_logits, task="predictions")["logits"].astype(np.float64)
        return Predictions(logits, probabilities(logits), decide(logits, self.decision))

    @cached_property
    def embeddings(self) -> np.ndarray:
        """(N, D) float32, the last representation before the head; only for a model that gives it (``can("embeddings")``)."""
        return self.map(_embeddings, task="embeddings")["embeddings"]

    @property
    def scores(self) -> np.ndarray:
        """(N,) predicted probability of the positive class."""
        column: np.ndarray = self.predictions.probabilities[:, self.positive]
        return column

    @property
    def correct(self) -> np.ndarray:
        hits: np.ndarray = self.predictions.decisions == self.labels
        return hits

    def rng(self, name: str) -> np.random.Generator:
        """Randomness of its own for every name, so that one analysis cannot change another's numbers."""
        return np.random.default_rng(self.seed_of(name))

    def seed_of(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{self.task}/{name}".encode()).digest()[:7], "big")

    def sample(self, count: int) -> np.ndarray:
        """Positions of at most ``count`` cases, drawn without replacement and in data order; all when there are fewer."""
        if count < 1:
            raise ConfigError(f"analysis.{self.task}: found {count} cases to look at: at least 1 is needed.")
        if count >= len(self.ids):
            return np.arange(len(self.ids))
        return np.sort(self.rng("sample").choice(len(self.ids), count, replace=False))

    @cached_property
    def showcase(self) -> np.ndarray:
        """Positions of the cases that every analysis pictures: the most confident right and wrong ones of each class.

        None where only predictions were given: there is nothing to picture.
        """
        if self.model.access == "scores":
            return np.array([], dtype=int)
        confidence = self.predictions.probabilities.max(axis=1)
        chosen: list[int] = []
        for code in range(len(self.classes)):
            for right in (True, False):
                members = np.flatnonzero((self.labels == code) & (self.correct == right))
                chosen.extend(
                    members[np.argsort(-confidence[members], kind="stable")][: 3 if len(self.classes) == 2 else 1]
                )
        return np.array(chosen[:12], dtype=int)

    def facts(self, position: int) -> Mapping[str, str | float | int]:
        """What a reader must know of a case before looking at its pictures."""
        predictions = self.predictions
        decided = int(predictions.decisions[position])
        return {
            "label": self.classes[self.labels[position]],
            "decision": self.classes[decided],
            "probability": float(predictions.probabilities[position, decided]),
        }

    def pixels(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """(B, C, H, W) pixels in [0, 1] as the model sees them. For a handful of cases; use ``map`` for all."""
        return self.data.pixels([str(self.ids[position]) for position in positions], self.model.input)

    def map(
        self,
        measure: Measure,
        *,
        positions: np.ndarray | None = None,
        options: Mapping[str, Any] | None = None,
        task: str | None = None,
        part: int | None = None,
    ) -> Rows:
        """``measure`` over cases (all of them unless ``positions`` are given), in parts, resumable, on any engine.

        part: images of one part, for a measure that fills its own batches of the engine's size.
        """
        places = np.arange(len(self.ids)) if positions is None else np.asarray(positions)
        work = Work(
            name=task or self.task,
            measure=measure,
            model=self.model,
            data=self.data,
            ids=tuple(str(name) for name in self.ids[places]),
            labels=self.labels[places] if self.labelled else np.full(len(places), -1),
            options={"measure": measure.__qualname__, **(options or {})}
            if hasattr(measure, "__qualname__")
            else dict(options or {}),
            seed=self.seed,
            fingerprints=self.fingerprints,
            part=part,
        )
        return self.engine.map(work)

    def can(self, need: str) -> str | None:
        """None when the model gives what an analysis needs, else the reason why it does not."""
        if need != "scores" and self.model.access == "scores":
            return "only predictions were given, no model"
        name, kind = self.model.description.get("architecture", "this model"), type(self.model)
        if need == "gradients" and self.model.access != "white-box":
            return f"{name} gives no gradients ({self.model.access} access)"
        if need == "attention" and not hasattr(kind, "attention"):
            return f"{name} has no attention weights that map to image patches"
        if need == "embeddings" and not hasattr(kind, "embed"):
            return f"{name} has no embeddings that can be read"
        if need == "words" and not hasattr(kind, "with_question") and not getattr(self.model, "takes_text", False):
            return f"{name} reads no words: its classification head sees the image alone"
        return None


def apart(column: str, *taken: str) -> str:
    """The key of a group column in ``where``; a column called like another condition is told apart from it.

    So is one called like the key that this gives: two columns never share a key.
    """
    stem = column
    while stem.startswith("group "):
        stem = stem.removeprefix("group ")
    return f"group {column}" if stem in taken else column


def metric(
    name: str,
    estimate: Estimate,
    *,
    better: Better = "neither",
    where: Where | None = None,
    unit: str = "",
) -> Metric:
    """A method's estimate as a number of the run."""
    return Metric(
        name,
        estimate.value,
        estimate.low,
        estimate.high,
        estimate.n,
        unit,
        better,
        where or {},
        estimate.reason,
        estimate.method,
    )


def mean_metric(
    audit: Audit,
    name: str,
    values: np.ndarray,
    positions: np.ndarray,
    *,
    better: Better = "neither",
    where: Where | None = None,
    unit: str = "",
    reason: str = "no case has a defined value",
    hits: bool = False,
) -> Metric:
    """Mean of per-case values (NaN: undefined for that case) with a patient bootstrap interval, or ``reason`` without any.

    hits: the values are hits and misses; where every case has the same, the interval is Wilson's and not of zero width.
    """
    estimate = mean_estimate(audit, f"{name} {dict(where or {})}", values, positions, reason)
    if hits:
        estimate = with_width(estimate, estimate.n, 0.95)
    return metric(name, estimate, better=better, where=where, unit=unit)


def mean_estimate(
    audit: Audit, purpose: str, values: np.ndarray, positions: np.ndarray, reason: str = "no case has a defined value"
) -> Estimate:
    """Mean of per-case values as ``mean_metric`` gives it; ``purpose`` names the draws of its bootstrap."""
    defined = np.isfinite(values)
    if not defined.any():
        return not_estimable(reason)
    kept = values[defined].astype(np.float64)
    return bootstrap(
        lambda weights: (weights @ kept) / weights.sum(axis=1),
        audit.patients[positions[defined]],
        rng=audit.rng(purpose),
    )


def count(name: str, value: int, *, where: Where | None = None) -> Metric:
    """An exact count."""
    return Metric(name, float(value), n=value, unit="count", where=where or {}, interval="exact count")


def prediction_table(audit: Audit) -> pd.DataFrame:
    """One row per audited case: who, which split and groups, label, decision, probability and logit of each class."""
    predictions = audit.predictions
    table = audit.data.table[["patient", "split", "label", *audit.data.groups]].reset_index(names="id")
    table["label"] = [audit.classes[code] for code in audit.labels]
    table["decision"] = [audit.classes[code] for code in predictions.decisions]
    for code, name in enumerate(audit.classes):
        table[f"prob:{name}"] = predictions.probabilities[:, code]
        table[f"logit:{name}"] = predictions.logits[:, code]
    return table


def _logits(batch: Batch) -> Rows:
    with torch.inference_mode():
        return {"logits": batch.model.logits(batch.pixels).cpu().numpy()}


def _embeddings(batch: Batch) -> Rows:
    with torch.inference_mode():
        return {"embeddings": batch.model.embed(batch.pixels).float().cpu().numpy()}
