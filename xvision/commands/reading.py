"""The commands that read what there is: none of these needs the model."""

from __future__ import annotations

import argparse
import json

from xvision.commands.shared import outlet, print_findings


def analyses(parsed: argparse.Namespace) -> int:
    from xvision import codec
    from xvision.console import print_analyses
    from xvision.registry import analyses as known

    if parsed.json:
        rows = [
            {"name": a.name, "title": a.title, "pillar": a.pillar, "question": a.question, "needs": a.need, "passes": a.passes,
             "options": {option.name: codec.plain(option.default) for option in a.options}}
            for a in known().values()
        ]  # fmt: skip
        print(json.dumps(rows, indent=2))
    else:
        print_analyses(list(known().values()))
    return 0


def methods(parsed: argparse.Namespace) -> int:
    from xvision.console import print_methods
    from xvision.explain.catalogue import KNOWN_WRONG, controls
    from xvision.explain.catalogue import methods as known

    found = [*known().values(), *controls().values()]
    if not parsed.json:
        print_methods(found, KNOWN_WRONG)
        return 0
    rows = [
        {"name": item.name, "label": item.label, "family": item.family, "signed": item.signed, "passes": item.passes,
         "source": item.source, "note": item.note, "default": item.chosen is not None, "refused": ""}
        for item in found
    ]  # fmt: skip
    refused = [{"name": name, "refused": reason} for name, reason in KNOWN_WRONG.items()]
    print(json.dumps([*rows, *refused], indent=2, ensure_ascii=False))
    return 0


def metrics(parsed: argparse.Namespace) -> int:
    from xvision import text
    from xvision.codec import plain
    from xvision.store import open_run

    run = open_run(parsed.run)
    if parsed.json:
        rows = [{"analysis": record.analysis, **plain(metric)} for record in run.records for metric in record.metrics]
        print(json.dumps(rows, indent=2, allow_nan=False, ensure_ascii=False))
        return 0
    for record in run.records:
        for metric in record.metrics:
            shown = text.value(metric.value, metric.low, metric.high, metric.unit, metric.reason)
            print(
                f"{record.analysis:<14} {metric.name:<28} {shown:<34} n={metric.n or 0:<6} {text.condition(metric.where)}".rstrip()
            )
    return 0


def judge(parsed: argparse.Namespace) -> int:
    from xvision.codec import plain
    from xvision.judge import exit_code, judge_run, load_criteria
    from xvision.store import Writer, open_run

    criteria, run = load_criteria(parsed.criteria), open_run(parsed.run)
    judgement = judge_run(run, criteria)
    writer = Writer(run.path)
    with writer.locked():
        writer.judgement(judgement)
        writer.checksums()
    if parsed.json:
        print(json.dumps(plain(judgement), indent=2, allow_nan=False, ensure_ascii=False))
    else:
        print_findings(run.path)
    return exit_code(judgement)


def compare(parsed: argparse.Namespace) -> int:
    from xvision import codec
    from xvision.compare import compare as compared
    from xvision.store import open_run

    found = compared(open_run(parsed.run_a), open_run(parsed.run_b), margin=parsed.margin)
    print(codec.dumps(codec.plain(found)) if parsed.json else "\n".join(found.lines()))
    return 0


def report(parsed: argparse.Namespace) -> int:
    out = ["-o", str(parsed.out)] if parsed.out else []
    return outlet("reports", "report", "xvision report", [str(parsed.run), *out])


def dashboard(parsed: argparse.Namespace) -> int:
    words = [str(parsed.run), "--port", str(parsed.port), *(["--no-browser"] if parsed.no_browser else [])]
    return outlet("dashboards", "dashboard", "xvision dashboard", words)


def verify(parsed: argparse.Namespace) -> int:
    from xvision.store import open_run

    problems = open_run(parsed.run).problems()
    for problem in problems:
        print(problem)
    print(f"{parsed.run}: {'altered' if problems else 'every file is as it was written'}")
    return 1 if problems else 0


def doctor(parsed: argparse.Namespace) -> int:
    from xvision.console import print_doctor

    return print_doctor()
