"""The command line: parse, call, print. Wrong input ends with one sentence on stderr and exit code 2."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xvision import __version__
from xvision.errors import ConfigError, MissingExtra, XVisionError

if TYPE_CHECKING:
    from xvision.config import Plan

Command = Callable[[argparse.Namespace], int]
Adder = Callable[[str, Command, str], argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parsed = _parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        return command(parsed)
    except XVisionError as problem:
        print(f"xvision: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("xvision: interrupted; the same command continues where it stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xvision", description="Audit medical image classifiers.")
    parser.add_argument("--version", action="version", version=f"xvision {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(command=command)
        return added

    _add_making(add)
    _add_reading(add)
    return parser


def _add_making(add: Adder) -> None:
    """The commands that make something: these load torch."""
    demo = add("demo", _demo, "Phantoms → fine-tune → audit → PDF, on this machine, in minutes.")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything the demo makes")
    demo.add_argument("--clean", action="store_true", help="switch the planted flaws off")
    demo.add_argument("--seed", type=int, default=0)

    finetune = add("finetune", _finetune, "Fine-tune the LLM-based classifier as a plan says.")
    finetune.add_argument("plan", type=Path, metavar="PLAN.toml")
    finetune.add_argument("--data", type=Path, help="manifest CSV or image folder, instead of the plan's")
    finetune.add_argument("--out", type=Path, help="checkpoint folder (default: model.path of the plan)")

    audit = add("audit", _audit, "Audit a model on data into a run folder; an unfinished one resumes.")
    audit.add_argument("plan", type=Path, nargs="?", metavar="PLAN.toml")
    audit.add_argument("--model", help="checkpoint folder or hub id, instead of a plan's")
    audit.add_argument("--data", type=Path, help="manifest CSV or image folder, instead of a plan's")
    audit.add_argument("--groups", default="", metavar="COLUMN,…", help="columns that say who the patient is")
    audit.add_argument("--acquisition", default="", metavar="COLUMN,…", help="columns that say how the image was taken")
    audit.add_argument("--criteria", type=Path, help="criteria agreed beforehand")
    audit.add_argument("--out", type=Path, metavar="RUN", help="run folder (default: runs/NAME)")
    audit.add_argument("--only", nargs="+", default=[], metavar="NAME", help="analyses to run")
    audit.add_argument("--engine", choices=["local", "ray"], default="local")
    audit.add_argument("--set", action="append", default=[], dest="settings", metavar="ANALYSIS.OPTION=VALUE")


def _add_reading(add: Adder) -> None:
    """The commands that read what there is."""
    add("analyses", _analyses, "What there is, what each needs, what it costs, and its options.").add_argument(
        "--json", action="store_true"
    )
    metrics = add("metrics", _metrics, "Every number of a run in one tidy table.")
    metrics.add_argument("run", type=Path, metavar="RUN")
    metrics.add_argument("--json", action="store_true")

    judge = add("judge", _judge, "Hold a run against criteria: exit 0 pass, 1 fail, 3 insufficient evidence.")
    judge.add_argument("run", type=Path, metavar="RUN")
    judge.add_argument("--criteria", type=Path, required=True, metavar="CRITERIA.toml")
    judge.add_argument("--json", action="store_true")

    report = add("report", _report, "Typeset a run as a PDF.")
    report.add_argument("run", type=Path, metavar="RUN")
    report.add_argument("-o", "--out", type=Path, metavar="REPORT.pdf")

    dashboard = add("dashboard", _dashboard, "Show a run, or a folder of runs, in the browser (this machine only).")
    dashboard.add_argument("run", type=Path, metavar="RUN_OR_FOLDER")
    dashboard.add_argument("--port", type=int, default=8501)
    dashboard.add_argument("--no-browser", action="store_true")

    add("verify", _verify, "Check every file of a run against its hash, and the chain of reviews.").add_argument(
        "run", type=Path, metavar="RUN"
    )
    add("doctor", _doctor, "What is installed, which device there is, what is missing and how to get it.")


def _demo(parsed: argparse.Namespace) -> int:
    from xvision.console import Console
    from xvision.demo import run_demo

    report = run_demo(parsed.out, clean=parsed.clean, seed=parsed.seed, console=Console())
    code = _outlet("reports", "report", "xvision report", [str(report.run), "-o", str(report.pdf)])
    if code == 0:
        _print_findings(report.run)
        program = sys.argv[0] if Path(sys.argv[0]).name == "xvision" else "xvision"
        print(f"\nReport:    {report.pdf}\nDashboard: {shlex.join([program, 'dashboard', str(report.run)])}")
    return code


def _finetune(parsed: argparse.Namespace) -> int:
    from xvision.config import load_plan
    from xvision.console import Console
    from xvision.training.run import finetune_plan

    plan = load_plan(parsed.plan)
    if parsed.data:
        plan = replace(plan, data=replace(plan.data, path=str(parsed.data.resolve())))
    if parsed.out:
        plan = replace(plan, model=replace(plan.model, path=str(parsed.out)))
    print(finetune_plan(plan, console=Console()))
    return 0


def _audit(parsed: argparse.Namespace) -> int:
    from xvision.console import Console
    from xvision.runner import run_plan

    plan = _audit_plan(parsed)
    out = parsed.out or Path("runs") / plan.name
    command = shlex.join(["xvision", "audit", *_repeatable(parsed), "--out", str(out)])
    run = run_plan(plan, out, command=command, engine=parsed.engine, listener=Console())
    print(f"Run: {run.path} ({run.info.status})")
    _print_findings(run.path)
    return 0


def _audit_plan(parsed: argparse.Namespace) -> Plan:
    from xvision.config import DataPlan, ModelPlan, Plan, load_plan, resolve_paths
    from xvision.registry import parse_setting

    if parsed.plan:
        plan = load_plan(parsed.plan)
    elif parsed.model and parsed.data:
        plan = Plan(DataPlan(str(parsed.data)), ModelPlan(parsed.model), name=Path(parsed.model).name)
        plan = resolve_paths(plan, Path.cwd())
    else:
        raise ConfigError("give a PLAN.toml, or both --model and --data.")
    if parsed.plan and parsed.data:
        plan = replace(plan, data=replace(plan.data, path=str(parsed.data.resolve())))
    if parsed.plan and parsed.model:
        plan = resolve_paths(replace(plan, model=replace(plan.model, path=parsed.model)), Path.cwd())
    groups, acquisition = (tuple(filter(None, given.split(","))) for given in (parsed.groups, parsed.acquisition))
    data = replace(plan.data, groups=groups or plan.data.groups, acquisition=acquisition or plan.data.acquisition)
    plan = replace(plan, data=data)
    options = {name: dict(values) for name, values in plan.analysis.items()}
    for setting in parsed.settings:
        name, option, value = parse_setting(setting)
        options.setdefault(name, {})[option] = value
    criteria = str(parsed.criteria.resolve()) if parsed.criteria else plan.criteria
    return replace(plan, analysis=options, criteria=criteria, only=tuple(parsed.only) or plan.only)


def _repeatable(parsed: argparse.Namespace) -> list[str]:
    """The words of the command that decide its numbers, without --only, --out and --engine."""
    words = [str(parsed.plan)] if parsed.plan else []
    for name in ("model", "data", "groups", "acquisition", "criteria"):
        words += [f"--{name}", str(getattr(parsed, name))] if getattr(parsed, name) else []
    return words + [word for setting in parsed.settings for word in ("--set", setting)]


def _analyses(parsed: argparse.Namespace) -> int:
    from xvision import codec
    from xvision.console import print_analyses
    from xvision.registry import analyses

    if parsed.json:
        rows = [
            {"name": a.name, "title": a.title, "pillar": a.pillar, "question": a.question, "needs": a.need, "passes": a.passes,
             "options": {option.name: codec.plain(option.default) for option in a.options}}
            for a in analyses().values()
        ]  # fmt: skip
        print(json.dumps(rows, indent=2))
    else:
        print_analyses(list(analyses().values()))
    return 0


def _metrics(parsed: argparse.Namespace) -> int:
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


def _judge(parsed: argparse.Namespace) -> int:
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
        _print_findings(run.path)
    return exit_code(judgement)


def _report(parsed: argparse.Namespace) -> int:
    out = ["-o", str(parsed.out)] if parsed.out else []
    return _outlet("reports", "report", "xvision report", [str(parsed.run), *out])


def _dashboard(parsed: argparse.Namespace) -> int:
    words = [str(parsed.run), "--port", str(parsed.port), *(["--no-browser"] if parsed.no_browser else [])]
    return _outlet("dashboards", "dashboard", "xvision dashboard", words)


def _outlet(package: str, extra: str, purpose: str, words: list[str]) -> int:
    """Runs an outlet as its own process: the library never imports it."""
    for needed in {"reports": ("typst", "matplotlib"), "dashboards": ("streamlit", "plotly")}[package]:
        if importlib.util.find_spec(needed) is None:
            raise MissingExtra(needed, extra, purpose)
    try:
        return subprocess.call([sys.executable, "-m", package, *words])  # noqa: S603  # our own module, no shell
    except KeyboardInterrupt:  # the usual way to end the dashboard, which ends itself
        return 0


def _verify(parsed: argparse.Namespace) -> int:
    from xvision.store import open_run

    problems = open_run(parsed.run).problems()
    for problem in problems:
        print(problem)
    print(f"{parsed.run}: {'altered' if problems else 'every file is as it was written'}")
    return 1 if problems else 0


def _doctor(parsed: argparse.Namespace) -> int:
    from xvision.console import print_doctor

    return print_doctor()


def _print_findings(path: Path) -> None:
    from xvision.console import print_findings
    from xvision.store import open_run

    print_findings(open_run(path).judgement)


if __name__ == "__main__":
    sys.exit(main())
