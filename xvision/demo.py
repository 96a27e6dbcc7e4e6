"""The demonstration, a story in three steps: a good model, a re-tuning that makes it look better and be worse, and one that does not."""

from __future__ import annotations

import shlex
import time
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch

from xvision import codec
from xvision.compare import Comparison, compare
from xvision.config import Plan, load_plan
from xvision.console import Console
from xvision.data.synthetic import PhantomSettings, write_phantoms
from xvision.errors import RunError
from xvision.runner import run_plan
from xvision.store import Run, write_atomic
from xvision.training.run import finetune_plan

_FIRST, _SECOND = 3000, 3000
"""Images of the two hospitals."""


class Demo(NamedTuple):
    """Where the demo put things. run: the audit of the naive re-tuning; balanced: that of the careful one."""

    run: Path
    pdf: Path
    balanced: Path
    comparison: Comparison


def settings(*, clean: bool, gap: bool, seed: int) -> PhantomSettings:
    """The second hospital: a site's marker follows the label in training, unless clean. gap: lesions are fainter in women."""
    return PhantomSettings(n=_SECOND, seed=seed, shortcut=0.0 if clean else 0.9, contrast_gap=0.6 if gap else 0.0)


_HEAD = """# {what}
name = "{name}"
seed = {seed}
criteria = "criteria.toml"

[data]
path = "{data}"
groups = ["sex", "age_band"]
acquisition = ["site", "scanner"]
modality = "xray"

[decision]
positive = "lesion"
threshold = 0.5
no_disease = "normal"

[fairness]
margin = 0.10

[fairness.case_mix]       # site and scanner came about apart from who the patient is
site = "confounder"
scanner = "confounder"

[model]
path = "{checkpoint}"
device = "cpu"

[analysis.adversarial]
cases = 24
norms = ["linf"]
steps = 40
queries = 100
examined = 12

[analysis.certified]
cases = 8
sigmas = [0.1]
draws = 100

[analysis.threat_models]
cases = 24
combinations = 20

[analysis.repeatability]
cases = 60

[analysis.corruption]
cases = 60
resamples = 200
agreed_accuracy = 0.8

[analysis.selective]
agreed_risk = 0.05

[analysis.image_reliance]
cases = 120
resamples = 200

[analysis.ood]
cases = 100
reference_cases = 300
resamples = 200

[analysis.data_quality]
cases = 1000
embeddings = 200

[analysis.attribution]
cases = 48
baselines = []

[analysis.localisation]
cases = 48

[analysis.method_agreement]
cases = 48

[analysis.explanation_quality]
cases = 24
path_steps = 16
bank = 30
copies = 1
shuffles = 1

[analysis.explanation_stability]
cases = 6
steps = 16
"""

_FIRST_PLAN = """
[training]
seed = {seed}
"""

_NAIVE_PLAN = """
[backbone]
start = "first"

[training]
epochs = 3
seed = {seed}
controls = false
rehearsal.share = 0.0     # nothing of the first hospital is shown again
"""

_BALANCED_PLAN = """
[backbone]
start = "first"

[training]
epochs = 3
seed = {seed}
controls = false
groups.balance = ["label", "site"]   # every label is drawn equally often from every site
"""

_STEPS = (
    ("first", "hospital-a", "Step 1: the first training, on clean phantoms of a first hospital.", _FIRST_PLAN),
    ("retuned", "hospital-b", "Step 2: re-tuned as it comes, where a site's marker follows the label.", _NAIVE_PLAN),
    ("balanced", "hospital-b", "Step 3: re-tuned on the same images, drawn so that the marker says nothing.", _BALANCED_PLAN),
)  # fmt: skip


def plans(out: Path, *, seed: int) -> dict[str, Plan]:
    """The three plans, written as files that ``xvision finetune`` and ``xvision audit`` take as they are.

    Training from scratch on the flawed data would learn either the marker or the lesion, depending on the seed; a model that
    already knows lesions takes on the flaws, as a hospital's re-tuned model does.
    """
    write_atomic(out / "criteria.toml", (files("xvision.data") / "demo_criteria.toml").read_bytes())
    found = {}
    for name, data, what, rest in _STEPS:
        words = (_HEAD + rest).format(what=what, name=name, data=data, checkpoint=name, seed=seed)
        write_atomic(out / f"{name}.toml", words.encode())
        found[name] = load_plan(out / f"{name}.toml")
    return found


def run_demo(out: Path, *, clean: bool, seed: int, console: Console, gap: bool = False) -> Demo:
    """Everything but the PDF; each step that is already done is not done again."""
    started = time.monotonic()
    torch.set_num_threads(1)  # the model is tiny: threads would wait for each other, the more so on a busy machine
    flaws = [*(() if clean else ("a shortcut",)), *(("a group gap",) if gap else ())]
    _same_demo(out, f"{' and '.join(flaws) or 'clean'}, seed {seed}")
    steps = plans(out, seed=seed)
    planted = f"with {' and '.join(flaws)} planted" if flaws else "without flaws"
    first, second = PhantomSettings(n=_FIRST, seed=seed + 1000), settings(clean=clean, gap=gap, seed=seed)
    _phantoms(steps["first"], first, "clean phantoms of a first hospital", console)
    _phantoms(steps["retuned"], second, f"phantoms of a second hospital, {planted}", console)
    _train(
        steps["first"],
        "1 Training the LLM-based classifier (tiny Qwen3, one CPU thread) at the first hospital",
        console,
    )
    _train(steps["retuned"], "2 Re-tuning it at the second hospital, as the images come", console)
    _train(
        steps["balanced"],
        "3 Re-tuning it there with labels and sites in balance, and old images among the new",
        console,
    )
    runs = {name: _audit(steps[name], out, console) for name in ("retuned", "balanced")}
    comparison = compare(runs["retuned"], runs["balanced"], seed=seed)
    write_atomic(out / "comparison.json", codec.dumps(codec.plain(comparison)).encode())
    console.say(f"Done in {time.monotonic() - started:.0f} s")
    return Demo(runs["retuned"].path, out / "report.pdf", runs["balanced"].path, comparison)


def _same_demo(out: Path, kind: str) -> None:
    """One folder holds one demo: refuses to mix two kinds of flaws, or two seeds."""
    stamp = out / "demo.txt"
    if stamp.exists() and stamp.read_text("utf-8").strip() != kind:
        raise RunError(
            f"{out}: holds the demo '{stamp.read_text('utf-8').strip()}'. Choose another --out, or remove that folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    stamp.write_text(f"{kind}\n", "utf-8")


def _phantoms(plan: Plan, wanted: PhantomSettings, words: str, console: Console) -> None:
    if not Path(plan.data.path).exists():
        console.say(f"Making {wanted.n} {words}")
        write_phantoms(wanted, plan.data.path)


def _train(plan: Plan, words: str, console: Console) -> None:
    if not (Path(plan.model.path) / "evaluation.json").exists():
        console.say(words)
        console.say(str(finetune_plan(plan, console=console, resume=True)))


def _audit(plan: Plan, out: Path, console: Console) -> Run:
    console.say(f"Auditing the {plan.name} model")
    place = out / "runs" / plan.name
    command = shlex.join(["xvision", "audit", str(out / f"{plan.name}.toml"), "--out", str(place)])
    return run_plan(plan, place, command=command, listener=console)
