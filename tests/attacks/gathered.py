"""Evidence about an honest model, to be changed in one thing at a time."""

from __future__ import annotations

import numpy as np

from xvision.attacks.check_table import Check
from xvision.attacks.checks import Evidence, examine

N = 40


def first(count: int, of: int = N) -> np.ndarray:
    return np.arange(of) < count


def last(count: int, of: int = N) -> np.ndarray:
    return np.arange(of) >= of - count


NONE, ALL = first(0), first(N)


def evidence(**changes: object) -> Evidence:
    """Everything gathered about an honest model, of which half the cases fall, except for what is changed."""
    half = first(N // 2)
    climb = np.minimum(np.arange(50) / 30, 1.0)[None, :].repeat(N, axis=0)
    honest: dict[str, object] = {
        "noise": first(2), "single_step": first(15), "pgd": half, "white_box": half, "black_box": first(18), "transfer": first(8),
        "cross_entropy": half, "margin": half, "longer": half, "restarted": half,
        "unbounded": ALL, "half": ALL, "grey": first(20), "curve": np.stack([first(5), first(20), first(38)], axis=1),
        "paths": climb, "path_broken": half, "silent": NONE, "found": half, "held": half, "ways": 1, "met_nonfinite": NONE,
        "zero_slope": NONE, "tiny_slope": NONE, "cross_entropy_zero": NONE, "nonfinite": NONE, "cut": NONE,
        "logits": np.linspace(-3, 3, 2 * N).reshape(N, 2), "spread": np.zeros(N), "changed": NONE,
        "change": np.full(N, 0.3), "unexplained": np.full(N, 0.01), "reachable": ALL, "still": NONE,
        "company": np.full(N, 1e-6), "training": NONE, "dynamic": NONE,
        "along_slope": np.ones(N), "at_random": np.zeros(N), "cosine": np.full(N, 0.999), "double": ALL,
        "within": first(16, 30), "reached": first(16, 30),
    }  # fmt: skip
    return Evidence(**{**honest, **changes})


def of(id_: str, evidence: Evidence) -> Check:
    return next(check for check in examine(evidence) if check.id == id_)
