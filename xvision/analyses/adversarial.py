"""How little must change to change the decision."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import torch

from xvision import images, text
from xvision.audit import Audit, metric
from xvision.charts import Axis, Chart, Images, Lines, Series, Table
from xvision.engine import Batch, Rows
from xvision.errors import ConfigError
from xvision.methods.attacks import linf_attack
from xvision.methods.decision import Decision, shifted_logits
from xvision.methods.intervals import proportion
from xvision.methods.masking import MaskingCheck, masking_checks, warning_signs
from xvision.registry import analysis
from xvision.result import Case, Metric, Result, Where, spoken

_NORM = "linf"
_SIGNS = ("clean_correct", "zero_gradient", "nonfinite", "unconfirmed", "missed_grey")


@analysis(
    "Adversarial",
    pillar="Robustness",
    need="gradients",
    passes="at most (steps + 16) × epsilons forward, (steps + 2) × epsilons backward",
)
def adversarial(
    audit: Audit,
    *,
    cases: int = 200,
    epsilons: tuple[float, ...] = (0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255),
    steps: int = 20,
) -> Result:
    """How small a change of the pixels changes the decision?

    Fast gradient sign and projected gradient descent (Goodfellow 2015; Madry 2018) inside an L∞ ball of epsilon around the image,
    against the deployed decision, full knowledge of the model. ``robust_accuracy`` is the share of all cases that are right and were
    not broken by these attacks at this epsilon: stronger attacks can only lower it, so it is an upper bound, never a
    guarantee. ``robust_sensitivity`` and ``robust_specificity`` are the same for missed disease and false alarms. Uniform
    noise of the same size is the control: where noise does as much as the attack, the attack is not working.
    """
    if not epsilons or any(not 0 < value <= 1 for value in epsilons) or list(epsilons) != sorted(set(epsilons)):
        raise ConfigError(
            f"analysis.adversarial.epsilons is {list(epsilons)}: give ascending budgets above 0 and at most 1."
        )
    positions = audit.sample(cases)
    attack = partial(_attack, decision=audit.decision, epsilons=epsilons, steps=steps, seed=audit.seed)
    options = {"epsilons": epsilons, "steps": steps}
    rows = audit.map(attack, positions=positions, options=options)
    metrics = _metrics(audit, rows, positions, epsilons)
    checks = _checks(rows, epsilons)
    signs = warning_signs(checks)
    stored = _cases(audit, epsilons, steps, options)
    validity = (
        "No sign of gradient masking was found." if not signs else "The attack may not be working: " + " ".join(signs)
    )
    return Result(
        _summary(metrics, rows, epsilons, len(positions)) + " " + validity,
        metrics,
        _charts(metrics, rows, checks, epsilons, stored),
        stored,
        {"adversarial": _table(audit, rows, positions, epsilons)},
        caveats=(
            "These attacks give an upper bound; a stronger attack may break more. No norm but L∞ was tried.",
            *signs,
        ),
    )


def _attack(
    batch: Batch, *, decision: Decision, epsilons: tuple[float, ...], steps: int, seed: int, keep: bool = False
) -> Rows:
    def logits(pixels: torch.Tensor) -> torch.Tensor:
        return shifted_logits(batch.model.logits(pixels), decision)

    outcome = linf_attack(logits, batch.pixels, batch.labels, epsilons, steps=steps, seed=seed, keys=batch.ids)
    rows: Rows = {name: getattr(outcome, name) for name in ("broken", "smallest", *_SIGNS)}
    rows |= {f"by {name}": broken for name, broken in outcome.by.items()}
    if keep:
        rows["adversarial"] = outcome.adversarial.cpu().numpy()
    return rows


def _checks(rows: Rows, epsilons: tuple[float, ...]) -> tuple[MaskingCheck, ...]:
    return masking_checks(
        _by_attack(rows),
        epsilons,
        clean_correct=rows["clean_correct"],
        zero_gradient=rows["zero_gradient"],
        nonfinite=rows["nonfinite"],
        unconfirmed=rows["unconfirmed"],
        missed_grey=rows["missed_grey"],
    )


def _by_attack(rows: Rows) -> dict[str, np.ndarray]:
    return {name.removeprefix("by "): values for name, values in rows.items() if name.startswith("by ")}


def _metrics(audit: Audit, rows: Rows, positions: np.ndarray, epsilons: tuple[float, ...]) -> tuple[Metric, ...]:
    patients, labels = audit.patients[positions], audit.labels[positions]
    among = {"robust_accuracy": np.ones(len(labels), dtype=bool)}
    if audit.decision.positive is not None:
        among |= {"robust_sensitivity": labels == audit.positive, "robust_specificity": labels != audit.positive}
    reasons = {"robust_sensitivity": "no positive cases", "robust_specificity": "no negative cases"}
    found = []
    for place, epsilon in enumerate(epsilons):
        standing = rows["clean_correct"] & ~rows["broken"][:, place]
        where: Where = {"norm": _NORM, "epsilon": epsilon}
        for name, members in among.items():
            estimate = proportion(standing[members], patients[members])
            if estimate.value is None:
                estimate = estimate._replace(reason=reasons.get(name, estimate.reason))
            found.append(metric(name, estimate, better="higher", where=where))
    return tuple(found)


def _charts(
    metrics: tuple[Metric, ...],
    rows: Rows,
    checks: tuple[MaskingCheck, ...],
    epsilons: tuple[float, ...],
    stored: tuple[Case, ...],
) -> tuple[Chart, ...]:
    clean = float(rows["clean_correct"].mean())
    budgets = (0.0, *epsilons)
    series = []
    for name in ("robust_accuracy", "robust_sensitivity", "robust_specificity"):
        points = [item for item in metrics if item.name == name]
        if points:
            values = tuple(item.value for item in points)
            lows, highs = tuple(item.low for item in points), tuple(item.high for item in points)
            series.append(Series(text.label(name), tuple(epsilons), values, lows, highs))
    noise = _by_attack(rows).get("noise")
    if noise is not None:
        left = tuple(float((rows["clean_correct"] & ~noise[:, place]).mean()) for place in range(len(epsilons)))
        series.append(Series("accuracy under random noise (control)", budgets, (clean, *left)))
    lines = Lines(
        title="What is left under attack",
        alt=f"Accuracy is {clean:.3f} without attack and {_last(metrics):.3f} at the largest budget.",
        x=Axis("Largest change of any pixel", ticks=tuple((value, text.epsilon(value)) for value in budgets)),
        y=Axis("Share of cases", low=0, high=1),
        series=tuple(series),
    )
    grid = Images(
        title="Smallest change found that flips the decision",
        alt="One row per case: the image, its adversarial twin, and the change, magnified so that the largest fills the scale.",
        cases=tuple(case.id for case in stored),
        pictures=("image", "adversarial twin", "change, magnified"),
    )
    validity = Table(
        title="Was the attack working?",
        alt="Signs of a misled attack: how many cases show each, and whether that many is a warning.",
        columns=("Check", "Cases that show it", "Of", "Verdict"),
        rows=tuple(
            (text.label(check.name), check.found, check.of, "warning" if check.flagged else "no sign")
            for check in checks
        ),
    )
    return (lines, validity, grid) if stored else (lines, validity)


def _last(metrics: tuple[Metric, ...]) -> float:
    return [item.value or 0.0 for item in metrics if item.name == "robust_accuracy"][-1]


def _cases(audit: Audit, epsilons: tuple[float, ...], steps: int, options: dict[str, object]) -> tuple[Case, ...]:
    attack = partial(_attack, decision=audit.decision, epsilons=epsilons, steps=steps, seed=audit.seed, keep=True)
    rows = audit.map(attack, positions=audit.showcase, options={**options, "keep": True})
    stored = []
    for place, (position, pixels) in enumerate(zip(audit.showcase, audit.pixels(audit.showcase), strict=True)):
        if not np.isfinite(rows["smallest"][place]):
            continue
        twin = rows["adversarial"][place]
        pictures = {
            "image": images.photograph(pixels),
            "adversarial twin": images.photograph(twin),
            "change, magnified": images.difference(twin, pixels),
        }
        shown = {key: images.enlarged(picture) for key, picture in pictures.items()}
        facts = {**audit.facts(position), "flips at": text.epsilon(float(rows["smallest"][place]))}
        stored.append(Case(str(audit.ids[position]), facts, shown, {"adversarial pixels": twin[0]}))
    return tuple(stored)


def _table(audit: Audit, rows: Rows, positions: np.ndarray, epsilons: tuple[float, ...]) -> pd.DataFrame:
    """One row per (case, epsilon)."""
    frames = [
        pd.DataFrame(
            {
                "id": audit.ids[positions], "norm": _NORM, "epsilon": epsilon, "clean_correct": rows["clean_correct"],
                "broken": rows["broken"][:, place], **{f"broken_by_{name}": found[:, place] for name, found in _by_attack(rows).items()},
            }
        )
        for place, epsilon in enumerate(epsilons)
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def _summary(metrics: tuple[Metric, ...], rows: Rows, epsilons: tuple[float, ...], cases: int) -> str:
    right = rows["clean_correct"]
    finite = rows["smallest"][right & np.isfinite(rows["smallest"])]
    half = float(np.quantile(rows["smallest"][right], 0.5, method="higher")) if right.any() else float("inf")
    tail = (
        f"half of the right decisions flip within {text.epsilon(half)}"
        if np.isfinite(half)
        else "fewer than half of the right decisions flip"
    )
    first = metrics[0]
    return (
        f"On {text.plural(cases, 'image')}, {spoken(first)} are right and not broken by these attacks at {text.epsilon(epsilons[0])}; "
        f"{tail} ({text.plural(len(finite), 'decision')} flipped)."
    )
