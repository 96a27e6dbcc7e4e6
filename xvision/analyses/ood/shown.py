"""Charts, pictures and words about images from elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from xvision import images, text
from xvision.analyses.ood.judged import SURE, TITLES, Judged
from xvision.analyses.ood.sets import ImageSet, stand_ins_for
from xvision.audit import Audit
from xvision.charts import Axis, Chart, Forest, HeatMap, Images, Mark, Reference, Table
from xvision.methods.decision import decide
from xvision.methods.stand_ins import STAND_INS
from xvision.result import Case, Metric, spoken

_PICTURED = 3


class Figures(NamedTuple):
    """The metrics, to be looked up by set."""

    metrics: tuple[Metric, ...]

    def of(self, each: ImageSet, name: str, score: str = "") -> Metric:
        where = {**each.where, **({"score": score} if score else {})}
        return next(item for item in self.metrics if item.name == name and dict(item.where) == where)


def charts(found: Judged, figures: Figures, stored: tuple[Case, ...]) -> tuple[Chart, ...]:
    made: tuple[Chart, ...] = (
        _overview(found, figures),
        _forest(
            found,
            figures,
            "confidence_change",
            "",
            "Does confidence fall?",
            "Change of the mean largest probability",
            0.0,
        ),
        _heat(found, figures),
        _forest(
            found, figures, "auroc", "msp", "Told apart by confidence alone", "AUROC of the largest probability", 0.5
        ),
    )
    if not stored:
        return made
    alt = "One row per case: the image and every stand-in made from it."
    return (
        *made,
        Images("What the model was shown", alt, tuple(case.id for case in stored), tuple(stored[0].pictures)),
    )


def _overview(found: Judged, figures: Figures) -> Table:
    rows: list[tuple[str | int | float | None, ...]] = []
    for each in (found.clean, *found.sets):
        if not len(each.ids):
            rows.append((each.title, each.kind, 0, 0, None, None, "–", None))
            continue
        decided = np.bincount(decide(each.logits, found.audit.decision), minlength=len(found.audit.classes))
        most = int(decided.argmax())
        people = 1 if each.fixed else len(each.ids)
        rows.append(
            (
                each.title, each.kind, people, 1 if each.fixed else len(set(each.patients)),
                figures.of(each, "mean_confidence").value, figures.of(each, "confident_share").value,
                found.audit.classes[most], float(decided[most] / decided.sum()),
            )
        )  # fmt: skip
    return Table(
        "What the model says of images it was not made for",
        "One row per set: how many images, how sure the model is, what it decides most often.",
        (
            "Set",
            "Kind",
            "Images",
            "Patients",
            "Mean confidence",
            f"Share at {SURE:g} or more",
            "Mostly decided",
            "Share so",
        ),
        tuple(rows),
    )


def _forest(found: Judged, figures: Figures, name: str, score: str, title: str, axis: str, level: float) -> Forest:
    chosen = [(each, figures.of(each, name, score)) for each in found.sets]
    marks = tuple(
        Mark(
            f"{each.title} ({each.kind})", item.value, item.low, item.high,
            _size(each) if item.value is not None else f"not estimable ({item.reason})",
        )
        for each, item in chosen
    )  # fmt: skip
    known = [(each, item) for each, item in chosen if item.value is not None]
    sign = -1.0 if name == "confidence_change" else 1.0
    alt = "Nothing could be estimated."
    if known:
        worst, item = min(known, key=lambda pair: sign * (pair[1].value or 0.0))
        alt = f"Least noticed: {worst.title}, {spoken(item)}."
    low, high = (0.0, 1.0) if name == "auroc" else (None, None)
    return Forest(title, alt, Axis(axis, low=low, high=high), marks, (Reference("no difference", level, "x"),))


def _size(each: ImageSet) -> str:
    return "one picture" if each.fixed else f"n = {text.number(len(each.ids), 'count')}"


def _heat(found: Judged, figures: Figures) -> HeatMap:
    values = tuple(tuple(figures.of(each, "auroc", name).value for each in found.sets) for name in found.scores)
    known = {
        name: [value for value in row if value is not None] for name, row in zip(found.scores, values, strict=True)
    }
    means = {name: float(np.mean(row)) for name, row in known.items() if row}
    alt = "Nothing could be estimated."
    if means:
        best = max(means, key=lambda name: means[name])
        alt = f"{text.opening(TITLES[best])} has the highest mean over the sets, {means[best]:.3f}."
    return HeatMap(
        "Which score tells which images from the audited ones (AUROC, 0.5 is chance)",
        alt,
        tuple(each.title for each in found.sets),
        tuple(TITLES[name] for name in found.scores),
        values,
        "Images",
        "Score",
        low=0.0,
        high=1.0,
        better="higher",
    )


def cases(audit: Audit) -> tuple[Case, ...]:
    """The image and its stand-ins for a few of the cases that every analysis pictures."""
    stored = []
    for position in audit.showcase[:_PICTURED]:
        key = str(audit.ids[position])
        pixels = torch.from_numpy(audit.pixels([position]))
        shown = {"image": pixels[0]} | {
            STAND_INS[name].title: STAND_INS[name].make(pixels, [key], audit.seed)[0] for name in stand_ins_for(audit)
        }
        pictures = {name: images.enlarged(images.photograph(item.numpy())) for name, item in shown.items()}
        stored.append(Case(key, audit.facts(position), pictures))
    return tuple(stored)


def summary(found: Judged, figures: Figures) -> str:
    known = [each for each in found.sets if len(each.ids)]
    if not known:
        return "The model gives no finite number for any image that it was not made for."
    said = [_falls(found, figures, known)]
    near = [each for each in known if each.kind == "near"]
    hidden = min(near or known, key=lambda each: figures.of(each, "auroc", "msp").value or 0.0)
    what = "Of the near sets" if near else "Of all sets"
    said.append(
        f"{what}, confidence tells “{hidden.title}” worst from the audited images: AUROC "
        f"{spoken(figures.of(hidden, 'auroc', 'msp'))}."
    )
    others = [name for name in found.scores if name != "msp"]
    if others:
        best = max(others, key=lambda name: figures.of(hidden, "auroc", name).value or 0.0)
        said.append(
            f"Of the other scores, {TITLES[best]} does best there: {spoken(figures.of(hidden, 'auroc', best))}."
        )
    return " ".join(said)


def _falls(found: Judged, figures: Figures, known: list[ImageSet]) -> str:
    """Where confidence falls, and the set on which it does so least."""
    changes = {each.key: figures.of(each, "confidence_change") for each in known}
    lower = sum(item.high is not None and item.high < 0 for item in changes.values())
    least = max(known, key=lambda each: changes[each.key].value or 0.0)
    share, usual = (figures.of(each, "confident_share") for each in (least, found.clean))
    there = (
        f"it is decided at a probability of {text.number(float(least.sureness[0]))}"
        if least.fixed
        else f"{spoken(share)} are decided at {SURE:g} or more"
    )
    return (
        f"Confidence falls beyond chance on {lower} of {text.plural(len(known), 'set')}, least on “{least.title}” (change "
        f"{spoken(changes[least.key])}): {there}; of the audited images, {spoken(usual)} are decided at {SURE:g} or more."
    )


def caveats(found: Judged) -> tuple[str, ...]:
    audit = found.audit
    notes = [
        "Which score is best on natural images says nothing here (OpenMIBOOD 2025), and the best of several scores on one set is "
        "flattered by the choice: choose a score on some sets and test it on others.",
        "Noise, blank images and other far sets are easy: a high AUROC there promises nothing for images that look right.",
    ]
    if not audit.near:
        notes.append("No near set was named ([shift.near]): whether a similar but wrong image is noticed is not known.")
    fixed = [each.title for each in found.sets if each.fixed]
    if fixed:
        notes.append(
            f"{text.opening(text.listing(fixed))} are one picture each: their intervals speak of the audited images only."
        )
    if "upside_down" not in stand_ins_for(audit):
        notes.append(f"Images of {audit.modality} have no top, so none was turned upside down.")
    lost = [
        f"{each.title}: {each.lost} of {each.lost + len(each.ids)}" for each in (found.clean, *found.sets) if each.lost
    ]
    if lost:
        notes.append(f"Left out because the model's numbers were not finite: {text.listing(lost)}.")
    if found.fitted_on and set(found.scores) & {"mahalanobis", "knn", "vim"}:
        notes.append(f"Scores of embeddings were fitted on {found.fitted_on}.")
    for reason in dict.fromkeys(found.missing.values()):
        names = [TITLES[name] for name in TITLES if found.missing.get(name) == reason]
        notes.append(f"Not computed: {text.listing(names, most=8)}; {reason}.")
    return tuple(notes)
