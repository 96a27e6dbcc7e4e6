"""One audit from start to end: preflight, predictions, each analysis, verdict. The only place where any exception is caught."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from xvision import codec, provenance
from xvision.audit import Audit, Outside, prediction_table
from xvision.config import DataPlan, DecisionPlan, FairnessPlan, Modality, ModelPlan, Plan, RulePlan
from xvision.data.dataset import AuditDataset
from xvision.data.plan_data import load_outside, load_plan_data, load_reference
from xvision.data.preflight import preflight
from xvision.data.scores import without_images
from xvision.deployed import decision_at
from xvision.engine import Engine, EngineKind, Progress, code_version
from xvision.errors import DataError, RunError, XVisionError
from xvision.judge import Criteria, criteria_sha256, judge_run, load_criteria
from xvision.models.evidence import EVIDENCE
from xvision.models.finding import finding_view
from xvision.models.open import is_predictions, load_model
from xvision.models.protocols import Classifier
from xvision.operating import agreed, at_operating_point, check_rule, declared_statement, described, unchosen
from xvision.registry import Analysis, bind_all
from xvision.result import Check, Group, NotApplicable, Record, RunInfo
from xvision.store import Run, Writer, is_run, sha256


class Listener(Protocol):
    """Told what happens while it happens."""

    def started(self, title: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def finished(self, record: Record, *, reused: bool) -> None: ...


class Silent:
    """A listener that says nothing."""

    def started(self, title: str) -> None:
        """Nothing."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def finished(self, record: Record, *, reused: bool) -> None:
        """Nothing."""


def run_plan(
    plan: Plan, out: Path, *, command: str, engine: EngineKind = "local", listener: Listener | None = None
) -> Run:
    """Loads what the plan names and audits it into ``out``. Everything that can be wrong with the plan is found first."""
    bind_all(plan.only, plan.analysis)
    criteria = load_criteria(Path(plan.criteria)) if plan.criteria else None
    data = load_plan_data(plan.data, images_required=not is_predictions(plan.model.path))
    model = load_model(plan.model.path, device=plan.model.device, prompt=plan.model.prompt)
    return _run(model, data, _outside(plan), plan, out, criteria, command, engine, listener or Silent())


def _outside(plan: Plan) -> Outside:
    reference = load_reference(plan.shift.reference, plan.data) if plan.shift.reference else None
    near, far = (
        {name: load_outside(path) for name, path in paths.items()} for paths in (plan.shift.near, plan.shift.far)
    )
    return Outside(reference, near, far)


def run_audit(
    model: Classifier,
    data: AuditDataset,
    *,
    out: str | Path,
    only: Sequence[str] = (),
    acquisition: Sequence[str] = (),
    positive: str | None = None,
    threshold: float | None = None,
    rule: RulePlan | None = None,
    no_disease: str | None = None,
    criteria: str | Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    outside: Outside | None = None,
    modality: Modality | None = None,
    fairness: FairnessPlan | None = None,
    seed: int = 0,
    batch_size: int = 64,
    name: str = "audit",
    engine: EngineKind = "local",
    listener: Listener | None = None,
) -> Run:
    """Audits a loaded model on loaded data into the run folder ``out`` and returns it; an unfinished run there resumes.

    acquisition: those of the data's group columns that say how an image was taken. positive, threshold: the deployed binary
    decision; of a multi-label model, positive names the one finding that is audited. rule: instead of a threshold, how it is
    chosen on the split "validation". no_disease: the class that means healthy. options: analysis name → its options.
    outside: images from elsewhere to compare with. modality: how the images were made. fairness: what was
    agreed about groups. Raises ConfigError, DataError, ModelError or RunError.
    """
    plan = Plan(
        data=DataPlan(
            "(given in Python)",
            tuple(c for c in data.groups if c not in acquisition),
            tuple(acquisition),
            modality=modality,
        ),
        model=ModelPlan("(given in Python)"),
        name=name,
        seed=seed,
        batch_size=batch_size,
        criteria=str(criteria) if criteria else None,
        decision=DecisionPlan(positive, threshold, rule, no_disease=no_disease),
        fairness=fairness or FairnessPlan(),
        only=tuple(only),
        analysis=options or {},
    )
    judged_by = load_criteria(Path(criteria)) if criteria else None
    return _run(
        model,
        data,
        outside or Outside(),
        plan,
        Path(out),
        judged_by,
        "xvision.run_audit(…)",
        engine,
        listener or Silent(),
    )


