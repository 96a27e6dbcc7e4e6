"""What a model says about images, labelled or not: logits, the deployed decision, and embeddings where it has them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from xvision.config import DecisionPlan
from xvision.data.dataset import AuditDataset
from xvision.engine import Batch, Engine, Rows, Work
from xvision.errors import ConfigError, nearest
from xvision.methods.decision import Decision, decide, probabilities
from xvision.models.protocols import Classifier


@dataclass(frozen=True)
class Question:
    """What is asked of the model: classes and the deployed decision. finding: its output, for a multi-label model."""

    classes: tuple[str, ...]
    decision: Decision
    finding: int | None = None

    def logits(self, outputs: np.ndarray) -> np.ndarray:
        """Logits (N, K) of the classes from the model's outputs; a finding against its absence has two."""
        if self.finding is None:
            return outputs
        own = outputs[:, self.finding]
        return np.stack([np.zeros_like(own), own], axis=1)


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
    """The deployed decision, at one half where no threshold is declared. Raises ConfigError for what does not fit the model."""
    if model.access == "scores":
        raise ConfigError("a review queue asks the model about images; stored predictions cannot answer: name a model as model.path.")
    several = model.task == "multilabel"
    if several and plan.positive is None:
        raise ConfigError(
            f"the model finds {', '.join(model.classes)} side by side: name one of them as decision.positive."
        )
    if plan.positive is not None and plan.positive not in model.classes:
        raise ConfigError(
            f"decision.positive is {plan.positive!r}, not a class of the model. {nearest(plan.positive, model.classes)}"
        )
    threshold = 0.5 if plan.threshold is None else plan.threshold
    if several and plan.positive is not None:
        classes = (f"no {plan.positive}", plan.positive)
        return Question(classes, Decision(1, threshold, plan.threshold is not None), model.classes.index(plan.positive))
    if len(model.classes) > 2:
        if plan.threshold is not None:
            raise ConfigError(f"decision.threshold is for two classes; this model has {len(model.classes)}. Remove it.")
        return Question(model.classes, Decision(None, None, True))
    positive = 1 if plan.positive is None else model.classes.index(plan.positive)
    declared = plan.positive is not None and plan.threshold is not None
    return Question(model.classes, Decision(positive, threshold, declared))


def score(
    model: Classifier, data: AuditDataset, question: Question, engine: Engine, *, seed: int, embed: bool
) -> Scored:
    """The model on every case, in parts that survive an interruption. embed: read embeddings too, a second pass."""
    # Asking isinstance of the protocol would read every property, and hash all weights.
    has_embeddings = embed and hasattr(type(model), "embed")
    ids = tuple(str(name) for name in data.table.index)
    work = Work(
        name="review queue",
        measure=_with_embeddings if has_embeddings else _outputs,
        model=model,
        data=data,
        ids=ids,
        labels=np.zeros(len(ids), dtype=np.int64),  # none is needed, and some cases have none
        options={"embeddings": has_embeddings},
        seed=seed,
        fingerprints=(model.fingerprint, data.fingerprint),
    )
    rows = engine.map(work)
    outputs = rows["outputs"].astype(np.float64)
    return Scored(data, question, question.logits(outputs), rows.get("embeddings"))


def _outputs(batch: Batch) -> Rows:
    with torch.inference_mode():
        return {"outputs": batch.model.logits(batch.pixels).cpu().numpy()}


def _with_embeddings(batch: Batch) -> Rows:
    with torch.inference_mode():
        return {**_outputs(batch), "embeddings": batch.model.embed(batch.pixels).cpu().numpy()}
