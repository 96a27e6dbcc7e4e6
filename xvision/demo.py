"""The demonstration: phantoms with two planted flaws, a classifier fine-tuned on them, and the audit that finds both."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from xvision.config import DataPlan, DecisionPlan, ModelPlan, Plan, TrainingPlan
from xvision.console import Console
from xvision.data.synthetic import PhantomSettings, write_phantoms
from xvision.runner import run_plan
from xvision.training.run import finetune_plan


class Demo(NamedTuple):
    """Where the demo put things."""

    run: Path
    pdf: Path


def demo_settings(*, clean: bool, seed: int) -> PhantomSettings:
    """3,000 phantoms; flawed: a site marker that follows the label in training, and fainter lesions in women."""
    settings = PhantomSettings(n=3000, seed=seed)
    return settings if clean else replace(settings, shortcut=0.5, contrast_gap=0.55)


def demo_plan(out: Path, *, seed: int) -> Plan:
    return Plan(
        data=DataPlan(str(out / "phantoms"), groups=("sex", "age_band"), acquisition=("site", "scanner")),
        model=ModelPlan(str(out / "checkpoint"), device="cpu"),
        name="demo",
        seed=seed,
        criteria=str(files("xvision.data") / "demo_criteria.toml"),
        decision=DecisionPlan("lesion", 0.5),
        training=TrainingPlan(seed=seed),
    )


def run_demo(out: Path, *, clean: bool, seed: int, console: Console) -> Demo:
    """Everything but the PDF; each step that is already done is not done again."""
    started = time.monotonic()
    plan = demo_plan(out, seed=seed)
    if not (out / "phantoms").exists():
        kind = "clean phantoms" if clean else "phantoms with a planted shortcut and a planted group gap"
        console.say(f"Making 3 000 {kind} in {out / 'phantoms'}")
        write_phantoms(demo_settings(clean=clean, seed=seed), out / "phantoms")
    if not (out / "checkpoint" / "evaluation.json").exists():
        console.say("Fine-tuning the LLM-based classifier (tiny Qwen3, one CPU thread)")
        console.say(str(finetune_plan(plan, console=console)))
    command = f"xvision demo --out {out}{' --clean' if clean else ''} --seed {seed}"
    run = run_plan(plan, out / "run", command=command, listener=console)
    console.say(f"Audited in {time.monotonic() - started:.0f} s")
    return Demo(run.path, out / "report.pdf")
