"""What a model says about images, labelled or not: logits, the deployed decision, and embeddings where it has them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from xvision.config import DecisionPlan
from xvision.data.dataset import AuditDataset
from xvision.data.scores import names_of
from xvision.deployed import deployed_decision
from xvision.engine import Batch, Engine, Rows, Work
from xvision.methods.decision import Decision, decide, probabilities
from xvision.models.predictions import PredictionsClassifier
from xvision.models.protocols import Classifier


@dataclass(frozen=True)
class Question:
    """What is asked of the model: classes and the deployed decision."""

    classes: tuple[str, ...]
    decision: Decision


@dataclass(frozen=True)
class Scored:
    """Cases with the model's answers. logits: (N, K) float64. embeddings: (N, D), or None when there are none."""

    data: AuditDataset
    question: Question
    logits: np.ndarray
    embeddings: np.ndarray | None

    @cached_property
    def decisions(self) -> np.ndarray:
        """(N,) class index as deployed."""
        return decide(self.logits, self.question.decision)

    @cached_property
    def confidence(self) -> np.ndarray:
        """(N,) probability of the decided class."""
        chosen: np.ndarray = probabilities(self.logits)[np.arange(len(self.logits)), self.decisions]
        return chosen

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) given class indices; raises DataError where a label is missing or strange."""
        return self.data.label_codes(self.question.classes)

    @property
    def patients(self) -> np.ndarray:
        return self.column("patient")

    def column(self, name: str) -> np.ndarray:
        return self.data.table[name].to_numpy(dtype=str)

    def where(self, chosen: np.ndarray) -> Scored:
        """The cases at these positions."""
        data = self.data.subset([str(name) for name in self.data.table.index[chosen]])
        embeddings = None if self.embeddings is None else self.embeddings[chosen]
        return Scored(data, self.question, self.logits[chosen], embeddings)


def question_of(model: Classifier, plan: DecisionPlan) -> Question:
    """The deployed decision, at one half where no threshold is declared; the model is no longer multi-label.

    Raises ConfigError for a class or a threshold that does not fit the model.
    """
    return Question(model.classes, deployed_decision(model, plan))


def score(
    model: Classifier, data: AuditDataset, question: Question, engine: Engine, *, seed: int, embed: bool
) -> Scored:
    """The model on every case, in parts that survive an interruption. embed: read embeddings too, a second pass."""
    if isinstance(model, PredictionsClassifier):
        return Scored(data, question, model.predicted(names_of(model, data)), None)
    # Asking isinstance of a protocol would read every property, and hash all weights.
    has_embeddings = embed and hasattr(type(model), "embed")
    ids = tuple(str(name) for name in data.table.index)
    work = Work(
        name="review queue",
        measure=_with_embeddings if has_embeddings else _logits,
        model=model,
        data=data,
        ids=ids,
        labels=np.zeros(len(ids), dtype=np.int64),  # none is needed, and some cases have none
        options={"embeddings": has_embeddings},
        seed=seed,
        fingerprints=(model.fingerprint, data.fingerprint),
    )
    rows = engine.map(work)
    return Scored(data, question, rows["logits"].astype(np.float64), rows.get("embeddings"))


def _logits(batch: Batch) -> Rows:
    with torch.inference_mode():
        return {"logits": batch.model.logits(batch.pixels).cpu().numpy()}


def _with_embeddings(batch: Batch) -> Rows:
    with torch.inference_mode():
        return {**_logits(batch), "embeddings": batch.model.embed(batch.pixels).cpu().numpy()}
