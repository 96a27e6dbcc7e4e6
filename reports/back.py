"""The chapters after the results: what gave none, findings in detail, notes, how to repeat and how to verify."""

from __future__ import annotations

import json
from collections.abc import Mapping

from reports.blocks import Block, Break, Bullets, Code, Fact, Facts, Grid, Heading, Prose, Status
from reports.words import flat, minute, plan_sha256, short_first, shown
from xvision import text
from xvision.result import Finding, Metric, named, spoken
from xvision.store import Run, sha256

_MOST_PROBLEMS = 20


def without_result(run: Run) -> list[Block]:
    """Skipped and failed analyses, told apart, each with its reason."""
    silent = [record for record in run.records if record.status != "ok"]
    blocks: list[Block] = [Break(90), Heading("Analyses without a result")]
    if not silent:
        return [*blocks, Prose("Every analysis of this run gave a result.")]
    rows = tuple((record.title, record.status, record.reason or "no reason was recorded") for record in silent)
    grid = Grid("Skipped and failed analyses", ("Analysis", "Status", "Reason"), rows, (), ("auto", "auto", "1fr"))
    told = (
        "A skipped analysis does not apply to this model or data. A failed one should have run and did not: its question is open, "
        "and its traceback is in the run folder."
    )
    return [*blocks, Prose(told), grid]


def findings(run: Run) -> list[Block]:
    """Each finding with its rule, evidence, reason and the command that repeats it."""
    blocks: list[Block] = [Break(110), Heading("Findings in detail")]
    if not run.findings:
        return [*blocks, Prose("This run was not judged: there are no findings.")]
    return [*blocks, *(block for finding in run.findings for block in _finding(finding))]


def _finding(finding: Finding) -> list[Block]:
    several = len(finding.evidence) > 1
    alone = "" if several or not finding.evidence else f" {_grounds(finding.evidence[0])}"
    lines = [f"{named(metric)}: {spoken(metric)}. {_grounds(metric)}" for metric in finding.evidence] if several else []
    rows = (
        Fact("Found", f"{finding.sentence}{alone}"),
        *(Fact("" if place else "Evidence", line) for place, line in enumerate(lines)),
        Fact("Rule", finding.rule),
        Fact("Why this rule", finding.why),
        Fact("Criterion", f"{finding.id}, on the analysis {finding.analysis}"),
        Fact("To repeat", finding.reproduce or "not recorded", True),
    )
    return [Heading(finding.title, 2), Status(finding.verdict, finding.severity), Facts(rows)]


def _grounds(metric: Metric) -> str:
    """``n = 60, DeLong.``, or nothing for a number that has neither."""
    parts = [f"n = {text.number(metric.n, 'count')}" if metric.n else "", metric.interval]
    said = ", ".join(part for part in parts if part)
    return f"{said}." if said else ""


def notes(run: Run) -> list[Block]:
    """What auditors wrote on the run, in order; nothing when nobody did."""
    entries = run.reviews()
    if not entries:
        return []
    rows = tuple((str(place), _entry(entry)) for place, entry in enumerate(entries, start=1))
    told = "Notes, overrides and sign-offs that were added to the run folder, in the order in which they were added."
    return [Heading("Notes of the auditors"), Prose(told), Grid("Notes", ("No.", "Entry"), rows, (0,), ("auto", "1fr"))]


def _entry(entry: Mapping[str, object]) -> str:
    return "; ".join(f"{text.label(name)}: {value}" for name, value in flat(entry) if name != "previous")


def reproduction(run: Run) -> list[Block]:
    """Command, plan, versions, hardware, seed and passes."""
    info = run.info
    again = (
        Fact("Seed", str(info.seed)),
        Fact("Started", info.started),
        Fact("Finished", info.finished or "not finished"),
        Fact("Duration", f"{info.seconds:.0f} s"),
        Fact(
            "Passes through the model",
            f"{text.number(info.forward, 'count')} forward, {text.number(info.backward, 'count')} backward",
        ),
        Fact("Commit", str(info.git.get("commit", "not in a git repository")), True),
        Fact("Uncommitted changes", shown(info.git.get("dirty", "unknown"))),
    )
    return [
        Break(110),
        Heading("Reproduction"),
        Prose("The same command on the same model, data and versions gives the same numbers."),
        Code((info.command,)),
        Facts(again),
        Heading("Plan as resolved", 2),
        Code(tuple(f"{name} = {value}" for name, value in _assignments(info.plan))),
        Heading("Software", 2),
        *short_first(tuple(Fact(name, value) for name, value in info.versions.items())),
        Heading("Hardware", 2),
        *short_first(tuple(Fact(text.label(name), value) for name, value in flat(info.hardware))),
    ]


def _assignments(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Every setting with its exact value."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _assignments(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", json.dumps(value, ensure_ascii=False)))
    return found


def integrity(run: Run, problems: tuple[str, ...]) -> list[Block]:
    """Hashes, whether the folder matched them when the report was made, and how to check without xvision."""
    listing = run.path / "checksums.txt"
    folder = run.path.resolve().name
    rows = (
        Fact("SHA-256 of checksums.txt", sha256(listing) if listing.is_file() else "there is none", True),
        Fact("SHA-256 of the plan", plan_sha256(run.info), True),
        *(Fact(f"Fingerprint of {name}", value, True) for name, value in sorted(run.info.fingerprints.items())),
        Fact("SHA-256 of the criteria", run.judgement.criteria_sha256 or "no criteria", True),
        Fact("State of the run at", minute(run.info.finished or run.info.started)),
    )
    blocks: list[Block] = [
        Heading("Integrity"),
        Prose(
            "checksums.txt holds the SHA-256 of every file of the run; its own hash, below, therefore stands for the whole run."
        ),
        Facts(rows),
    ]
    if problems:
        rest = len(problems) - _MOST_PROBLEMS
        more = (f"{text.plural(rest, 'further problem')}.",) if rest > 0 else ()
        blocks += [
            Prose("When this report was made, the folder did not match:"),
            Bullets((*problems[:_MOST_PROBLEMS], *more)),
        ]
    else:
        blocks.append(Prose("When this report was made, every file of the run matched its hash."))
    told = (
        "Compare the hash above with that of the file, then check the files against it, with xvision or without. The metrics of the run "
        "are attached to this PDF as metrics.json."
    )
    lines = (
        f"xvision verify {folder}",
        f"cd {folder} && sha256sum checksums.txt && sha256sum --check --quiet checksums.txt",
    )
    return [*blocks, Prose(told), Code(lines)]
