"""The chapters before the results: cover, verdict, scorecard, what was audited."""

from __future__ import annotations

from collections import Counter

from reports.blocks import (
    Badge,
    Block,
    Break,
    Bullets,
    Cover,
    Fact,
    FindingLine,
    FindingLines,
    Grid,
    Heading,
    Notice,
    Prose,
    Verdict,
)
from reports.limits import unsaid
from reports.suppression import WITHHELD, rule_of
from reports.words import flat, minute, moment, plan_sha256, short_first, shortened, split_name
from xvision import text
from xvision.result import Check, Finding, Judgement, Metric, RunInfo, statement
from xvision.store import Run

_TOP = 5  # findings on the verdict page
_PER_CRITERION = 3  # numbers of one criterion on the scorecard
_CLASS_COLUMNS = 5
_SENTENCES = {
    "pass": "Every criterion is kept by the whole 95 % interval of its number.",
    "warn": "A minor criterion is broken by the whole 95 % interval of its number; no weightier one is.",
    "fail": "At least one criterion is broken by the whole 95 % interval of its number.",
    "insufficient evidence": "No criterion is broken, but at least one cannot be decided from these data.",
    "not judged": "No criteria were given. The numbers are reported without a verdict.",
}
_POST_HOC = (
    "These criteria were not declared before the run. A threshold chosen after the numbers are known proves little: "
    "read this verdict as a description, not as a test."
)


def cover(run: Run, problems: tuple[str, ...]) -> Cover:
    """What was audited, when, by which rule, and in what state the run is."""
    info = run.info
    data = dict(flat(info.plan)).get("data.path", "")
    rows = (
        Fact("Model", _model_name(info)),
        Fact("Model SHA-256", info.fingerprints.get("model", "–"), True),
        Fact("Data", f"{data.rstrip('/').rsplit('/', 1)[-1] or '–'}, {split_name(info)}: {_extent(info)}"),
        Fact("Data SHA-256", info.fingerprints.get("data", "–"), True),
        Fact("Decision rule", statement(info.decision)),
        Fact("Criteria", _criteria(run.judgement)),
        Fact("Plan SHA-256", plan_sha256(info), True),
        Fact("Run", f"{minute(info.started)} to {minute(info.finished) if info.finished else 'not finished'}"),
        Fact("Status", _status(run)),
    )
    return Cover(
        name=info.name,
        subject=_model_name(info),
        date=f"{moment(info):%Y-%m-%d}",
        verdict=run.judgement.verdict,
        notices=tuple(_state_notices(run, problems)),
        facts=rows,
    )


def _model_name(info: RunInfo) -> str:
    parts = [str(info.model[key]) for key in ("architecture", "backbone") if info.model.get(key)]
    return ", ".join(parts) or "unnamed model"


def _extent(info: RunInfo) -> str:
    units = text.plural(info.patients, "patient") if info.patients_declared else "patients not recorded"
    return f"{text.plural(info.cases, 'image')}, {units}, {len(info.classes)} classes"


def _criteria(judgement: Judgement) -> str:
    if not judgement.criteria_sha256:
        return "none given"
    when = "declared before the run" if judgement.declared_before_run else "not declared before the run"
    return f"{text.plural(len(judgement.findings), 'finding')}, {when}"


def _status(run: Run) -> str:
    ended = Counter[str](record.status for record in run.records)
    parts = ", ".join(f"{ended[status]} {word}" for status, word in _ENDINGS if ended[status])
    return f"{run.info.status} ({parts or 'no analysis has ended'})"


_ENDINGS = (("ok", "analyses with results"), ("skipped", "skipped"), ("failed", "failed"))


def _state_notices(run: Run, problems: tuple[str, ...]) -> list[str]:
    found = []
    failed = [record.title for record in run.records if record.status == "failed"]
    if run.info.status == "running":
        found.append("This run has not finished. The report holds only what had ended when it was made.")
    elif run.info.status == "partial":
        found.append(
            f"This run is partial: {text.listing(failed)} failed and say nothing." if failed else "This run is partial."
        )
    if problems and run.info.status != "running":
        found.append(f"The run folder does not match its checksums: {problems[0]} See the chapter on integrity.")
    return found


def verdict(run: Run) -> list[Block]:
    """The overall verdict, the findings that weigh most, and what must not be read into them."""
    judgement = run.judgement
    blocks: list[Block] = [Heading("Verdict"), Verdict(judgement.verdict, _SENTENCES[judgement.verdict])]
    if judgement.findings and not judgement.declared_before_run:
        blocks.append(Notice(_POST_HOC))
    if judgement.findings:
        blocks += [Prose(_tally(judgement)), Heading("Findings that weigh most", 2), *_top(judgement)]
    blocks += [Heading("What this report does not say", 2), Bullets(unsaid(run))]
    return blocks


def _tally(judgement: Judgement) -> str:
    counted = Counter[str](finding.verdict for finding in judgement.findings)
    order = ("fail", "insufficient evidence", "warn", "pass")
    parts = [f"{counted[verdict]} {verdict}" for verdict in order if counted[verdict]]
    many = len(judgement.findings)
    return f"{many} {'criterion was' if many == 1 else 'criteria were'} held against the run: {', '.join(parts)}."


def _top(judgement: Judgement) -> list[Block]:
    """Findings as the judge ordered them, those that do not pass first."""
    chosen = judgement.findings[:_TOP]
    lines = tuple(FindingLine(item.verdict, item.severity, item.title, item.sentence) for item in chosen)
    rest = len(judgement.findings) - len(chosen)
    more: list[Block] = [Prose(f"{text.plural(rest, 'further finding')} on the scorecard.", "note")] if rest else []
    return [FindingLines(lines), *more]


