"""With few labels: which cases a person should look at next, which labels are probably wrong, which answers may stand in.

Three tables and a summary, in a folder of their own. Nothing here changes a label: a person reads, and decides.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from xvision import codec
from xvision.config import Plan
from xvision.data.dataset import AuditDataset
from xvision.data.plan_data import load_plan_data
from xvision.data.scores import without_images
from xvision.data.unlabelled import load_unlabelled, manifest_of
from xvision.engine import Engine, Progress
from xvision.errors import ConfigError, DataError
from xvision.methods.label_issues import out_of_fold, rank_label_issues, require_cleanlab, second_opinion
from xvision.methods.review import Measure, errors_found, group_mix, review_order, uncertainty
from xvision.models.finding import finding_view
from xvision.models.open import is_predictions, load_model
from xvision.models.protocols import Classifier
from xvision.review.files import refuse_other_content, write_table
from xvision.review.pseudo import Roots, check_pseudo, choose, write_pseudo_labels, write_without_images
from xvision.review.report import Issues, QueueReport, QueueSettings, facts
from xvision.review.scores import Question, Scored, question_of, score
from xvision.store import Writer, write_atomic


class Listener(Protocol):
    """Told what happens while it happens."""

    def started(self, title: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def close(self) -> None: ...


class _Silent:
    def started(self, title: str) -> None:
        """Nothing."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def review_queue(
    plan: Plan,
    out: Path,
    *,
    size: int = 100,
    stratify: str | None = None,
    unlabelled: Path | None = None,
    pseudo_precision: float | None = None,
    per_patient: int = 2,
    measure: Measure = "entropy",
    cleanlab: bool = False,
    listener: Listener | None = None,
) -> QueueReport:
    """Writes queue.csv, label_issues.csv, pseudo_labels.csv when asked, and queue.json into the new folder ``out``.

    The queue holds unlabelled cases where a manifest of them is given, else labelled ones the model was not trained on.
    stratify: column whose mix the queue keeps. pseudo_precision: share of pseudo-labels that must be right in every
    group and class, as the validation split shows. cleanlab: add its opinion to the label issues. An interrupted queue
    goes on where it stopped. Raises ConfigError, DataError, ModelError, RunError or MissingExtra, before the model is
    run where that can be known.
    """
    settings = QueueSettings(size, stratify, per_patient, measure, pseudo_precision, plan.seed)
    _check(settings, unlabelled)
    if cleanlab:
        require_cleanlab()
    refuse_other_content(out)
    model, labelled = _loaded(plan, settings)
    columns = labelled.groups
    edges = {column: bands.edges for column, bands in labelled.bands.items()}
    waiting = (
        load_unlabelled(unlabelled, groups=columns, columns=plan.data.columns, bands=edges) if unlabelled else None
    )
    question = question_of(model, plan.decision)
    _check_labelled(labelled, question, settings)
    writer = Writer(out)
    with writer.locked():
        engine = Engine(writer.work, part=plan.batch_size, progress=(listener or _Silent()).progress)
        known, asked = _scored(model, labelled, waiting, question, engine, plan.seed, listener or _Silent())
        report = _report(model, known, asked, settings, out, cleanlab)
        if asked is not None and unlabelled is not None and pseudo_precision is not None:
            report = _with_pseudo_labels(report, plan, known, asked, manifest_of(unlabelled).parent)
        write_atomic(out / "queue.json", codec.dumps(facts(report)).encode())
        shutil.rmtree(writer.work, ignore_errors=True)
    return report


def _check(settings: QueueSettings, unlabelled: Path | None) -> None:
    if settings.size < 1 or settings.per_patient < 1:
        raise ConfigError(
            f"--size is {settings.size} with {settings.per_patient} cases per patient: give at least 1 of each."
        )
    if settings.precision is not None and not 0 < settings.precision < 1:
        raise ConfigError(
            f"--pseudo-precision is {settings.precision}: give a share above 0 and below 1, such as 0.95."
        )
    if settings.precision is not None and unlabelled is None:
        raise ConfigError("--pseudo-precision needs images without a label: name their manifest with --unlabelled.")


def _loaded(plan: Plan, settings: QueueSettings) -> tuple[Classifier, AuditDataset]:
    """The plan's model and labelled data, of a multi-label model the one finding that ``decision.positive`` names."""
    wanted = plan.data
    if settings.stratify and settings.stratify not in (*wanted.groups, *wanted.acquisition):
        wanted = replace(wanted, groups=(*wanted.groups, settings.stratify))
    data = load_plan_data(wanted, images_required=not is_predictions(plan.model.path))
    model = load_model(plan.model.path, device=plan.model.device, prompt=plan.model.prompt)
    if model.access == "scores":
        data = without_images(data)
    if model.task != "multilabel":
        return model, data
    if settings.precision is not None:
        raise ConfigError("pseudo-labels are for models with one label per image; this one finds several side by side.")
    view = finding_view(model, plan.decision.positive)
    return view, data.finding(view.classes[1]) if data.multilabel else data


def _check_labelled(labelled: AuditDataset, question: Question, settings: QueueSettings) -> None:
    """Everything that is wrong with the labels is found before the model runs."""
    if settings.precision is not None:
        check_pseudo(question.classes, labelled)
    labelled.label_codes(question.classes)


def _scored(
    model: Classifier,
    labelled: AuditDataset,
    waiting: AuditDataset | None,
    question: Question,
    engine: Engine,
    seed: int,
    listener: Listener,
) -> tuple[Scored, Scored | None]:
    """The model on the labelled cases and on those without a label; cases of the unlabelled manifest with one are left alone."""
    asked = None
    try:
        listener.started("Labelled cases")
        known = score(model, labelled, question, engine, seed=seed, embed=True)
        if waiting is not None:
            listener.started("Unlabelled cases")
            ids = waiting.table.index[waiting.table["label"] == ""]
            if not len(ids):
                raise DataError(
                    f"all {len(waiting)} cases of the unlabelled manifest have a label: nothing is to be done."
                )
            asked = score(model, waiting.subset(list(ids)), question, engine, seed=seed, embed=False)
    finally:
        listener.close()
    return known, asked


