"""The demonstration: a classifier trained on clean phantoms, re-tuned where two flaws are planted, and the audit that finds both."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from xvision.config import Plan, load_plan
from xvision.console import Console
from xvision.data.synthetic import PhantomSettings, write_phantoms
from xvision.errors import RunError
from xvision.recipe import BackbonePlan, TrainingPlan
from xvision.runner import run_plan
from xvision.store import write_atomic
from xvision.training.run import finetune_plan

_IMAGES = 3000


class Demo(NamedTuple):
    """Where the demo put things."""

    run: Path
    pdf: Path


def settings(*, clean: bool, seed: int) -> PhantomSettings:
    """The data that is audited. Flawed: a site's marker follows the label in training, and lesions are fainter in women."""
    plain = PhantomSettings(n=_IMAGES, seed=seed)
    return plain if clean else replace(plain, shortcut=0.6, contrast_gap=0.6)


_PLAN = """# The plan of the demonstration. `xvision finetune` and `xvision audit` take it as it is.
name = "demo"
seed = {seed}
criteria = "criteria.toml"

[data]
path = "phantoms"
groups = ["sex", "age_band"]
acquisition = ["site", "scanner"]

[decision]
positive = "lesion"
threshold = 0.5

[model]
path = "checkpoint"
device = "cpu"

[backbone]
start = "checkpoint-first"

[training]
epochs = 3
seed = {seed}
"""


def plans(out: Path, *, seed: int) -> tuple[Plan, Plan]:
    """First training on clean phantoms of other patients, and the re-tuning that is audited, written as ``plan.toml``.

    Training from scratch on the flawed data would learn either the marker or the lesion, depending on the seed; a model that
    already knows lesions takes on both flaws, as a hospital's re-tuned model does.
    """
    write_atomic(out / "plan.toml", _PLAN.format(seed=seed).encode())
    write_atomic(out / "criteria.toml", (files("xvision.data") / "demo_criteria.toml").read_bytes())
    second = load_plan(out / "plan.toml")
    first = replace(
        second,
        data=replace(second.data, path=f"{second.data.path}-first"),
        model=replace(second.model, path=f"{second.model.path}-first"),
        backbone=BackbonePlan(),
        training=TrainingPlan(seed=seed),
    )
    return first, second


def run_demo(out: Path, *, clean: bool, seed: int, console: Console) -> Demo:
    """Everything but the PDF; each step that is already done is not done again."""
    started = time.monotonic()
    _same_demo(out, clean=clean, seed=seed)
    first, second = plans(out, seed=seed)
    flaws = "without flaws" if clean else "with a planted shortcut and a planted group gap"
    _phantoms(first, settings(clean=True, seed=seed + 1000), "clean phantoms of a first hospital", console)
    _phantoms(second, settings(clean=clean, seed=seed), f"phantoms of a second hospital, {flaws}", console)
    _train(first, "Training the LLM-based classifier (tiny Qwen3, one CPU thread) at the first hospital", console)
    _train(second, "Re-tuning it at the second", console)
    command = shlex.join(["xvision", "audit", str(out / "plan.toml"), "--out", str(out / "run")])
    run = run_plan(second, out / "run", command=command, listener=console)
    console.say(f"Done in {time.monotonic() - started:.0f} s")
    return Demo(run.path, out / "report.pdf")


def _same_demo(out: Path, *, clean: bool, seed: int) -> None:
    """One folder holds one demo: refuses to mix the flawed and the clean one, or two seeds."""
    stamp, kind = out / "demo.txt", f"{'clean' if clean else 'flawed'}, seed {seed}\n"
    if stamp.exists() and stamp.read_text("utf-8") != kind:
        raise RunError(
            f"{out}: holds the demo '{stamp.read_text('utf-8').strip()}'. Choose another --out, or remove that folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    stamp.write_text(kind, "utf-8")


def _phantoms(plan: Plan, wanted: PhantomSettings, words: str, console: Console) -> None:
    if not Path(plan.data.path).exists():
        console.say(f"Making {_IMAGES} {words}")
        write_phantoms(wanted, plan.data.path)


def _train(plan: Plan, words: str, console: Console) -> None:
    if not (Path(plan.model.path) / "evaluation.json").exists():
        console.say(words)
        console.say(str(finetune_plan(plan, console=console)))