def scorecard(run: Run) -> list[Block]:
    """Every criterion: rule, observed numbers, intervals, n, verdict."""
    judgement = run.judgement
    blocks: list[Block] = [Break(), Heading("Scorecard")]
    if not judgement.findings:
        return [*blocks, Prose("This run was not judged: no criteria were given, so there is nothing to score.")]
    when = "declared" if judgement.declared_before_run else "not declared"
    rows = tuple(row for finding in judgement.findings for row in _score(finding))
    columns = ("Criterion", "Rule", "Of whom, under what", "Observed", "95 % interval", "n", "Verdict")
    note = (
        f"These criteria (SHA-256 {judgement.criteria_sha256[:16]}…) were {when} before the run. Pass: the whole interval keeps the rule. "
        "Fail, or warn where the criterion is minor: the whole interval breaks it. Otherwise the evidence is insufficient. "
        "A missing number is never a pass."
    )
    widths = ("1.2fr", "1.2fr", "1fr", "auto", "auto", "auto", "auto")
    grid = Grid("Criteria held against the run", columns, rows, (3, 5), widths, note)
    return [*blocks, grid]


def _score(finding: Finding) -> list[tuple[str | Badge, ...]]:
    """The criterion with its leading number, then its next ones."""
    shown: list[Metric | None] = list(finding.evidence[:_PER_CRITERION]) or [None]
    first = (f"{finding.title} ({finding.severity})", finding.rule, *_observed(shown[0]), Badge(finding.verdict))
    return [first, *(("", "", *_observed(metric), "") for metric in shown[1:])]


def _observed(metric: Metric | None) -> tuple[str, str, str, str]:
    if metric is None:
        return "–", "–", "no number", "–"
    spread = metric.reason or "" if metric.value is None else text.interval(metric.low, metric.high, metric.unit)
    value, n = text.number(metric.value, metric.unit), text.number(metric.n, "count")
    return text.condition(metric.where) or "all", value, spread or "exact", n


def guide() -> tuple[str, ...]:
    """How to read the numbers, for the page of contents."""
    return (
        "A number stands with its 95 % interval: the range that is compatible with these data. A number that cannot be estimated is a "
        "dash with the reason, never zero. n counts independent units: patients where they are recorded, else images.",
        "A verdict looks at the whole interval, not at the number alone. Where the interval holds both sides of the rule, the evidence is "
        "insufficient, whatever the number is.",
        "Skipped means that an analysis does not apply; failed means that it should have run and did not. Neither is a pass.",
        "Colour never stands alone: verdicts have a word and a sign, curves have dashes and markers, bars have hatches.",
    )


def audited(run: Run) -> list[Block]:
    """The model, the data, who is in them, and what the checks before the run found."""
    info = run.info
    model = tuple(Fact(text.label(name.replace(".", " ")), value) for name, value in flat(info.model))
    return [
        Break(),
        Heading("What was audited"),
        Heading("Model", 2),
        *short_first(
            (*model, Fact("Classes", ", ".join(info.classes)), Fact("Decision rule", statement(info.decision)))
        ),
        Heading("Data", 2),
        Prose(_included(info)),
        *_composition(info),
        Heading("Checks before the run", 2),
        *_checks(info),
    ]


def _included(info: RunInfo) -> str:
    patients = (
        "Patients were recorded, and every interval counts patients, not images."
        if info.patients_declared
        else "No patient column was given: each image counts as one patient, and intervals are too narrow if patients repeat."
    )
    return f"Audited: {split_name(info)}, {_extent(info)}. {patients} A missing group value is the level “unknown”; nobody is left out."


def _composition(info: RunInfo) -> list[Block]:
    if not info.composition:
        return [
            Prose(
                "No group or acquisition columns were named in the plan: nothing can be said about who is in the data."
            )
        ]
    by_class = info.classes if len(info.classes) <= _CLASS_COLUMNS else ()
    role = {**dict.fromkeys(info.groups, "patient"), **dict.fromkeys(info.acquisition, "acquisition")}
    hidden = rule_of(info).levels
    rows = tuple(
        (
            f"{group.column} ({role.get(group.column, 'other')})",
            group.level,
            *(
                WITHHELD if (group.column, group.level) in hidden else text.number(count, "count")
                for count in (group.cases, group.patients, *(group.by_class.get(name, 0) for name in by_class))
            ),
        )
        for group in info.composition
    )
    columns = ("Column", "Level", "Images", "Patients", *by_class)
    widths = ("1.2fr", "1.2fr", *["auto" if len(name) < 14 else "1fr" for name in columns[2:]])
    return [
        shortened(Grid("Composition of the audited data", columns, rows, tuple(range(2, len(columns))), widths), 40)
    ]


def _checks(info: RunInfo) -> list[Block]:
    if not info.checks:
        return [Prose("No checks are recorded in this run.")]
    rows = tuple((check.name, check.status, _told(check)) for check in info.checks)
    return [Grid("What the checks found", ("Check", "Result", "What was found"), rows, (), ("auto", "auto", "1fr"))]


def _told(check: Check) -> str:
    """The sentence, and the first examples that it does not give itself."""
    examples = [line for line in check.evidence[:3] if line not in check.sentence]
    return " ".join([check.sentence, *["; ".join(examples)] * bool(examples)])
