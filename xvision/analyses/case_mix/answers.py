"""What was answered about each column, what is asked, and which steps follow from that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from xvision.audit import Audit
from xvision.errors import ConfigError, nearest
from xvision.methods.composition import Association, association
from xvision.methods.groups.case_mix import Step
from xvision.methods.groups.cases import UNKNOWN

Answer = Literal["confounder", "mediator", ""]
_DIFFERS = 0.05


class Named(NamedTuple):
    """A step and its name. kind: part of the main figures, or shown beside them. column: what this step adds."""

    step: Step
    adjusted: str
    kind: Literal["main", "mediator", "what if"]
    column: str = ""


@dataclass(frozen=True)
class Question:
    """How different the mix of ``other`` is between groups of ``column``, and what the plan answers."""

    column: str
    other: str
    answer: Answer
    mix: Association

    @property
    def differs(self) -> bool:
        return self.mix.p is not None and self.mix.p < _DIFFERS

    @property
    def open(self) -> bool:
        return self.differs and not self.answer

    @property
    def words(self) -> str:
        """The open question, or what follows from the answer."""
        if self.answer == "confounder":
            return "Evened out: gaps are compared at the same mix."
        if self.answer == "mediator":
            return "Not evened out: it would hide harm that comes about through it."
        if self.mix.p is None:
            return f"Cannot be asked: {self.mix.strength.reason or 'the mix could not be compared'}."
        if not self.differs:
            return "No difference in mix is seen, which does not show that there is none."
        return (
            f"Do groups of {self.column} differ in {self.other} for a reason apart from {self.column} (confounder)"
            f" or because of it (mediator)? Answer in [fairness.case_mix]."
        )


def checked_answers(audit: Audit) -> None:
    """Raises ConfigError for a column of the plan that the data do not have."""
    known = {*audit.groups, *audit.acquisition, *audit.data.groups}
    for name in audit.fairness.case_mix:
        if name not in known:
            raise ConfigError(f"fairness.case_mix: the data have no column {name!r}. {nearest(name, known)}")


def others(audit: Audit, column: str) -> list[str]:
    """Columns whose mix may differ between groups: those of the plan first, in its order."""
    names = dict.fromkeys((*audit.fairness.case_mix, *audit.groups, *audit.acquisition))
    return [name for name in names if name != column]


def named_steps(audit: Audit, column: str) -> list[Named]:
    """As found, at the same prevalence, then confounder after confounder; beside them mediators and unanswered columns."""
    answers = audit.fairness.case_mix
    found = [
        Named(Step(None), "none", "main"),
        Named(Step(np.full(len(audit.ids), "")), "prevalence", "main"),
    ]
    held: list[str] = []
    for name in others(audit, column):
        if answers.get(name) == "confounder":
            held.append(name)
            found.append(Named(Step(_crossed(audit, held), len(found) - 1), " + ".join(held), "main", name))
    last = len(found) - 1
    for name in others(audit, column):
        if answers.get(name) != "confounder":
            step = Step(_crossed(audit, [*held, name]), last)
            kind: Literal["mediator", "what if"] = "mediator" if name in answers else "what if"
            found.append(Named(step, " + ".join([*held, name]), kind, name))
    return found


def questions(audit: Audit, column: str, permutations: int) -> Iterator[Question]:
    """One for every other column, among cases whose group is known."""
    levels = audit.column(column)
    known = levels != UNKNOWN
    for name in others(audit, column):
        mix = association(
            levels[known], audit.column(name)[known], audit.patients[known],
            rng=audit.rng(f"mix {column} {name}"), permutations=permutations,
        )  # fmt: skip
        yield Question(column, name, audit.fairness.case_mix.get(name, ""), mix)


def _crossed(audit: Audit, names: list[str]) -> np.ndarray:
    """(N,) strata of several columns."""
    codes = np.stack([np.unique(audit.column(name), return_inverse=True)[1] for name in names])
    return np.asarray(np.unique(codes, axis=1, return_inverse=True)[1].astype(str))
