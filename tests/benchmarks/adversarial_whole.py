"""The whole cascade on 1,000 phantoms beside the bare passes that it counted, on a classifier fine-tuned here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import process_time

import torch

import xvision
from tests.benchmarks.harness import Row, Silent, row
from xvision.attacks.cascade import Outcome, cascade, clean_of
from xvision.attacks.cases import Cases, cases_of, look
from xvision.attacks.catalogue import Effort, named
from xvision.attacks.goals import class_goal
from xvision.config import load_plan
from xvision.data.synthetic import PhantomSettings, write_phantoms
from xvision.methods.decision import Decision
from xvision.models.metered import Meter, MeteredClassifier
from xvision.models.protocols import Classifier
from xvision.training.run import finetune_plan

_LINF = tuple(levels / 255 for levels in (0.5, 1, 2, 3, 4, 6, 8, 12))
_L2 = tuple(levels / 255 for levels in (0.25, 0.5, 1, 1.5, 2, 3, 4, 6))
_PLAN = """
name = "cascade"
seed = 0
[data]
path = "phantoms"
groups = ["sex"]
[decision]
positive = "lesion"
threshold = 0.5
[model]
path = "checkpoint"
device = "cpu"
[training]
controls = false
"""


def trained(folder: Path, images: int) -> tuple[Classifier, torch.Tensor, torch.Tensor, list[str]]:
    """The demonstration's classifier and phantoms that it was not trained on: pixels, labels and ids."""
    write_phantoms(PhantomSettings(n=3000, seed=0), folder / "phantoms")
    (folder / "plan.toml").write_text(_PLAN, encoding="utf-8")
    finetune_plan(load_plan(folder / "plan.toml"), console=Silent(), resume=True)
    model = xvision.load_model(folder / "checkpoint", device="cpu")
    write_phantoms(PhantomSettings(n=images, seed=99), folder / "fresh")
    data = xvision.load_data(folder / "fresh")
    ids = [str(name) for name in data.table.index]
    labels = torch.from_numpy(data.label_codes(model.classes).copy())
    return model, torch.from_numpy(data.pixels(ids, model.input).copy()), labels, ids


def whole_rows(images: int) -> Iterator[Row]:
    """L∞ and L2, eight budgets each, the standard cascade with its standard effort."""
    with tempfile.TemporaryDirectory() as place:
        inner, pixels, labels, ids = trained(Path(place), images)
    meter = Meter()
    model = MeteredClassifier(inner, meter)
    goal = class_goal(labels, len(model.classes), Decision(1, 0.5, True))
    cases = cases_of(model.logits, pixels, goal, keys=ids, seed=0)
    forward, backward = _bare(cases, 64)
    spent, passed, words = 0.0, 0.0, []
    for norm, ladder in (("linf", _LINF), ("l2", _L2)):
        meter.forward = meter.backward = 0
        started = process_time()
        outcome = _attacked(cases, norm, ladder)
        spent += process_time() - started
        passed += (meter.forward - meter.backward) * forward + meter.backward * backward
        standing = [int((outcome.attacked & (outcome.smallest > epsilon + 1e-6)).sum()) for epsilon in ladder]
        words.append(f"{norm}: {meter.forward} forward, {meter.backward} backward, standing {standing} of {images}")
    again = _bare(cases, 64)
    passed *= (again[1] / backward + 1) / 2
    yield row(
        f"cascade on {images} phantoms, 2 norms, 8 budgets: CPU time over its bare passes", round(spent / passed, 3), "≤ 1.2",
        spent <= 1.2 * passed, f"{spent:.0f} against {passed:.0f} CPU-s; {'; '.join(words)}",
    )  # fmt: skip


def _attacked(cases: Cases, norm: str, ladder: tuple[float, ...]) -> Outcome:
    clean = clean_of(cases, width=64, gradients=True)
    attacks = [each for each in named(()) if each.refuse(norm, 1, gradients=True) is None]
    return cascade(cases, norm, ladder, attacks, Effort(), clean)


def _bare(cases: Cases, batch: int) -> tuple[float, float]:
    """CPU seconds of an image forward, and of one forward and backward, in batches of ``batch``; medians of ten."""
    part = cases.rows(torch.arange(min(batch, len(cases))))
    times: list[list[float]] = [[], []]
    for _ in range(10):
        for place, loss in enumerate((None, "margin")):
            started = process_time()
            look(part, part.pixels, loss)
            times[place].append((process_time() - started) / len(part))
    return sorted(times[0])[5], sorted(times[1])[5]