def _run(
    model: Classifier,
    data: AuditDataset,
    outside: Outside,
    plan: Plan,
    out: Path,
    criteria: Criteria | None,
    command: str,
    engine: EngineKind,
    listener: Listener,
) -> Run:
    chosen = bind_all(plan.only, plan.analysis)
    model, data, outside = _subject(model, data, outside, plan.decision)
    writer = Writer(out)
    audit = Audit(
        model,
        data,
        decision_at(model, plan.decision, plan.decision.threshold),
        plan.seed,
        Engine(writer.work, engine, plan.batch_size, listener.progress),
        plan.data.groups,
        plan.data.acquisition,
        plan.case_images,
        options={item.name: options for item, options in bind_all((), plan.analysis)},
        outside=outside,
        modality=plan.data.modality,
        fairness=plan.fairness,
    )
    checks = _checked(model, data, plan)
    check_rule(audit, plan.decision)
    info = _info(audit, plan, checks, criteria, command)
    _refuse_other_audit(out, info)
    with writer.locked():
        started = time.monotonic()
        earlier = Run(out).info if is_run(out) else None
        if earlier is not None:
            decision = info.decision if unchosen(earlier.decision) else earlier.decision
            info = replace(info, started=earlier.started, decision=decision)
        writer.info(info)
        writer.log({"time": provenance.now(), "event": "started", "resumed": earlier is not None})
        audit.task = "predictions"
        listener.started("Predictions")
        audit = at_operating_point(audit, plan.decision)
        info = replace(info, decision=described(audit, plan.decision, audit.operating.statement))
        _refuse_other_threshold(out, info, earlier)
        writer.info(info)
        writer.table("predictions", prediction_table(audit))
        info = replace(info, showcase=tuple(str(audit.ids[place]) for place in audit.showcase))
        records = [_analyse(audit, item, options, writer, listener) for item, options in chosen]
        _finish(
            writer, info, audit, records, criteria, (earlier.seconds if earlier else 0.0) + time.monotonic() - started
        )
    return Run(out)


def _analyse(audit: Audit, item: Analysis, options: Mapping[str, Any], writer: Writer, listener: Listener) -> Record:
    """One analysis into the run: ok, skipped with the reason, or failed with the traceback."""
    key = _key(audit, item, options)
    earlier = _earlier(writer.path, item.name)
    if earlier is not None and earlier.key == key and earlier.status != "failed":
        listener.finished(earlier, reused=True)
        return earlier
    listener.started(item.title)
    audit.task = item.name
    meter, started = replace(audit.engine.meter), time.monotonic()
    record = Record(
        item.name,
        item.title,
        item.pillar,
        item.question,
        "ok",
        key,
        codec.plain(dict(options)),
        0.0,
        reference=item.reference,
    )
    try:
        reason = audit.can(item.need)
        if reason:
            raise NotApplicable(reason)
        result = item(audit, options)
        spent = audit.engine.meter
        record = replace(
            record,
            seconds=time.monotonic() - started,
            forward=spent.forward - meter.forward,
            backward=spent.backward - meter.backward,
        )
        record = writer.result(record, result if audit.pictures else replace(result, cases=()))
    except NotApplicable as outcome:
        record = replace(record, status="skipped", reason=str(outcome), seconds=time.monotonic() - started)
        writer.record(record)
    except RunError:
        raise  # the disk refused a write: nothing later could be kept either
    except Exception as problem:  # noqa: BLE001  # an analysis that breaks must not take the others with it
        reason = f"{type(problem).__name__}: {problem}"
        record = replace(record, status="failed", reason=reason, traceback=traceback.format_exc())
        writer.record(record)
    writer.log({"time": provenance.now(), "event": record.status, "analysis": item.name, "reason": record.reason})
    listener.finished(record, reused=False)
    return record


def _finish(
    writer: Writer, info: RunInfo, audit: Audit, records: list[Record], criteria: Criteria | None, seconds: float
) -> None:
    everything = Run(writer.path).records
    asked = len(audit.ids) + (0 if audit.operating.tuning is None else len(audit.operating.tuning.scores))
    clean = 0 if audit.model.access == "scores" else asked
    info = replace(
        info,
        status="partial" if any(record.status == "failed" for record in everything) else "complete",
        finished=provenance.now(),
        seconds=seconds,
        forward=sum(record.forward for record in everything) + clean,
        backward=sum(record.backward for record in everything),
    )
    writer.info(info)
    if criteria is not None:
        writer.judgement(judge_run(Run(writer.path), criteria))
    else:
        (writer.path / "findings.json").unlink(missing_ok=True)
    writer.log({"time": provenance.now(), "event": info.status, "analyses": len(records)})
    if info.status == "complete":
        shutil.rmtree(writer.work, ignore_errors=True)
    writer.checksums()


def _subject(
    model: Classifier, data: AuditDataset, outside: Outside, plan: DecisionPlan
) -> tuple[Classifier, AuditDataset, Outside]:
    """What is audited: one finding of a multi-label model, and no images where there is no model to show them to."""
    if model.task == "multilabel":
        model = finding_view(model, plan.positive)
        data = data.finding(str(plan.positive)) if data.multilabel else data
        if outside.reference is not None and outside.reference.multilabel:
            outside = replace(outside, reference=outside.reference.finding(str(plan.positive)))
    return model, without_images(data) if model.access == "scores" else data, outside


