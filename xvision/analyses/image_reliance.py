"""Whether a decision rests on the image at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.special import logsumexp

from xvision import images, text
from xvision.audit import Audit, apart, mean_metric, metric
from xvision.charts import Axis, Chart, Forest, Images, Mark, Reference, Table
from xvision.data.dataset import AuditDataset
from xvision.engine import Batch, Rows
from xvision.methods.decision import decide, probabilities
from xvision.methods.image_inputs import blank, border_only, centre_only, partners, patch_shuffled
from xvision.methods.image_reliance import (
    Performance,
    reliance,
    weighted_auroc,
    weighted_balanced_accuracy,
    weighted_recall,
)
from xvision.methods.intervals import Estimate, bootstrap, proportion, with_width
from xvision.methods.scores import auroc
from xvision.models.protocols import InputSpec
from xvision.registry import analysis
from xvision.result import Case, Metric, Result, Where, spoken

_SWAPPED = "another_patient"
_PARTNERS = {_SWAPPED: "any", "same_class": "same class", "other_class": "other class"}
_TITLES = {
    "black": "black image",
    "grey": "image absent (grey)",
    "mean_image": "mean image",
    "patch_shuffled": "patches shuffled",
    _SWAPPED: "another patient's image",
    "same_class": "another patient's, same class",
    "other_class": "another patient's, other class",
    "border_only": "border only",
    "centre_only": "centre only",
    "other_text": "text of another class",
    "no_text": "text absent",
}
_TEXTS = ("other_text", "no_text")
_AVERAGED = 200
"""Images that the mean image is made of, at most."""


@analysis(
    "Image reliance",
    pillar="Shift",
    need="pixels",
    passes="9 forward, 11 for a model that reads text",
)
def image_reliance(
    audit: Audit, *, cases: int = 300, grid: int = 4, border: float = 0.15, resamples: int = 500
) -> Result:
    """Does the model look at the image, and at what of it?

    Every image is replaced by something that says less: nothing (black, grey, the mean image), its own patches in another
    order, another patient's image, its border or its centre alone; for a model that reads text, the text is exchanged or left
    out while the image stays. ``reliance`` = (performance with the image − without) / (performance with it − chance), where
    performance is the AUROC with two classes and the balanced accuracy with more: 0 where the input makes no difference, 1 where
    nothing better than chance is left without it. With another patient's image it is the *visual reliance score*: a model that
    reads only images has about 1, one that goes by the text about 0.

    A low reliance on the arrangement of patches says that brightness and texture are enough. A border alone that keeps the
    performance shows that the answer can be had outside the anatomy; it does not show that the model takes it from there. High
    reliance does not say that the model looks at the disease: shortcuts are in the image too. ``grid``: patches a side.
    ``border``: its width, as a share of the side.
    """
    positions = audit.sample(cases)
    inputs = _Inputs.of(audit, positions, grid, border)
    rows = audit.map(
        inputs.measure, positions=positions, options={"grid": grid, "border": border, "inputs": inputs.names}
    )
    figures = _Figures(audit, positions, inputs, rows, resamples)
    metrics = tuple(figures.metrics())
    stored = _cases(audit, inputs)
    return Result(
        _summary(metrics, figures),
        metrics,
        (*_charts(metrics, figures), *_pictured(stored)),
        stored,
        caveats=_caveats(figures),
    )


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What is shown instead. others: kind of partner → id → the partner's id, "" where there is none."""

    names: tuple[str, ...]
    others: Mapping[str, Mapping[str, str]]
    mean: np.ndarray
    grid: int
    border: float
    seed: int
    data: AuditDataset
    texts: Mapping[str, str]

    @classmethod
    def of(cls, audit: Audit, positions: np.ndarray, grid: int, border: float) -> _Inputs:
        ids = [str(name) for name in audit.ids[positions]]
        who, labels = audit.patients[positions], audit.labels[positions]
        found = {kind: partners(ids, who, labels, kind=kind, seed=audit.seed) for kind in _PARTNERS.values()}
        others = {
            kind: {name: ids[place] if place >= 0 else "" for name, place in zip(ids, places, strict=True)}
            for kind, places in found.items()
        }
        reads = bool(getattr(audit.model, "takes_text", False)) and "text" in audit.data.table.columns
        table = audit.data.table
        texts = {name: str(table.at[name, "text"]) for name in ids} if reads else {}
        names = tuple(name for name in _TITLES if reads or name not in _TEXTS)
        return cls(names, others, _mean_image(audit), grid, border, audit.seed, audit.data, texts)

    @property
    def measure(self) -> partial[Rows]:
        return partial(_measure, inputs=self)

    def there(self, name: str, ids: np.ndarray) -> np.ndarray:
        """(N,) bool, whether each case has what this input needs."""
        kind = "other class" if name == "other_text" else _PARTNERS.get(name)
        return np.array([kind is None or self.others[kind][str(case)] != "" for case in ids])