def _report(
    model: Classifier, known: Scored, asked: Scored | None, settings: QueueSettings, out: Path, cleanlab: bool
) -> QueueReport:
    fresh = _not_trained_on(known)
    pool = fresh if asked is None else asked
    chosen, scores = _queue(pool, settings, settings.size)
    share = len(chosen) / len(pool.logits)
    trial, _ = _queue(fresh, settings, max(1, round(share * len(fresh.logits))))
    issues = _issues(known, settings.seed, cleanlab)
    write_table(out / "queue.csv", _queue_table(pool, chosen, scores, labelled=asked is None))
    if issues.ranking is not None:
        write_table(out / "label_issues.csv", _issue_table(known, issues, settings.size))
    columns = {name: pool.column(name) for name in pool.data.groups}
    return QueueReport(
        out=out,
        settings=settings,
        cases=len(chosen),
        pool=len(pool.logits),
        labelled=asked is None,
        splits=tuple(sorted(set(fresh.column("split")))),
        mix=group_mix(columns, chosen, pool.patients),
        found=errors_found(fresh.decisions != fresh.labels, chosen if asked is None else trial, fresh.patients),
        issues=issues,
        fingerprints={
            "model": model.fingerprint,
            "labelled": known.data.fingerprint,
            **({} if asked is None else {"unlabelled": asked.data.fingerprint}),
        },
    )


def _not_trained_on(known: Scored) -> Scored:
    """The cases outside the split "train", or all where there is no other."""
    others = np.flatnonzero(known.column("split") != "train")
    return known.where(others) if len(others) else known


def _queue(pool: Scored, settings: QueueSettings, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the queue in its order, and the uncertainty of every case."""
    scores = uncertainty(pool.logits, pool.question.decision, settings.measure)
    strata = pool.column(settings.stratify) if settings.stratify else None
    return review_order(scores, pool.patients, size, strata=strata, per_patient=settings.per_patient), scores


def _issues(known: Scored, seed: int, cleanlab: bool) -> Issues:
    if known.embeddings is None:
        return Issues(None, "the model has no embeddings that can be read")
    classes = known.question.classes
    try:
        held = out_of_fold(known.embeddings, known.labels, known.patients, classes=classes, seed=seed)
    except DataError as problem:  # too few labels is a state of the data, not a fault of the request
        return Issues(None, str(problem))
    ranking = rank_label_issues(held.probabilities, known.labels, known.patients, rng=np.random.default_rng(seed))
    return Issues(ranking, None, second_opinion(held.probabilities, known.labels) if cleanlab else None)


def _queue_table(pool: Scored, chosen: np.ndarray, scores: np.ndarray, *, labelled: bool) -> pd.DataFrame:
    """One row per case of the queue, in the order to look at them."""
    table = pool.data.table.iloc[chosen]
    rows = _case_columns(table)
    rows["label"] = np.array(pool.question.classes)[pool.labels[chosen]] if labelled else ""
    rows["decision"] = np.array(pool.question.classes)[pool.decisions[chosen]]
    rows["probability"] = pool.confidence[chosen].round(6)
    rows["uncertainty"] = scores[chosen].round(6)
    return _with_groups(rows, table, pool.data.groups)


def _issue_table(known: Scored, issues: Issues, size: int) -> pd.DataFrame:
    """The least believed labels: as many as are estimated to be wrong, and at least ``size``."""
    ranking = issues.ranking
    if ranking is None:
        raise DataError(f"there are no label issues to write: {issues.reason}")
    chosen = ranking.order[: max(size, ranking.count or 0)]
    table, names = known.data.table.iloc[chosen], np.array(known.question.classes)
    rows = _case_columns(table)
    rows["given"] = names[known.labels[chosen]]
    rows["suggested"] = names[ranking.suggested[chosen]]
    rows["self_confidence"] = ranking.self_confidence[chosen].round(6)
    rows["suspect"] = np.where(ranking.suspect[chosen], "yes", "no")
    if issues.second is not None:
        rows["cleanlab"] = np.where(issues.second[chosen], "yes", "no")
    rows["decision"] = names[known.decisions[chosen]]
    return _with_groups(rows, table, known.data.groups)


def _case_columns(table: pd.DataFrame) -> pd.DataFrame:
    rows = pd.DataFrame({"rank": np.arange(1, len(table) + 1), "id": table.index})
    for name in ("image", "patient", "split"):
        if name in table:
            rows[name] = table[name].to_numpy()
    return rows


def _with_groups(rows: pd.DataFrame, table: pd.DataFrame, groups: tuple[str, ...]) -> pd.DataFrame:
    for name in groups:
        rows[name if name not in rows else f"group {name}"] = table[name].to_numpy()
    return rows


def _with_pseudo_labels(report: QueueReport, plan: Plan, known: Scored, asked: Scored, root: Path) -> QueueReport:
    settings, data = report.settings, Path(plan.data.path)
    column = settings.stratify or next(iter(plan.data.groups), None)
    found = choose(known, asked, precision=settings.precision or 0.0, column=column)
    if not plan.case_images:
        return replace(report, pseudo=write_without_images(found, known, asked, plan.data.columns, report.out))
    roots = Roots(data if data.is_dir() else data.parent, root)
    return replace(report, pseudo=write_pseudo_labels(found, known, asked, roots, plan.data.columns, report.out))
