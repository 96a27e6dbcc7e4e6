"""A record of a training with every part, for the tests of what reads one."""

from __future__ import annotations

from dataclasses import replace

from xvision.models.evidence import (
    BeforeAfter,
    Blind,
    Change,
    Control,
    ControlTable,
    Evaluation,
    Figure,
    SiteMatrix,
    TrainingEvidence,
    WorstGroup,
)

CURVE = (
    '{"event": "steps", "epoch": 1, "step": 10, "loss": 0.7, "learning_rate": 0.001}\n'
    '{"event": "steps", "epoch": 1, "step": 20, "loss": 0.6}\n'
    '{"event": "epoch", "epoch": 1, "step": 20, "auroc": 0.7, "reason": null, "accuracy": 0.6, "loss": 0.6}\n'
    '{"event": "steps", "epoch": 2, "step": 40, "loss": 0.4}\n'
    '{"event": "epoch", "epoch": 2, "step": 40, "auroc": null, "reason": "one class", "accuracy": 0.7, "loss": 0.5}\n'
    '{"event": "something new"}\n'
)
MISSING = Figure(None, None, None, 0, "", "one class only")


def figure(value: float, half: float = 0.03, n: int = 120) -> Figure:
    return Figure(value, value - half, value + half, n, "DeLong")


def evaluation(value: float) -> Evaluation:
    return Evaluation(figure(value), figure(value - 0.05), figure(value - 0.06), 150)


def evidence(fingerprint: str) -> TrainingEvidence:
    """A model whose body adds, whose trained weights do not, and which forgot site A."""
    controls = ControlTable(
        figure(0.95),
        figure(0.90),
        (
            Control("majority class", figure(0.5, 0.1), figure(0.55), Change("accuracy", figure(0.35, 0.05))),
            Control("pixel logistic regression", figure(0.8), figure(0.7), Change("auroc", figure(0.15)), 1025),
            Control("stem only", figure(0.7), figure(0.65), Change("auroc", figure(0.25)), 2050),
            Control("frozen random body", figure(0.95), figure(0.9), Change("auroc", figure(0.0, 0.01)), 2434),
        ),
    )
    sites = SiteMatrix(
        "site",
        ("before", "after"),
        ("A", "B"),
        ((evaluation(0.95), evaluation(0.7)), (evaluation(0.8), evaluation(0.9))),
        (Change("auroc", figure(-0.15)), Change("auroc", figure(0.2))),
    )
    test = replace(evaluation(0.95), worst_group=WorstGroup("sex", "F", "auroc", figure(0.88, 0.06, 40), 2))
    return TrainingEvidence(
        fingerprint,
        ("normal", "lesion"),
        "random weights",
        "full",
        (
            BeforeAfter("validation", evaluation(0.93), evaluation(0.51), Change("auroc", figure(0.42, 0.08))),
            BeforeAfter("test", test, evaluation(0.5), Change("auroc", figure(0.45, 0.08))),
        ),
        controls,
        (sites,),
        Blind(figure(0.9), figure(0.52, 0.09), 0.5, figure(0.38, 0.1)),
        ("the loss rose in the last epoch",),
    )
