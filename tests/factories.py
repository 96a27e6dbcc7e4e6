"""Small complete run folders for the tests of what reads them, written through the real store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from xvision import images
from xvision.charts import Axis, Bars, Forest, HeatMap, Images, Lines, Mark, Reference, Series, Table
from xvision.result import Case, Check, Finding, Group, Judgement, MapVerdict, Metric, Record, Result, RunInfo
from xvision.store import Writer

HOSTILE = "#panic() $x$ [a](http://evil.example/p.png) <script>x</script> ![t](http://evil.example/q.png)\t\x00\u200b\ufeff 😀 ไทย =1+1"


def run_info(label: str = "lesion") -> RunInfo:
    return RunInfo(
        name=f"factory {label}",
        status="complete",
        plan={"name": "factory", "seed": 0, "analysis": {"calibration": {"bins": 10}}},
        command="xvision audit plan.toml --out run",
        seed=0,
        classes=("normal", label),
        decision={"kind": "threshold", "positive": label, "threshold": 0.5, "declared": False},
        split="test",
        cases=120,
        patients=60,
        patients_declared=True,
        groups=("sex",),
        acquisition=("site",),
        composition=(
            Group("sex", "F", 70, 35, {"normal": 40, label: 30}),
            Group("sex", "unknown", 50, 25, {"normal": 50, label: 0}),
        ),
        checks=(
            Check("labels", "ok", "All labels are classes of the model."),
            Check("range", "warning", f"3 images are dark: {label}"),
        ),
        model={
            "architecture": "LlmImageClassifier",
            "backbone": "qwen3",
            "parameters": 128_002,
            "input": "1 × 64 × 64",
        },
        fingerprints={"model": "a" * 64, "data": "b" * 64, "preprocessing": "c" * 64},
        versions={"xvision": "0.1.0", "torch": "2.13.0"},
        hardware={"device": "cpu", "cores": 2},
        git={"commit": "0" * 40, "dirty": False},
        started="2026-01-02T03:04:05+00:00",
        finished="2026-01-02T03:05:05+00:00",
        seconds=60.0,
        forward=1000,
        backward=500,
        showcase=("case-1", "case-2"),
    )


def _record(analysis: str, title: str, pillar: str) -> Record:
    question = f"What does {title.lower()} say?"
    return Record(
        analysis,
        title,
        pillar,
        question,
        "ok",
        "k" * 64,
        {"bins": 10},
        1.5,
        reference=f"{question}\n\nIt means this, not that.",
    )


def performance(label: str) -> Result:
    metrics = (
        Metric("auroc", 0.91, 0.86, 0.95, n=60, better="higher", interval="DeLong"),
        Metric("sensitivity", 0.82, 0.70, 0.90, n=30, better="higher", where={"threshold": 0.5}, interval="Wilson"),
        Metric("cases", 120, n=60, unit="count"),
        Metric("sensitivity", None, better="higher", where={"sex": label}, reason="no positive cases"),
    )
    roc = Lines(
        title=f"ROC curve of {label}",
        alt="The curve rises to 0.9 sensitivity at 0.2 false positive rate.",
        x=Axis("False positive rate", low=0, high=1),
        y=Axis("Sensitivity", low=0, high=1),
        series=(
            Series(label, (0.0, 0.2, 1.0), (0.0, 0.9, 1.0), (0.0, 0.8, 1.0), (0.0, 0.95, 1.0)),
            Series("gap", (0.0, 0.5, 1.0), (0.1, None, 0.9)),
        ),
        references=(Reference("agreed", 0.8),),
        diagonal="chance",
    )
    matrix = HeatMap(
        "Confusion matrix",
        "Most cases are on the diagonal.",
        ("normal", label),
        ("normal", label),
        ((50.0, 10.0), (5.0, None)),
        "Predicted",
        "True",
        better="higher",
    )
    scores = Bars(
        "Scores",
        "Scores separate.",
        ("0 to 0.5", "0.5 to 1"),
        Axis("Cases"),
        {"normal": (50.0, 10.0), label: (5.0, 55.0)},
        Axis("Score"),
    )
    return Result(
        f"AUROC 0.910 for {label}.",
        metrics,
        (roc, matrix, scores),
        caveats=("Few positives.", f"A caveat about {label}."),
    )


def methods(label: str) -> dict[str, MapVerdict | None]:
    """Methods of the run's maps, one for each verdict; the last was tested by nobody, one has a hostile name."""
    return {
        "integrated gradients": MapVerdict("describes the model", "Similarity with random weights is 0.050."),
        "saliency": MapVerdict("fails randomisation", f"Similarity with random weights is 0.970 for {label}."),
        "rollout": MapVerdict("no better than a control", "Deletion is 0.510, that of random maps is 0.500."),
        f"occlusion of {label}".replace("\x00", ""): MapVerdict("not decided", "The interval holds both."),
        "map": None,
    }


