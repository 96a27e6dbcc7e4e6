"""What a report must not be read to say, and what weakens the numbers of this run."""

from __future__ import annotations

from reports.blocks import Block, Bullets, Heading
from reports.suppression import rule_of
from reports.words import split_name
from xvision import text
from xvision.store import Run

_SMALL = 30  # independent units below which an interval is wide whatever its method


def unsaid(run: Run) -> tuple[str, ...]:
    """Limits of every audit, and what is missing from this one."""
    silent = [record.title for record in run.records if record.status != "ok"]
    explained = any(record.pillar == "Explanation" and record.status == "ok" for record in run.records)
    missing, below = _missing(run), rule_of(run.info).below
    said = (
        (
            f"Groups of fewer than {below} people are withheld, and larger ones from which their number could be worked out. "
            "The run folder holds all numbers.",
            below > 0,
        ),
        (
            f"It speaks of one model on {split_name(run.info)} of one data set. It does not say how the model behaves on other hospitals, "
            "scanners, populations or times.",
            True,
        ),
        (
            "A criterion that is kept means that a number agreed on was reached here. It is no proof of clinical benefit or of safety, "
            "and no approval by any authority.",
            True,
        ),
        ("Labels were taken as given. Errors in them count as errors of the model, or hide them.", True),
        ("A map shows what moved the score. It does not show that the reason is a medical one.", explained),
        (
            f"What {text.listing(silent)} would have shown is not known. Absence of a result is not a pass.",
            bool(silent),
        ),
        (
            f"{text.plural(missing, 'number')} could not be estimated from these data; the reason stands in the place of the interval.",
            missing > 0,
        ),
    )
    return tuple(sentence for sentence, holds in said if holds)


def limitations(run: Run) -> list[Block]:
    """What weakens the numbers, read from the run itself."""
    info, judgement = run.info, run.judgement
    few, missing = _small(run), _missing(run)
    said = (
        (
            "The operating point was not declared: what is said of the decision holds for a convention.",
            not info.decision.get("declared", True),
        ),
        (
            "The threshold was chosen on validation images. Intervals of rates by group count that; all others take it as given.",
            "rule" in info.decision,
        ),
        (
            "Patients were not recorded: images of one patient count as independent, and intervals may be too narrow.",
            not info.patients_declared,
        ),
        ("No group columns were named: differences between groups of patients were not looked for.", not info.groups),
        ("No acquisition columns were named: dependence on site or scanner was not looked for.", not info.acquisition),
        ("No criteria were given: nothing was judged.", not judgement.findings),
        (
            "The criteria were not declared before the run.",
            bool(judgement.findings) and not judgement.declared_before_run,
        ),
        (
            "The folder in which the command was started had uncommitted changes: its commit is not exactly what ran.",
            bool(info.git.get("dirty")),
        ),
        (f"Intervals that rest on fewer than {_SMALL} independent units: {text.number(few, 'count')}.", few > 0),
        (f"Numbers that could not be estimated: {text.number(missing, 'count')}.", missing > 0),
        *((f"Check before the run, {check.name}: {check.sentence}", check.status != "ok") for check in info.checks),
        (
            "The data are a sample of the past. Intervals cover the chance of the draw, not a change of population, equipment or practice.",
            True,
        ),
        ("Many numbers are shown, and some of the extreme ones are extreme by chance.", True),
    )
    return [Heading("Limitations"), Bullets(tuple(sentence for sentence, holds in said if holds))]


def _missing(run: Run) -> int:
    return sum(metric.value is None for record in run.records for metric in record.metrics)


def _small(run: Run) -> int:
    return sum(
        metric.n is not None and metric.n < _SMALL and metric.low is not None
        for record in run.records
        for metric in record.metrics
    )