def _checked(model: Classifier, data: AuditDataset, plan: Plan) -> tuple[Check, ...]:
    checks = preflight(
        model, data, seed=plan.seed, allow_leakage=plan.data.allow_leakage, acquisition=plan.data.acquisition
    )
    errors = [check.sentence for check in checks if check.status == "error"]
    if errors:
        more = f" ({len(errors) - 1} further problems.)" if len(errors) > 1 else ""
        raise DataError(errors[0] + more)
    return checks


def _info(audit: Audit, plan: Plan, checks: tuple[Check, ...], criteria: Criteria | None, command: str) -> RunInfo:
    spec = {} if audit.model.access == "scores" else {"input": codec.plain(audit.model.input)}
    return RunInfo(
        name=plan.name,
        status="running",
        plan=codec.plain(plan),
        command=command,
        seed=plan.seed,
        classes=audit.classes,
        decision=described(audit, plan.decision, declared_statement(audit, plan.decision)),
        split="test" if (audit.everything.table["split"] == "test").any() else "all",
        cases=len(audit.ids),
        patients=len(set(audit.patients)),
        patients_declared=audit.data.patients_declared,
        groups=audit.groups,
        acquisition=audit.acquisition,
        composition=tuple(_composition(audit)),
        checks=checks,
        model={**audit.model.description, "task": audit.model.task, "access": audit.model.access, **spec},
        fingerprints={"model": audit.fingerprints[0], "data": audit.fingerprints[1], "code": code_version()}
        | audit.outside.fingerprints,
        versions=provenance.versions(),
        hardware=provenance.hardware(audit.model.device),
        git=provenance.git(),
        started=provenance.now(),
        criteria_sha256=criteria_sha256(criteria) if criteria else "",
    )


def _composition(audit: Audit) -> list[Group]:
    rows = []
    for column in (*audit.groups, *audit.acquisition):
        levels = audit.column(column)
        for level in sorted(set(levels)):
            chosen = levels == level
            by_class = {name: int((audit.labels[chosen] == code).sum()) for code, name in enumerate(audit.classes)}
            rows.append(Group(column, level, int(chosen.sum()), len(set(audit.patients[chosen])), by_class))
    return rows


def _refuse_other_audit(out: Path, info: RunInfo) -> None:
    """A folder holds one audit: the same model, data, decision and seed may be resumed or extended, nothing else."""
    if not is_run(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out}: exists and is not a run folder. Choose another --out.")
        return
    earlier = Run(out).info
    for what in ("model", "data"):
        if earlier.fingerprints.get(what) != info.fingerprints[what]:
            raise RunError(f"{out}: holds an audit of another {what}. Choose another --out, or remove that folder.")
    decided = agreed(info.decision if unchosen(earlier.decision) else earlier.decision)
    if (earlier.seed, decided, earlier.groups, earlier.acquisition) != (
        info.seed, agreed(info.decision), info.groups, info.acquisition,
    ):  # fmt: skip
        raise RunError(f"{out}: holds an audit with another decision, seed or groups. Choose another --out.")


def _refuse_other_threshold(out: Path, info: RunInfo, earlier: RunInfo | None) -> None:
    """The same rule chooses the same threshold, unless the model answers otherwise on another device."""
    before, now = None if earlier is None else earlier.decision.get("threshold"), info.decision["threshold"]
    if before is not None and not math.isclose(before, now, abs_tol=1e-4):
        raise RunError(
            f"{out}: holds an audit at the threshold {before:.4g}, and here the rule chooses {now:.4g}. Choose another --out."
        )


def _earlier(out: Path, name: str) -> Record | None:
    try:
        return Run(out).record(name)
    except XVisionError:
        return None


def _key(audit: Audit, item: Analysis, options: Mapping[str, Any]) -> str:
    parts = {
        "analysis": item.name, "options": dict(options), "follows": audit.options.get(item.follows), "fingerprints": audit.fingerprints,
        "decision": codec.plain(audit.decision), "seed": audit.seed, "groups": audit.groups, "acquisition": audit.acquisition,
        "pictures": audit.pictures, "code": code_version(), "record": _record(audit), "outside": audit.outside.fingerprints,
        "modality": audit.modality, "fairness": codec.plain(audit.fairness), "rule": audit.operating.rule,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _record(audit: Audit) -> str:
    """SHA-256 of what the checkpoint says of its own training, "" where it says nothing: an analysis shows it."""
    path = Path(str(audit.model.description.get("source", ""))) / EVIDENCE
    return sha256(path) if path.is_file() else ""