def explanation(label: str) -> Result:
    """Two cases with a map of each method: evidence for (4 × 4 pixels) and, left of it, against (3 × 2 pixels)."""
    rng = np.random.default_rng(0)
    known, cases = methods(label), []
    mask = np.zeros((16, 16), dtype=bool)
    mask[8:14, 8:15] = True
    for name in ("case-1", "case-2"):
        pixels = rng.random((1, 16, 16))
        planted = np.zeros((16, 16))
        planted[9:13, 10:14], planted[2:5, 3:5] = 1.0, -1.0
        maps = {method: planted if place == 0 else rng.normal(size=(16, 16)) for place, method in enumerate(known)}
        maps["saliency"] = np.abs(maps["saliency"])
        pictures = {"image": images.photograph(pixels)}
        pictures |= {key: images.overlay(pixels, values, signed=key != "saliency") for key, values in maps.items()}
        shown = {key: images.enlarged(picture, 96) for key, picture in pictures.items()}
        extra = {"mask": mask, "pixels": pixels[0]} if name == "case-1" else {"mask": mask}
        cases.append(Case(name, {"label": label, "predicted": "normal", "score": 0.25}, shown, maps | extra))
    grid = Images("Where it looks", "Two cases with maps.", ("case-1", "case-2"), ("image", *reversed(known)))
    metrics = (Metric("completeness_gap", 0.01, 0.0, 0.02, n=2, better="lower", interval="patient bootstrap"),)
    table = Table(
        "Methods", "One row per method.", ("Method", "Mass", "Note"), ((label, 0.25, None), ("saliency", 0.5, "x"))
    )
    return Result(
        "Maps are drawn.",
        metrics,
        (grid, table),
        tuple(cases),
        {"attribution": pd.DataFrame({"id": ["case-1"], "gap": [0.01]})},
        map_verdicts={method: verdict for method, verdict in known.items() if verdict is not None},
    )


def _told(result: Result, tested: bool) -> Result:
    return result if tested else replace(result, map_verdicts={})


def fairness(label: str) -> Result:
    marks = (Mark("F", 0.8, 0.7, 0.9, "n = 30"), Mark(label, None, note="not estimable (no positive cases)"))
    forest = Forest(
        "Sensitivity by sex", "F 0.8.", Axis("Sensitivity", low=0, high=1), marks, (Reference("all", 0.82, "x"),)
    )
    return Result(
        "One group cannot be judged.",
        (Metric("sensitivity", 0.8, 0.7, 0.9, n=30, where={"sex": "F"}, interval="Wilson"),),
        (forest,),
    )


def write_run(
    folder: Path, *, label: str = "lesion", status: str = "complete", judged: bool = True, tested: bool = True
) -> Path:
    """A run with every chart kind, a skipped and a failed analysis, one finding of each verdict.

    tested: whether the methods whose maps it holds were, with each verdict there is.
    """
    writer = Writer(folder)
    with writer.locked():
        writer.info(replace(run_info(label), status=status))
        rows = {
            "id": ["case-1", "case-2"],
            "patient": ["p1", "p2"],
            "split": ["test", "test"],
            "label": ["normal", label],
            "decision": ["normal", "normal"],
            "prob:normal": [0.9, 0.75],
            f"prob:{label}": [0.1, 0.25],
            "sex": ["F", "unknown"],
            "site": ["A", label],
        }
        writer.table("predictions", pd.DataFrame(rows))
        writer.result(_record("performance", "Performance", "Performance"), performance(label))
        writer.result(_record("attribution", "Attribution", "Explanation"), _told(explanation(label), tested))
        writer.result(_record("fairness", "Fairness", "Fairness"), fairness(label))
        writer.record(
            replace(
                _record("attention", "Attention", "Explanation"),
                status="skipped",
                reason=f"The model has no attention: {label}",
            )
        )
        writer.record(
            replace(
                _record("corruption", "Corruption", "Shift"),
                status="failed",
                reason="ValueError: boom",
                traceback="Traceback …\nValueError: boom",
            )
        )
        writer.log({"time": "2026-01-02T03:04:05+00:00", "event": "started"})
        if judged:
            writer.judgement(Judgement("fail", _findings(label), {"criterion": []}, "d" * 64, True))
        writer.checksums()
    return folder


def _findings(label: str) -> tuple[Finding, ...]:
    """One of each verdict."""
    evidence = (Metric("auroc", 0.91, 0.86, 0.95, n=60, better="higher", interval="DeLong"),)
    return tuple(
        Finding(
            verdict, f"{label} {verdict}", verdict, "major", "performance", f"AUROC of {label} is 0.910.",
            "auroc at least 0.85", "Agreed.", evidence, "xvision audit plan.toml --only performance",
        )
        for verdict in ("fail", "warn", "insufficient evidence", "pass")
    )  # fmt: skip
