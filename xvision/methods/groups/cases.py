"""Cases in groups, and what each rate is a share of. Shapes: N cases."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.intervals import binary, patient_codes

UNKNOWN = "unknown"
"""The level of cases whose group is missing: shown as a row of its own, never ranked."""

Rate = Literal["sensitivity", "specificity", "fpr", "fnr", "ppv", "npv", "selection_rate", "accuracy"]


class Definition(NamedTuple):
    """A rate is the share of ``hits`` (N,) among the cases in ``among`` (N,); cases, patients: what these are called."""

    among: np.ndarray
    hits: np.ndarray
    cases: str
    patients: str


class Cases(NamedTuple):
    """Checked inputs (N,): booleans, group names, and patients as integers from 0."""

    labels: np.ndarray
    decisions: np.ndarray
    groups: np.ndarray
    patients: np.ndarray


def definitions(labels: np.ndarray, decisions: np.ndarray) -> dict[str, Definition]:
    """Every :data:`Rate` by name, for labels and decisions (N,) as booleans."""
    everyone = np.ones_like(labels)
    return {
        "sensitivity": Definition(labels, decisions, "positive cases", "positive patients"),
        "specificity": Definition(~labels, ~decisions, "negative cases", "negative patients"),
        "fpr": Definition(~labels, decisions, "negative cases", "negative patients"),
        "fnr": Definition(labels, ~decisions, "positive cases", "positive patients"),
        "ppv": Definition(decisions, labels, "positive decisions", "patients with a positive decision"),
        "npv": Definition(~decisions, ~labels, "negative decisions", "patients with a negative decision"),
        "selection_rate": Definition(everyone, decisions, "cases", "patients"),
        "accuracy": Definition(everyone, decisions == labels, "cases", "patients"),
    }


def checked_cases(labels: np.ndarray, decisions: np.ndarray, groups: np.ndarray, patients: np.ndarray) -> Cases:
    """Inputs (N,) ready for counting. Raises DataError when one is of another length or a group is missing."""
    truth, decided, named = binary(labels, "labels"), binary(decisions, "decisions"), np.asarray(groups)
    if not truth.shape == decided.shape == named.shape:
        raise DataError(
            f"{len(truth)} labels came with {len(decided)} decisions, {len(named)} groups; give one per case"
        )
    missing = sum(value is None or value != value for value in named.tolist())
    if missing:
        raise DataError(f"{missing} of {len(named)} group values are missing; write them as {UNKNOWN!r}")
    return Cases(truth, decided, named.astype(str), patient_codes(patients, len(truth))[0])


def too_few(labels: np.ndarray, patients: np.ndarray, minimum: int) -> str | None:
    """Why nothing can be said that needs both labels (N,), booleans: one with fewer patients than that, or with none."""
    for side, noun in ((labels, "positive"), (~labels, "negative")):
        if len(np.unique(patients[side])) < max(minimum, 1):
            return f"fewer than {max(minimum, 1)} {noun} patients"
    return None


def known_levels(groups: np.ndarray) -> list[str]:
    """Names of the groups (N,) without ``"unknown"``, sorted."""
    return [str(level) for level in np.unique(groups) if level != UNKNOWN]


def largest_levels(groups: np.ndarray) -> list[str]:
    """Names of the groups (N,) without ``"unknown"``, those with most cases first."""
    names, sizes = np.unique(groups[groups != UNKNOWN], return_counts=True)
    return [str(name) for name in names[np.argsort(-sizes, kind="stable")]]


def all_levels(groups: np.ndarray) -> list[str]:
    """Names of the groups (N,), sorted, and ``"unknown"`` last where there is any."""
    return [*known_levels(groups), *[UNKNOWN] * bool((groups == UNKNOWN).any())]
