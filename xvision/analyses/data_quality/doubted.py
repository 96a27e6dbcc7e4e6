"""Labels that are doubtful: contradicted within a patient, or by the other images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from xvision import images, text
from xvision.analyses.data_quality.gathered import Gathered
from xvision.analyses.data_quality.part import Part
from xvision.audit import Audit, count, metric
from xvision.charts import Chart, Images, Table
from xvision.errors import DataError
from xvision.methods.intervals import not_estimable, with_width
from xvision.methods.label_issues import LabelIssues, out_of_fold, rank_label_issues
from xvision.result import Case, Metric

_LISTED = 20
_PICTURED = 6


def doubted(audit: Audit, seen: Gathered | None) -> tuple[Part, pd.DataFrame]:
    """The section and, per case, how much its label is believed."""
    found = {"scores": _by_scores(audit), "embeddings": _by_embeddings(audit, seen)}
    metrics = [*_metrics(found), *_patients(audit)]
    table = _table(audit, found)
    listed = table[table["suspect"] > 0].head(_LISTED)
    pictured = _pictured(audit, listed) if audit.pictures and audit.can("pixels") is None else ()
    charts = tuple(_charts(listed, pictured, int((table["suspect"] > 0).sum())))
    share = next(item for item in metrics if item.name == "label_noise")
    sentence = (
        f"The model's scores contradict {text.value(share.value, share.low, share.high)} of the labels, its own mistakes included."
        if share.value is not None
        else ""
    )
    caveats = (
        "A doubted label may be right and its image rare; confident mistakes of the model count as wrong labels. Only a reader can tell.",
    )
    return Part(tuple(metrics), charts, pictured, caveats, (sentence,) if sentence else ()), table


Found = tuple[LabelIssues, np.ndarray] | str
"""Issues of the cases at these positions, or why there are none."""


def _by_scores(audit: Audit) -> Found:
    if len(np.unique(audit.labels)) < 2:
        return "all labels are the same"
    issues = rank_label_issues(
        audit.predictions.probabilities, audit.labels, audit.patients, rng=audit.rng("noise by scores")
    )
    return issues, np.arange(len(audit.ids))


def _by_embeddings(audit: Audit, seen: Gathered | None) -> Found:
    if seen is None:
        return audit.can("embeddings") or ""
    seen = seen.kept(seen.audited)
    labels, patients, embeddings = audit.labels[seen.position], seen.patients, seen.rows["embeddings"]
    if (embeddings == embeddings[0]).all():
        return "all embeddings are equal"
    finite = np.isfinite(embeddings).all()
    try:
        outside = out_of_fold(
            _reduced(embeddings) if finite else embeddings,
            labels,
            patients,
            classes=audit.classes,
            seed=audit.seed_of("folds"),
        )
    except DataError as problem:
        return str(problem)
    return rank_label_issues(
        outside.probabilities, labels, patients, rng=audit.rng("noise by embeddings")
    ), seen.position


def _reduced(embeddings: np.ndarray, most: int = 64) -> np.ndarray:
    """The directions in which the embeddings differ most: enough for a line between classes, and quick to fit."""
    centred = embeddings.astype(float) - embeddings.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    kept = vectors[:, ::-1][:, :most][:, values[::-1][:most] > 1e-9 * max(float(values[-1]), 1e-300)]
    return np.asarray(centred @ kept)


def _metrics(found: Mapping[str, Found]) -> Iterator[Metric]:
    for by, issues in found.items():
        estimate = (
            not_estimable(issues) if isinstance(issues, str) else with_width(issues[0].share, issues[0].share.n, 0.95)
        )
        yield metric("label_noise", estimate, better="lower", where={"by": by})
        where = {"by": by}
        if isinstance(issues, str):
            yield Metric("suspected_labels", None, unit="count", where=where, reason=issues)
        else:
            yield count("suspected_labels", int(issues[0].suspect.sum()), where=where)


def _patients(audit: Audit) -> Iterator[Metric]:
    """How often a patient is there, and with how many labels."""
    if not audit.data.patients_declared:
        for name in ("patients_with_several_images", "contradicted_patients", "most_images_of_a_patient"):
            yield Metric(name, None, unit="count", reason="the data names no patients")
        return
    each = pd.Series(audit.labels).groupby(audit.patients)
    yield count("patients_with_several_images", int((each.size() > 1).sum()))
    yield count("contradicted_patients", int((each.nunique() > 1).sum()))
    yield count("most_images_of_a_patient", int(each.size().max()))


def _table(audit: Audit, found: Mapping[str, Found]) -> pd.DataFrame:
    """One row per audited case, the most doubted first. suspect: by how many of the two ways.

    suggested: the most probable other class by the scores, else by the embeddings; "" where both prefer the given one.
    """
    names = [audit.classes[code] for code in audit.labels]
    table = pd.DataFrame({"id": audit.ids, "label": names, "suspect": 0, "suggested": ""})
    suggested = [""] * len(names)
    for by, issues in found.items():
        table[f"self_confidence_{by}"] = np.nan
        if isinstance(issues, str):
            continue
        ranked, places = issues
        table.loc[places, f"self_confidence_{by}"] = ranked.self_confidence
        table.loc[places, "suspect"] += ranked.suspect.astype(int)
        for place in range(len(places)):
            told, row = audit.classes[ranked.suggested[place]], places[place]
            if not suggested[row] and told != names[row]:
                suggested[row] = told
    table["suggested"] = suggested
    belief = table[["self_confidence_scores", "self_confidence_embeddings"]].mean(axis=1)
    order = np.lexsort((table["id"], belief, -table["suspect"]))
    return table.iloc[order].reset_index(drop=True)


def _pictured(audit: Audit, listed: pd.DataFrame) -> tuple[Case, ...]:
    places = {name: place for place, name in enumerate(audit.ids)}
    cases = []
    for row in listed.head(_PICTURED).itertuples():
        pixels = audit.pixels([places[str(row.id)]])[0]
        facts = {**audit.facts(places[str(row.id)]), "suggested label": str(row.suggested)}
        cases.append(Case(str(row.id), facts, {"image": images.enlarged(images.photograph(pixels))}))
    return tuple(cases)


def _charts(listed: pd.DataFrame, pictured: tuple[Case, ...], suspects: int) -> Iterator[Chart]:
    if not len(listed):
        return
    columns = {
        "Image": "id", "Label": "label", "Suggested": "suggested", "Found by": "suspect",
        "Belief in the label, scores": "self_confidence_scores", "Belief, embeddings": "self_confidence_embeddings",
    }  # fmt: skip
    plain = listed[list(columns.values())].astype(object)
    plain = plain.where(plain.notna(), None)
    plain["suspect"] = [f"{number} of 2 ways" for number in listed["suspect"]]
    yield Table(
        "Labels to read again, the most doubted first",
        f"{len(listed)} of {text.plural(suspects, 'suspected label')}.",
        tuple(columns),
        tuple(tuple(row) for row in plain.to_numpy().tolist()),
    )
    if pictured:
        yield Images(
            "Images whose label is doubted most", "One image per row.", tuple(case.id for case in pictured), ("image",)
        )
