"""Few labels on chest phantoms with a trained classifier: planted label errors found, errors queued, promises kept.

The classifier is trained on clean labels at one seed and asked about phantoms of other seeds, where the truth is known. One
more is trained on labels of which 5.5 % are wrong, and asked about these very labels: the harder and commoner case.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from xvision.config import DataPlan, DecisionPlan, ModelPlan, Plan
from xvision.data.synthetic import PhantomSettings, phantom_dataset
from xvision.engine import Engine
from xvision.methods.label_issues import LabelIssues, out_of_fold, rank_label_issues, second_opinion
from xvision.methods.review import errors_found, group_mix, review_order, uncertainty
from xvision.models.open import load_model
from xvision.recipe import TrainingPlan
from xvision.review.pseudo import choose
from xvision.review.scores import Scored, question_of, score
from xvision.training.run import finetune_data

CASES, FLIPS, QUEUE, PRECISION = 2000, 110, 100, 0.95
FAINT = PhantomSettings(contrast=0.6, contrast_gap=0.45)
"""Lesions are fainter in women, so errors and uncertain cases gather there."""


class _Quiet:
    """A console that shows nothing."""

    def update(self, title: str, done: float, total: float, note: str = "") -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def say(self, sentence: str) -> None:
        """Nothing."""


def rows(quick: bool) -> list[dict[str, Any]]:
    """Quick leaves out the classifier that is trained on wrong labels."""
    torch.set_num_threads(1)
    settings = replace(FAINT, n=3750, fractions=(0.8, 0.1, 0.1))
    noisy = replace(settings, label_noise=FLIPS / CASES)
    with TemporaryDirectory() as folder:
        clean = _scored(settings, Path(folder) / "clean", _apart(1))
        waiting = _again(Path(folder) / "clean", _apart(2))
        fainter = _again(Path(folder) / "clean", replace(_apart(3), contrast_gap=0.6))
        own = [] if quick else _own_labels(_scored(noisy, Path(folder) / "noisy", noisy, split="train"), noisy)
    return [*_flips(clean), *own, *_errors(clean), *_mix(fainter), *_pseudo(clean, waiting)]


def _apart(seed: int) -> PhantomSettings:
    """Patients of their own, half of them "validation" and half "test"."""
    return replace(FAINT, n=CASES, seed=100 + seed, fractions=(0.0, 0.5, 0.5))


def _scored(trained: PhantomSettings, folder: Path, asked: PhantomSettings, split: str | None = None) -> Scored:
    training = TrainingPlan(controls=False)
    plan = Plan(DataPlan("phantoms"), ModelPlan("given"), decision=DecisionPlan("lesion", 0.5), training=training)
    finetune_data(phantom_dataset(trained), plan, folder, console=_Quiet())
    return _again(folder, asked, split)


def _again(folder: Path, asked: PhantomSettings, split: str | None = None) -> Scored:
    model, data = load_model(folder, device="cpu"), phantom_dataset(asked)
    # Phantoms of two seeds are different patients of the same names.
    data = replace(data, table=data.table.assign(patient=[f"{asked.seed}/{name}" for name in data.table["patient"]]))
    question = question_of(model, DecisionPlan("lesion", 0.5))
    return score(model, data.split(split) if split else data, question, Engine(part=128), seed=0, embed=True)


def _ranked(scored: Scored, labels: np.ndarray) -> tuple[LabelIssues, np.ndarray]:
    """The ranking, and the probabilities that it was made from."""
    if scored.embeddings is None:
        raise TypeError("the classifier of the benchmark has embeddings")
    held = out_of_fold(scored.embeddings, labels, scored.patients, classes=scored.question.classes)
    return rank_label_issues(
        held.probabilities, labels, scored.patients, rng=np.random.default_rng(0)
    ), held.probabilities


def _flips(scored: Scored) -> list[dict[str, Any]]:
    flipped = np.zeros(CASES, bool)
    flipped[np.random.default_rng(0).choice(CASES, FLIPS, replace=False)] = True
    labels = np.where(flipped, 1 - scored.labels, scored.labels)
    found, probabilities = _ranked(scored, labels)
    how = (
        f"{CASES} phantoms of new patients, {FLIPS} labels flipped, embeddings of a classifier trained on clean labels"
    )
    top, wide = float(flipped[found.order[:100]].mean()), float(flipped[found.order[:200]].sum() / FLIPS)
    low, high = found.share.low or 0.0, found.share.high or 0.0
    theirs = second_opinion(probabilities, labels)
    theirs_right, theirs_found = flipped[theirs].mean(), flipped[theirs].sum() / FLIPS
    return [
        _row("label issues: precision of the first 100", top, "≥ 0.75", top >= 0.75, how),
        _row("label issues: recall of the first 200", wide, "≥ 0.9", wide >= 0.9, how),
        _row(
            "label issues: estimated share of wrong labels", found.share.value, f"reported; planted {FLIPS / CASES:g}", True,
            f"{low:.3f} to {high:.3f}; it counts confident mistakes of the model too; {how}",
        ),
        _row(
            "label issues: cleanlab on the same probabilities, precision", float(theirs_right), "reported", True,
            f"{int(theirs.sum())} flagged, recall {theirs_found:.2f}; {how}",
        ),
    ]  # fmt: skip


def _own_labels(scored: Scored, settings: PhantomSettings) -> list[dict[str, Any]]:
    clean = phantom_dataset(replace(settings, label_noise=0.0)).split("train")
    flipped = scored.labels != clean.label_codes(scored.question.classes)
    found, _ = _ranked(scored, scored.labels)
    count = int(flipped.sum())
    right = float(flipped[found.order[:count]].mean())
    how = f"{len(flipped)} training images, {count} wrong labels, embeddings of the classifier trained on them"
    return [
        _row(
            "label issues: precision at the number planted, labels the model trained on",
            right,
            "≥ 0.5",
            right >= 0.5,
            how,
        )
    ]


def _errors(scored: Scored) -> list[dict[str, Any]]:
    doubt, wrong = uncertainty(scored.logits, scored.question.decision), scored.decisions != scored.labels
    found = errors_found(wrong, review_order(doubt, scored.patients, QUEUE), scored.patients)
    share, chance = found.found.value or 0.0, found.by_chance
    how = (
        f"{share:.3f}, interval {found.found.low or 0:.2f} to {found.found.high or 0:.2f}, in the first {QUEUE} of {CASES}; "
        f"{found.errors} errors, rate {found.inside.value or 0:.3f} inside and {found.outside.value or 0:.3f} outside"
    )
    return [_row("queue: share of all errors in it, over chance", share / chance, "≥ 4", share / chance >= 4, how)]


def _mix(scored: Scored) -> list[dict[str, Any]]:
    """On patients in whom the gap is wider than in training."""
    doubt, sex = uncertainty(scored.logits, scored.question.decision), scored.column("sex")
    plain = review_order(doubt, scored.patients, 2 * QUEUE)
    even = review_order(doubt, scored.patients, 2 * QUEUE, strata=sex)
    women, fair = (
        next(share for share in group_mix({"sex": sex}, chosen, scored.patients) if share.level == "F")
        for chosen in (plain, even)
    )
    gap = abs((fair.queue.value or 0.0) - (fair.everyone.value or 0.0))
    how = f"interval {women.queue.low or 0:.3f} to {women.queue.high or 0:.3f}; {women.everyone.value or 0:.3f} of all cases"
    check = f"queue: share of women in the first {2 * QUEUE}, whose lesions are fainter"
    return [
        _row(check, women.queue.value, "named as over-represented", women.side == "more", how),
        _row(
            "queue stratified by sex: distance from the mix of the data", gap, "≤ 0.005", gap <= 0.5 / QUEUE, "absolute"
        ),
    ]


def _pseudo(known: Scored, asked: Scored) -> list[dict[str, Any]]:
    chosen = choose(known, asked, precision=PRECISION, column="sex")
    right = (asked.decisions == asked.labels)[chosen.chosen]
    found = []
    for (group, name), floor in sorted(chosen.floors.items()):
        code = asked.question.classes.index(name)
        member = (asked.column("sex") == group)[chosen.chosen] & (asked.decisions == code)[chosen.chosen]
        precision = float(right[member].mean()) if member.any() else None
        how = f"{int(member.sum())} pseudo-labels of {CASES} new phantoms; " + (
            floor.reason or f"floor {floor.value:.3f} from {floor.cases} labelled cases of {floor.patients} patients"
        )
        holds = precision is None or precision >= PRECISION - 0.01  # the sample's own chance
        found.append(
            _row(
                f"pseudo-labels: precision for {group}, {name}", precision, f"≥ {PRECISION:g} or none made", holds, how
            )
        )
    everyone = float((asked.decisions == asked.labels).mean())
    share = len(chosen.chosen) / CASES
    found.append(
        _row(
            "pseudo-labels: share of cases that get one",
            share,
            "≥ 0.3",
            share >= 0.3,
            f"accuracy without floors {everyone:.3f}",
        )
    )
    return found


def _row(check: str, figure: float | None, target: str, holds: bool, how: str) -> dict[str, Any]:
    return {"check": check, "figure": figure, "target": target, "holds": bool(holds), "how": how}
