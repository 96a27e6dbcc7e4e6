"""Who is in which split, what is missing, and what the columns alone say of the label."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from sklearn.preprocessing import OneHotEncoder

from xvision import text
from xvision.analyses.data_quality.gathered import all_splits
from xvision.analyses.data_quality.part import Part
from xvision.audit import Audit, metric
from xvision.charts import Axis, Chart, Forest, Mark, Reference, Table
from xvision.data.dataset import UNKNOWN
from xvision.errors import DataError
from xvision.methods.composition import Association, association, pooled
from xvision.methods.intervals import Estimate, holm, not_estimable, proportion
from xvision.methods.label_issues import out_of_fold
from xvision.methods.scores import missing_class
from xvision.methods.shortcuts.metadata import metadata_auroc, stratified_auroc
from xvision.result import Metric, Where

ALL_COLUMNS = "all columns"
_MOST_ROWS = 40
_MOST_CLASSES = 10
_SHORTCUT = 0.65


def columns(audit: Audit, *, permutations: int) -> Part:
    """The section."""
    names = (*audit.groups, *audit.acquisition)
    splits = all_splits(audit)
    tested = {
        (name, other): _association(audit, name, other, permutations) for name in names for other in ("label", "split")
    }
    metrics = [*_missing(audit, names), *_associations(tested), *_readable(audit, splits, names)]
    charts = (*_composition(splits, names), *_forest(metrics), *_told(tested))
    return Part(tuple(metrics), charts, (), tuple(_caveats(audit, names)), tuple(_sentences(metrics)))


def _missing(audit: Audit, names: tuple[str, ...]) -> Iterator[Metric]:
    for name in names:
        share = proportion(audit.column(name) == UNKNOWN, audit.patients)
        yield metric("missing_share", share, better="lower", where={"column": name})


def _association(audit: Audit, name: str, other: str, permutations: int) -> Association:
    """A column with the label among audited cases, and with the split among all."""
    data = audit.data if other == "label" else audit.everything
    table = data.table
    return association(
        table[name].to_numpy(dtype=str), table[other].to_numpy(dtype=str), table["patient"].to_numpy(dtype=str),
        rng=audit.rng(f"association {name} {other}"), permutations=permutations,
    )  # fmt: skip


def _associations(tested: dict[tuple[str, str], Association]) -> Iterator[Metric]:
    known = [key for key, found in tested.items() if found.p is not None]
    adjusted = dict(zip(known, holm([tested[key].p or 0.0 for key in known]), strict=True)) if known else {}
    for (name, other), found in tested.items():
        where: Where = {"column": name, "with": other}
        yield metric("association", found.strength, better="lower", where=where)
        if (name, other) not in adjusted:
            yield Metric("association_p", None, where=where, reason=found.strength.reason or "not tested")
        else:
            how = f"{found.how}, Holm over {len(known)} pairs"
            yield Metric("association_p", float(adjusted[name, other]), n=found.strength.n, where=where, interval=how)


def _readable(audit: Audit, splits: tuple[Audit, ...], names: tuple[str, ...]) -> Iterator[Metric]:
    """How well the label is predicted by each column alone, and by all of them together, in each split."""
    binary = audit.decision.positive is not None
    codes = [audit.positive] if binary else range(min(len(audit.classes), _MOST_CLASSES))
    for place, part in enumerate(splits):
        split = "audited" if place == 0 else str(part.data.table["split"].iloc[0])
        for code in codes if names else ():
            of_class: Where = {} if binary else {"class": audit.classes[code]}
            for name in (*names, ALL_COLUMNS):
                where = {**of_class, "column": name, "split": split}
                yield metric("metadata_auroc", _alone(audit, part, names, name, code), better="lower", where=where)


def _alone(audit: Audit, part: Audit, names: tuple[str, ...], name: str, code: int) -> Estimate:
    if not part.labelled:
        return not_estimable("the split has no labels that are classes of the model")
    labels, rng = part.labels == code, audit.rng(f"metadata {name} {part.called} {code}")
    if name != ALL_COLUMNS:
        return metadata_auroc(part.column(name), labels, part.patients, rng=rng)
    reason = missing_class(labels)
    if reason:
        return not_estimable(reason, len(labels))
    levels = np.column_stack([pooled(part.column(each)) for each in names])
    encoded = OneHotEncoder(sparse_output=False).fit_transform(levels)
    try:
        found = out_of_fold(
            encoded,
            labels.astype(int),
            part.patients,
            classes=("other", "positive"),
            seed=audit.seed_of("columns"),
        )
    except DataError as problem:
        return not_estimable(str(problem), len(labels))
    return stratified_auroc(found.probabilities[:, 1], labels, found.folds, part.patients, rng=rng)


def _composition(splits: tuple[Audit, ...], names: tuple[str, ...]) -> Iterator[Chart]:
    """Images, patients and labels per split, then per split and level."""
    classes = splits[0].classes[:_MOST_CLASSES]
    rows: list[tuple[str | int | float | None, ...]] = []
    for place, part in enumerate(splits):
        split = "audited" if place == 0 else str(part.data.table["split"].iloc[0])
        labels = part.labels if part.labelled else np.full(len(part.ids), -1)
        for name, level, member in _levels(part, names):
            counts = [int((labels[member] == code).sum()) for code in range(len(classes))]
            patients = len(np.unique(part.patients[member]))
            rows.append((split, name, level, int(member.sum()), patients, float(member.mean()), *counts))
    yield Table(
        "Who is in which split",
        f"{min(len(rows), _MOST_ROWS)} of {text.plural(len(rows), 'row')}: images, patients, share of the split, and images per label.",
        ("Split", "Column", "Level", "Images", "Patients", "Share", *classes),
        tuple(rows[:_MOST_ROWS]),
        counts=("Images", "Patients", *(name for name in classes if name not in ("Images", "Patients"))),
    )


def _levels(part: Audit, names: tuple[str, ...]) -> Iterator[tuple[str, str, np.ndarray]]:
    yield "", "all", np.ones(len(part.ids), bool)
    for name in names:
        levels = pooled(part.column(name))
        for level in np.unique(levels):
            yield name, str(level), levels == level


def _forest(metrics: list[Metric]) -> Iterator[Chart]:
    known = [item for item in metrics if item.name == "metadata_auroc" and item.value is not None]
    if known:
        worst = max(known, key=lambda item: item.value or 0.0)
        marks = tuple(Mark(text.condition(item.where), item.value, item.low, item.high) for item in known[:_MOST_ROWS])
        yield Forest(
            "How well the columns alone predict the label",
            f"Best: {text.condition(worst.where)}, {text.value(worst.value, worst.low, worst.high)}. 0.5 is chance.",
            Axis("AUROC without any image", low=0, high=1),
            marks,
            (Reference("chance", 0.5, "x"),),
        )


def _told(tested: dict[tuple[str, str], Association]) -> Iterator[Chart]:
    if tested:
        yield Table(
            "Which columns go together with the label and the split",
            "Cramér's V by patient, 0 for none and 1 for complete, and the p-value before adjustment.",
            ("Column", "With", "Patients", "Cramér's V", "Low", "High", "p", "Test"),
            tuple(
                (name, other, found.strength.n, *found.strength[:3], found.p, found.how or found.strength.reason)
                for (name, other), found in tested.items()
            ),
        )


def _caveats(audit: Audit, names: tuple[str, ...]) -> Iterator[str]:
    if not names:
        yield "No group or acquisition columns were declared: nothing is known of who is in the data or how the images were taken."
    if not audit.everything.patients_declared:
        yield (
            "The data names no patients, so every image counts as one: leakage by patient cannot be seen, and intervals may be too "
            "narrow."
        )
    for name in names:
        share = float((audit.column(name) == UNKNOWN).mean())
        if share:
            yield f"{text.label(name)} is unknown for {100 * share:.0f} % of the audited images."


def _sentences(metrics: list[Metric]) -> Iterator[str]:
    known = [item for item in metrics if item.name == "metadata_auroc" and (item.low or 0.0) > 0.5]
    if known:
        best = max(known, key=lambda item: item.value or 0.0)
        if (best.value or 0.0) >= _SHORTCUT:
            told = "all columns predict" if best.where["column"] == ALL_COLUMNS else f"{best.where['column']} predicts"
            yield (
                f"Without any image, {told} the label in the {best.where['split']} split with an AUROC of "
                f"{text.value(best.value, best.low, best.high)}: a shortcut is available."
            )