def _mean_image(audit: Audit) -> np.ndarray:
    """(C, H, W) of the training split where there is one, else of the audited images."""
    source = audit.on_split("train") or audit
    positions = source.sample(_AVERAGED)
    total = sum(source.pixels(positions[[place]])[0].astype(np.float64) for place in range(len(positions)))
    return np.asarray(total / len(positions), dtype=np.float32)


def _measure(batch: Batch, *, inputs: _Inputs) -> Rows:
    """logits (B, inputs, K)."""
    found = []
    with torch.inference_mode():
        for name in inputs.names:
            if name in _TEXTS:
                found.append(_reading(batch, inputs, name))
            else:
                found.append(batch.model.logits(_shown(name, batch.pixels, batch.ids, inputs, batch.model.input)))
    return {"logits": torch.stack(found, dim=1).float().cpu().numpy()}


def _reading(batch: Batch, inputs: _Inputs, name: str) -> torch.Tensor:
    """Logits with other texts and the own image."""
    other = inputs.others["other class"]
    texts = [inputs.texts.get(other[case], "") if name == "other_text" else "" for case in batch.ids]
    return batch.model.with_text(texts).logits(batch.pixels)


def _shown(name: str, pixels: torch.Tensor, ids: tuple[str, ...], inputs: _Inputs, spec: InputSpec) -> torch.Tensor:
    """(B, C, H, W), what is shown instead of the pixels; the own image where a case has no partner."""
    if name in _PARTNERS:
        own = inputs.others[_PARTNERS[name]]
        return torch.from_numpy(inputs.data.pixels([own[case] or case for case in ids], spec)).to(pixels.device)
    if name == "mean_image":
        return torch.from_numpy(inputs.mean).to(pixels).expand_as(pixels)
    if name == "patch_shuffled":
        return patch_shuffled(pixels, ids, grid=inputs.grid, seed=inputs.seed)
    if name in ("border_only", "centre_only"):
        return (border_only if name == "border_only" else centre_only)(pixels, inputs.border)
    return blank(pixels, 0.0 if name == "black" else 0.5)


