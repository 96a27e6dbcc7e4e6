"""The commands that make something: these load torch."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xvision.commands.shared import outlet, print_findings
from xvision.errors import ConfigError

if TYPE_CHECKING:
    from xvision.config import Plan
    from xvision.console import Console


def demo(parsed: argparse.Namespace) -> int:
    from xvision.console import Console
    from xvision.demo import run_demo

    report = run_demo(parsed.out, clean=parsed.clean, gap=parsed.gap, seed=parsed.seed, console=Console())
    code = outlet("reports", "report", "xvision report", [str(report.run), "-o", str(report.pdf)])
    if code == 0:
        print("\nRe-tuned as the images came:")
        print_findings(report.run)
        print("\nRe-tuned with labels and sites in balance:")
        print_findings(report.balanced)
        program = sys.argv[0] if Path(sys.argv[0]).name == "xvision" else "xvision"
        print(f"\nReport:    {report.pdf}\nDashboard: {shlex.join([program, 'dashboard', str(report.run.parent)])}")
    return code


def finetune(parsed: argparse.Namespace) -> int:
    from xvision.console import Console
    from xvision.training.run import finetune_plan
    from xvision.training.world import world

    plan = _finetune_plan(parsed)
    if parsed.ray:
        return _finetune_on_ray(plan, parsed)
    console = Console()
    report = finetune_plan(plan, console=console, resume=parsed.resume, searching=parsed.search)
    if world().first:
        print(report)
        if plan.backbone.start and not parsed.no_audit:
            _compare_with_start(plan, console)
    return 0


def _finetune_plan(parsed: argparse.Namespace) -> Plan:
    from xvision.config import load_plan

    plan = load_plan(parsed.plan)
    if parsed.data:
        plan = replace(plan, data=replace(plan.data, path=str(parsed.data.resolve())))
    if parsed.out:
        plan = replace(plan, model=replace(plan.model, path=str(parsed.out)))
    if parsed.start:
        plan = replace(plan, backbone=replace(plan.backbone, start=str(parsed.start.resolve())))
    if plan.backbone.start and Path(plan.backbone.start).resolve() == Path(plan.model.path).resolve():
        raise ConfigError(
            f"{plan.model.path}: re-tuning would overwrite the checkpoint it starts from. Choose another --out."
        )
    return plan


def _finetune_on_ray(plan: Plan, parsed: argparse.Namespace) -> int:
    import torch

    from xvision.cluster import train_group
    from xvision.console import Console
    from xvision.models.evidence import read_evaluation
    from xvision.training.aftermath import lines_of
    from xvision.training.run import finetune_plan

    out = Path(plan.model.path).resolve()
    plan = replace(plan, model=replace(plan.model, path=str(out)))

    def work() -> None:
        finetune_plan(plan, console=Console(), resume=parsed.resume)

    train_group(work, workers=parsed.ray, gpus=torch.cuda.is_available(), storage=out.with_name(f"{out.name}.ray"))
    evidence = read_evaluation(out)
    print("\n".join([f"Checkpoint: {out}", *(lines_of(evidence) if evidence else ())]))
    return 0


def _compare_with_start(plan: Plan, console: Console) -> None:
    """The audit of the model before and after re-tuning, and what differs."""
    from xvision.reaudit import audit_both

    out = Path(f"{plan.model.path}.audit")
    console.say(f"Auditing the model before and after re-tuning, into {out}")
    comparison = audit_both(plan, str(plan.backbone.start), plan.model.path, out, listener=console)
    print("\n".join(comparison.lines()))


def audit(parsed: argparse.Namespace) -> int:
    from xvision.console import Console
    from xvision.runner import run_plan

    plan = _audit_plan(parsed)
    out = parsed.out or Path("runs") / plan.name
    command = shlex.join(["xvision", "audit", *_repeatable(parsed), "--out", str(out)])
    run = run_plan(plan, out, command=command, engine=parsed.engine, listener=Console())
    print(f"Run: {run.path} ({run.info.status})")
    print_findings(run.path)
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


def compress(parsed: argparse.Namespace) -> int:
    from xvision.compression import compress_and_audit
    from xvision.config import load_plan
    from xvision.console import Console

    plan = load_plan(parsed.plan)
    out = parsed.out or Path("runs") / f"{plan.name}-{parsed.how}"
    report = compress_and_audit(
        plan, parsed.how, out, amount=parsed.amount, margin=parsed.margin, plan_file=str(parsed.plan),
        engine=parsed.engine, listener=Console(),
    )  # fmt: skip
    print("\n".join(report.lines()))
    return 0


def review_queue(parsed: argparse.Namespace) -> int:
    from xvision.config import load_plan
    from xvision.console import Console
    from xvision.review import queue

    plan = load_plan(parsed.plan)
    out = parsed.out or Path("runs") / f"{plan.name}-queue"
    report = queue.review_queue(
        plan, out, size=parsed.size, stratify=parsed.stratify, unlabelled=parsed.unlabelled,
        pseudo_precision=parsed.pseudo_precision, per_patient=parsed.per_patient, measure=parsed.measure,
        cleanlab=parsed.cleanlab, listener=Console(),
    )  # fmt: skip
    print(report)
    return 0