class _Figures:
    """Decisions with the image and without it. ``clean`` and the logits of each input: (N, K)."""

    def __init__(self, audit: Audit, positions: np.ndarray, inputs: _Inputs, rows: Rows, resamples: int) -> None:
        self.audit, self.positions, self.inputs, self.resamples = audit, positions, inputs, resamples
        self.labels, self.patients, self.ids = audit.labels[positions], audit.patients[positions], audit.ids[positions]
        self.clean = audit.predictions.logits[positions]
        self.logits = {name: rows["logits"][:, place].astype(float) for place, name in enumerate(inputs.names)}
        self.decided = decide(self.clean, audit.decision)
        self.there = {name: inputs.there(name, self.ids) for name in inputs.names}
        self.measured = "auroc" if audit.decision.positive is not None else "balanced_accuracy"

    def metrics(self) -> Iterator[Metric]:
        everyone = np.ones(len(self.ids), dtype=bool)
        yield self._performance("image", self.clean, everyone)
        yield metric("accuracy", self._right(self.clean, everyone), better="higher", where={"input": "image"})
        for name in self.inputs.names:
            yield from self._of_input(name)
        for code, label in enumerate(self.audit.classes):
            yield self._class_reliance(code, label)
        for column in self.audit.groups:
            levels = self.audit.column(column)[self.positions]
            for level in sorted(set(levels)):
                yield self._reliance(_SWAPPED, levels == level, {apart(column, "input", "class"): level})

    def _of_input(self, name: str) -> Iterator[Metric]:
        chosen, where = self.there[name], {"input": name}
        if not chosen.any():
            yield Metric("reliance", None, where=where, reason="no other patient can lend what this input needs")
            return
        logits = self.logits[name]
        decided = decide(logits, self.audit.decision)
        yield self._performance(name, logits, chosen)
        yield metric("accuracy", self._right(logits, chosen), better="higher", where=where)
        flips = proportion(decided[chosen] != self.decided[chosen], self.patients[chosen])
        yield metric("flip_rate", flips, where=where)
        change = np.abs(_log_odds(logits, self.decided) - _log_odds(self.clean, self.decided))
        yield mean_metric(self.audit, "log_odds_change", change[chosen], self.positions[chosen], where=where)
        yield self._reliance(name, chosen, {})

    def _right(self, logits: np.ndarray, chosen: np.ndarray) -> Estimate:
        return proportion((decide(logits, self.audit.decision) == self.labels)[chosen], self.patients[chosen])

    def _performs(self, logits: np.ndarray, chosen: np.ndarray) -> Performance:
        labels = self.labels[chosen]
        if self.audit.decision.positive is None:
            return weighted_balanced_accuracy(decide(logits[chosen], self.audit.decision), labels)
        scores = probabilities(logits[chosen])[:, self.audit.positive]
        return weighted_auroc(scores, labels == self.audit.positive)

    def _performance(self, name: str, logits: np.ndarray, chosen: np.ndarray) -> Metric:
        if self.audit.decision.positive is not None:
            positive = self.audit.positive
            found = auroc(
                probabilities(logits[chosen])[:, positive], self.labels[chosen] == positive, self.patients[chosen]
            )
        else:
            draws, performs = self.audit.rng(f"performance {name}"), self._performs(logits, chosen)
            found = bootstrap(performs, self.patients[chosen], resamples=self.resamples, rng=draws)
            found = with_width(found, self._units(chosen), 0.95)
        return metric(self.measured, found, better="higher", where={"input": name})

    def _units(self, chosen: np.ndarray) -> int:
        """Patients of the smallest class that occurs."""
        labels, patients = self.labels[chosen], self.patients[chosen]
        return min(len(np.unique(patients[labels == code])) for code in np.unique(labels))

    def _reliance(self, name: str, chosen: np.ndarray, where: Where) -> Metric:
        chosen = chosen & self.there[name]
        full: Where = {"input": name, **where}
        if len(np.unique(self.labels[chosen])) < 2:
            return Metric("reliance", None, where=full, reason="cases of one class only: no performance to lose")
        chance = 0.5 if self.audit.decision.positive is not None else 1 / len(np.unique(self.labels[chosen]))
        found = reliance(
            self._performs(self.clean, chosen),
            self._performs(self.logits[name], chosen),
            chance,
            self.patients[chosen],
            resamples=self.resamples,
            rng=self.audit.rng(f"reliance {name} {where}"),
            units=self._units(chosen),
        )
        return metric("reliance", found, where=full)

    def _class_reliance(self, code: int, label: str) -> Metric:
        """Of the share of a class that is found; chance is the share of all decisions that name the class."""
        chosen, where = self.there[_SWAPPED], {"input": _SWAPPED, "class": label}
        labels = self.labels[chosen]
        if not (labels == code).any():
            return Metric("reliance", None, where=where, reason="no case of this class")
        swapped = decide(self.logits[_SWAPPED][chosen], self.audit.decision)
        found = reliance(
            weighted_recall(self.decided[chosen], labels, code),
            weighted_recall(swapped, labels, code),
            float((self.decided[chosen] == code).mean()),
            self.patients[chosen],
            resamples=self.resamples,
            rng=self.audit.rng(f"reliance {label}"),
            units=len(np.unique(self.patients[chosen][labels == code])),
        )
        return metric("reliance", found, where=where)


def _log_odds(logits: np.ndarray, decided: np.ndarray) -> np.ndarray:
    """(N,) of the class that was decided on the clean image."""
    own = logits[np.arange(len(logits)), decided]
    rest = np.where(np.arange(logits.shape[1])[None, :] == decided[:, None], -np.inf, logits)
    return np.asarray(own - logsumexp(rest, axis=1))


def _by_input(metrics: tuple[Metric, ...], name: str) -> dict[str, Metric]:
    return {str(item.where["input"]): item for item in metrics if item.name == name and set(item.where) == {"input"}}


def _summary(metrics: tuple[Metric, ...], figures: _Figures) -> str:
    score, performance = _by_input(metrics, "reliance")[_SWAPPED], _by_input(metrics, figures.measured)
    if score.value is None:
        return f"No visual reliance score: {score.reason}."
    said = (
        f"With another patient's image the {text.label(figures.measured)} is {spoken(performance[_SWAPPED])} instead of"
        f" {spoken(performance['image'])}: visual reliance {spoken(score)}."
    )
    border = _by_input(metrics, "reliance")["border_only"]
    if border.high is not None and border.high < 0.5:
        said += " The border alone keeps more than half of what is better than chance: look for a shortcut outside the anatomy."
    return said


def _charts(metrics: tuple[Metric, ...], figures: _Figures) -> tuple[Chart, ...]:
    score, measured = _by_input(metrics, "reliance"), _by_input(metrics, figures.measured)
    right, flips = _by_input(metrics, "accuracy"), _by_input(metrics, "flip_rate")
    forest = Forest(
        title="How much of what is better than chance goes with each input",
        alt="; ".join(f"{_TITLES[name]} {text.number(item.value)}" for name, item in score.items()) + ".",
        value=Axis("Reliance: 0 makes no difference, 1 nothing left"),
        marks=tuple(
            Mark(_TITLES[name], item.value, item.low, item.high, item.reason or "") for name, item in score.items()
        ),
        references=(Reference("makes no difference", 0.0), Reference("nothing left", 1.0)),
    )
    rows: list[tuple[str, ...]] = [("the image itself", spoken(measured["image"]), spoken(right["image"]), "", "")]
    rows += [
        (_TITLES[name], *(spoken(of[name]) for of in (measured, right, flips) if name in of), spoken(score[name]))
        for name in measured
        if name != "image"
    ]
    table = Table(
        title="Performance with less than the image",
        alt=f"{len(rows)} inputs with {text.label(figures.measured)}, accuracy, share of decisions that change and reliance.",
        columns=("What is shown", text.label(figures.measured), "Accuracy", "Decisions that change", "Reliance"),
        rows=tuple(rows),
    )
    return forest, table, *_whom(metrics)


def _whom(metrics: tuple[Metric, ...]) -> Iterator[Table]:
    own = [item for item in metrics if item.name == "reliance" and len(item.where) > 1]
    if own:
        yield Table(
            title="Visual reliance by class and group",
            alt=f"Reliance with another patient's image for {len(own)} classes and group levels.",
            columns=("Whom", "Reliance", "Patients"),
            rows=tuple(
                (
                    text.condition({key: value for key, value in item.where.items() if key != "input"}),
                    spoken(item),
                    item.n,
                )
                for item in own
            ),
        )


def _pictured(stored: tuple[Case, ...]) -> tuple[Images, ...]:
    if not stored:
        return ()
    shown = tuple(case.id for case in stored[:3])
    return (
        Images(
            "What the model is shown", "One row per case: the image, then each input.", shown, tuple(stored[0].pictures)
        ),
    )


def _cases(audit: Audit, inputs: _Inputs) -> tuple[Case, ...]:
    """The showcase with what is shown instead, without other patients' images."""
    ids = tuple(str(audit.ids[position]) for position in audit.showcase)
    if not ids:
        return ()
    pixels = torch.from_numpy(audit.pixels(audit.showcase))
    made = [name for name in inputs.names if name not in _PARTNERS and name not in _TEXTS]
    shown = {"image": pixels} | {_TITLES[name]: _shown(name, pixels, ids, inputs, audit.model.input) for name in made}
    return tuple(
        Case(key, audit.facts(position), {name: images.enlarged(images.photograph(each[place].numpy())) for name, each in shown.items()})
        for place, (key, position) in enumerate(zip(ids, audit.showcase, strict=True))
    )  # fmt: skip


def _caveats(figures: _Figures) -> tuple[str, ...]:
    said = [
        "Images that no scanner makes may be decided in ways that say little about real ones; read the other inputs beside each."
    ]
    if not figures.inputs.texts:
        said.append("The model reads images alone, so that a high reliance on the image is no finding; a low one is.")
    said.append("No model here can be asked without image tokens: an absent image is one of middle grey.")
    return tuple(said)
