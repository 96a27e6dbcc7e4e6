"""How little must change to change the decision."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from xvision import images, text
from xvision.attacks.balls import NORMS, Norm, unit
from xvision.attacks.catalogue import ATTACKS
from xvision.attacks.checks import CAVEAT, Verdict
from xvision.attacks.evidence import Attacked, AttackPlan, attack_rows, attacked, plan_of
from xvision.attacks.validity import examined_norm
from xvision.audit import Audit, metric
from xvision.charts import Axis, Chart, Images, Lines, Reference, Series, Table
from xvision.methods.intervals import Estimate, not_estimable, proportion
from xvision.registry import analysis
from xvision.result import Case, Metric, Result, Where, spoken

_SHARES = (0.1, 0.5)
"""Of the right decisions: the budgets that flip them are reported."""
_SPOKEN = {
    "linf": "the largest change of any pixel",
    "l2": "the root mean square change",
    "l1": "the mean absolute change",
    "l0": "the share of pixel values changed",
}


@analysis(
    "Adversarial",
    pillar="Robustness",
    need="pixels",
    passes="per norm at most about 400 forward and 300 backward for an undefended model, steps × 4 + queries for a case that stands",
)
def adversarial(
    audit: Audit,
    *,
    cases: int = 200,
    norms: tuple[str, ...] = ("linf", "l2"),
    epsilons: tuple[float, ...] = (0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255),
    l2_epsilons: tuple[float, ...] = (0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255),
    l1_epsilons: tuple[float, ...] = (0.05 / 255, 0.1 / 255, 0.25 / 255, 0.5 / 255, 1 / 255),
    l0_epsilons: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02),
    attacks: tuple[str, ...] = (),
    steps: int = 100,
    restarts: int = 1,
    queries: int = 1000,
    decision_queries: int = 1000,
    examined: int = 30,
    model_draws: int = 1,
    surrogate: str = "",
    borrow_gradient: bool = False,
    agreed_epsilon: float | None = None,
    agreed_accuracy: float | None = None,
    minutes: float | None = None,
) -> Result:
    """How small a change of the pixels changes the decision?

    A cascade of attacks on the deployed decision, cheapest first, in one norm after the other: chance, one gradient step
    (Goodfellow 2015), PGD on the margin (Madry 2018), APGD and FAB (Croce and Hein 2020), Square (Andriushchenko 2020);
    each meets only what those before it left. Epsilon is in [0, 1] and does not depend on the image's size: the largest
    change of any pixel (L∞), the root mean square change (L2), the mean absolute change (L1), the share of pixel values
    changed (L0).

    ``robust_accuracy`` is the share of all cases that are right and were not broken by these attacks at this epsilon, the
    worst of all attacks case by case: a stronger attack can only lower it, so it is an upper bound, never a guarantee.
    ``robust_sensitivity`` and ``robust_specificity`` are the same for cases of the positive class and for the others.
    ``flipping_epsilon`` is the smallest budget that flips a share of the right decisions. No such figure is given where
    the attack was not working, and where that is in doubt its interval reaches down to 0.

    Options: model_draws, of a random model, averaged over and judged by a majority. surrogate: the checkpoint of a similar
    model, whose examples are tried on this one; borrow_gradient: its gradients are used where this one hides its own.
    agreed_epsilon, agreed_accuracy: stop as soon as the robust accuracy at that epsilon of the first norm is decided,
    with intervals widened for having looked several times. minutes: per norm, after which no new part of the cases is
    begun; the figures are then of fewer cases.
    """
    plan = plan_of(
        {
            "cases": cases, "norms": norms, "epsilons": epsilons, "l2_epsilons": l2_epsilons, "l1_epsilons": l1_epsilons,
            "l0_epsilons": l0_epsilons, "attacks": attacks, "steps": steps, "restarts": restarts, "queries": queries,
            "decision_queries": decision_queries,
            "agreed_epsilon": agreed_epsilon, "agreed_accuracy": agreed_accuracy, "examined": examined, "minutes": minutes,
            "model_draws": model_draws, "surrogate": surrogate, "borrow_gradient": borrow_gradient,
        },
        width=audit.engine.part,
    )  # fmt: skip
    return _result(audit, plan)


def _result(audit: Audit, plan: AttackPlan) -> Result:
    found = [
        _Norm(audit, each, examined_norm(audit, plan, each).verdict)
        for each in (attacked(audit, plan, norm) for norm in plan.epsilons)
    ]
    metrics = tuple(item for norm in found for item in norm.metrics())
    stored = _cases(audit, plan, found[0].attacked)
    return Result(
        " ".join(norm.sentence(metrics) for norm in found),
        metrics,
        tuple(chart for norm in found for chart in norm.charts(metrics)) + _gallery(stored),
        stored,
        {"adversarial": pd.concat([norm.table() for norm in found], ignore_index=True)},
        _caveats(found),
    )


class _Norm:
    """The figures, charts and words of one norm."""

    def __init__(self, audit: Audit, attacked: Attacked, verdict: Verdict) -> None:
        self.audit, self.attacked, self.verdict = audit, attacked, verdict
        self.patients, self.labels = audit.patients[attacked.positions], audit.labels[attacked.positions]
        self.middle = len(attacked.epsilons) // 2

    def where(self, epsilon: float, **more: str) -> Where:
        return {"norm": self.attacked.norm, "epsilon": epsilon, **more}

    def metrics(self) -> list[Metric]:
        scope, found = self.attacked.within_scope, []
        among = {"robust_accuracy": (scope, "no case can be broken in the declared directions")}
        if self.audit.decision.positive is not None:
            ill = self.labels == self.audit.positive
            among |= {
                "robust_sensitivity": (scope & ill, "no positive cases"),
                "robust_specificity": (scope & ~ill, "no negative cases"),
            }
        for column, epsilon in enumerate(self.attacked.epsilons):
            for name, (members, reason) in among.items():
                found.append(self._standing(name, members, column, self.where(epsilon), reason))
        found.extend(self._parts(scope))
        return [*found, *(self._flipping(share) for share in _SHARES)]

    def _parts(self, scope: np.ndarray) -> list[Metric]:
        """At the middle epsilon, per class and per level of every declared column."""
        epsilon, found = self.attacked.epsilons[self.middle], []
        for code, name in enumerate(self.audit.classes):
            where = self.where(epsilon, **{"class": name})
            found.append(
                self._standing("robust_accuracy", scope & (self.labels == code), self.middle, where, "no such case")
            )
        for column in (*self.audit.groups, *self.audit.acquisition):
            levels = self.audit.column(column)[self.attacked.positions]
            for level in sorted(set(levels)):
                where = self.where(epsilon, **{column: level})
                found.append(
                    self._standing("robust_accuracy", scope & (levels == level), self.middle, where, "no such case")
                )
        return found

    def _standing(self, name: str, members: np.ndarray, column: int, where: Where, reason: str) -> Metric:
        hits = self.attacked.standing[members, column]
        estimate = proportion(hits, self.patients[members], level=self.attacked.level, exact=True)
        if estimate.value is None:
            estimate = estimate._replace(reason=reason)
        return metric(name, self._believed(estimate), better="higher", where=where)

    def _believed(self, estimate: Estimate) -> Estimate:
        """None where the attack failed; where it is in doubt nothing bounds the figure from below."""
        if estimate.value is None or self.verdict.state == "supported":
            return estimate
        if self.verdict.state == "broken":
            return not_estimable(f"the attack was not working: {', '.join(self.verdict.flags)}", estimate.n)
        return estimate._replace(low=0.0, method=f"{estimate.method}, upper bound only")

    def _flipping(self, share: float) -> Metric:
        """The epsilon that flips a share of the right decisions, with Woodruff's (1952) interval."""
        where: Where = {"norm": self.attacked.norm, "share": share}
        right = self.attacked.right
        smallest, patients = self.attacked.smallest[right], self.patients[right]
        ordered = np.sort(smallest)
        needed = int(np.ceil(share * len(ordered))) - 1
        if not len(ordered) or not np.isfinite(ordered[needed]):
            reason = (
                "no right decision"
                if not len(ordered)
                else f"fewer than {100 * share:.0f} % flip within the largest budget"
            )
            return metric(
                "flipping_epsilon",
                not_estimable(reason, len(set(patients))),
                better="higher",
                where=where,
                unit="" if self.attacked.norm == "l0" else "epsilon",
            )
        sizes = np.unique(ordered[np.isfinite(ordered)])
        shares = [proportion(smallest <= size, patients, level=self.attacked.level, exact=True) for size in sizes]
        low = next((float(size) for size, each in zip(sizes, shares, strict=True) if (each.high or 0.0) >= share), 0.0)
        high = next((float(size) for size, each in zip(sizes, shares, strict=True) if (each.low or 0.0) >= share), 1.0)
        value = float(ordered[needed])
        estimate = Estimate(value, min(low, value), max(high, value), len(set(patients)), "Woodruff, Clopper-Pearson")
        return metric(
            "flipping_epsilon",
            self._believed(estimate),
            better="higher",
            where=where,
            unit="" if self.attacked.norm == "l0" else "epsilon",
        )

    def sentence(self, metrics: tuple[Metric, ...]) -> str:
        mine = [item for item in metrics if item.where.get("norm") == self.attacked.norm]
        first = next(item for item in mine if item.name == "robust_accuracy")
        half = next(item for item in mine if item.name == "flipping_epsilon" and item.where["share"] == _SHARES[1])
        cases = text.plural(int(self.attacked.within_scope.sum()), "case")
        at = text.budget(self.attacked.epsilons[0], self.attacked.norm)
        words = (
            f"{spoken(first)} are right and not broken by these attacks at epsilon {at}"
            if first.value is not None
            else f"no share can be given ({first.reason})"
        )
        return (
            f"{text.label(self.attacked.norm)}: of {cases}, {words}; the smallest budget that flips half of the right decisions:"
            f" {spoken(half)}. {self.verdict.sentence.removesuffix(CAVEAT).strip()}"
        )

    def charts(self, metrics: tuple[Metric, ...]) -> tuple[Chart, ...]:
        return (self._lines(metrics), self._table_of_attacks())

    def _lines(self, metrics: tuple[Metric, ...]) -> Lines:
        epsilons, norm, scope = self.attacked.epsilons, self.attacked.norm, self.attacked.within_scope
        series = []
        for name in ("robust_accuracy", "robust_sensitivity", "robust_specificity"):
            points = [
                item for item in metrics if item.name == name and item.where["norm"] == norm and len(item.where) == 2
            ]
            if points:
                values, lows, highs = (
                    tuple(getattr(item, part) for item in points) for part in ("value", "low", "high")
                )
                series.append(Series(text.label(name), epsilons, values, lows, highs))
        clean = float(self.attacked.right[scope].mean()) if scope.any() else 0.0
        return Lines(
            title=f"What is left under attack, {text.label(norm)}",
            alt=f"Without attack {clean:.3f} are right; the lines fall with {_SPOKEN[norm]}. Attacks: {self.verdict.state}.",
            x=Axis(
                text.opening(_SPOKEN[norm]),
                ticks=tuple((value, text.budget(value, norm)) for value in (0.0, *epsilons)),
            ),
            y=Axis("Share of cases", low=0, high=1),
            series=tuple(series),
            references=(Reference("without attack", clean, "y"),),
        )

    def _table_of_attacks(self) -> Table:
        epsilon = self.attacked.epsilons[self.middle]
        breakers, right = self.attacked.breakers(epsilon), int(self.attacked.right.sum())
        rows = [
            (
                each.label,
                int((breakers == each.name).sum()),
                right,
                round(self.attacked.looks(each.name) / max(right, 1), 1),
            )
            for each in self.attacked.attacks
        ]
        shown = text.condition({"norm": self.attacked.norm, "epsilon": epsilon})
        return Table(
            title=f"Which attack broke it first ({shown})",
            alt=f"Per attack, in the order in which they ran, how many of {right} right decisions it was the first to break, and its cost.",
            columns=("Attack", "Broken first", "Of", "Images shown per case"),
            rows=tuple(rows),
        )

    def table(self) -> pd.DataFrame:
        """One row per (case, epsilon)."""
        attacked = self.attacked
        frames = [
            pd.DataFrame(
                {
                    "id": self.audit.ids[attacked.positions], "norm": attacked.norm, "epsilon": epsilon, "clean_correct": attacked.right,
                    "in_scope": attacked.within_scope, "broken": attacked.right & ~attacked.standing[:, column],
                    "broken_by": attacked.breakers(epsilon).astype(str),
                    "smallest": np.where(np.isfinite(attacked.smallest), attacked.smallest, np.nan),
                }
            )
            for column, epsilon in enumerate(attacked.epsilons)
        ]  # fmt: skip
        return pd.concat(frames, ignore_index=True)


def _caveats(found: list[_Norm]) -> tuple[str, ...]:
    tried = ", ".join(text.label(norm.attacked.norm) for norm in found)
    rest = ", ".join(text.label(norm) for norm in NORMS if norm not in {each.attacked.norm for each in found})
    said = [
        f"Not broken by these attacks is an upper bound; a stronger attack may break more. Norms tried: {tried}"
        + (f"; not tried: {rest}." if rest else ".")
    ]
    if found[0].audit.model.access != "white-box":
        said.append(
            "The model gives no gradients, so only chance, score-based and label-only attacks were run: what gradient attacks would have"
            " found is forfeited, and the figures are looser upper bounds for that."
        )
    said.append(CAVEAT)
    for norm in found:
        skipped = [reason for name, reason in norm.attacked.refused.items() if ATTACKS[name].kind != "control"]
        said.extend(f"{reason}." for reason in skipped if f"{reason}." not in said)
        if norm.attacked.left:
            said.append(
                f"{text.label(norm.attacked.norm)}: {text.plural(norm.attacked.left, 'case')} of the sample were not attacked:"
                f" {norm.attacked.stopped}."
            )
        if norm.attacked.level > 0.95:
            said.append(f"{text.label(norm.attacked.norm)}: intervals allow for having looked several times.")
    return tuple(said)


class _Twin(NamedTuple):
    """A case and what broke it."""

    pixels: np.ndarray
    adversarial: np.ndarray
    size: float


def _cases(audit: Audit, plan: AttackPlan, attacked: Attacked) -> tuple[Case, ...]:
    if not len(audit.showcase):
        return ()
    names = tuple(each.name for each in attacked.attacks)
    rows = attack_rows(audit, plan, attacked.norm, names, audit.showcase, keep=True)
    twins = [_Twin(*each) for each in zip(audit.pixels(audit.showcase), rows["images"], rows["smallest"], strict=True)]
    return tuple(
        _case(audit, int(position), attacked.norm, twin)
        for position, twin in zip(audit.showcase, twins, strict=True)
        if np.isfinite(twin.size)
    )


def _case(audit: Audit, position: int, norm: Norm, twin: _Twin) -> Case:
    pictures = {
        "image": images.photograph(twin.pixels),
        "adversarial twin": images.photograph(twin.adversarial),
        "change, magnified": images.difference(twin.adversarial, twin.pixels),
    }
    shown = {key: images.enlarged(picture) for key, picture in pictures.items()}
    largest = float(np.abs(twin.adversarial - twin.pixels).max())
    facts = {
        **audit.facts(position),
        "flips at": text.condition({"norm": norm, "epsilon": float(twin.size)}),
        "largest change of a pixel": text.epsilon(largest),
        "length of the change": float(twin.size * unit(norm, twin.pixels.shape)),
    }
    return Case(str(audit.ids[position]), facts, shown, {"adversarial pixels": twin.adversarial[0]})


def _gallery(stored: tuple[Case, ...]) -> tuple[Chart, ...]:
    if not stored:
        return ()
    return (
        Images(
            title="Smallest change found that flips the decision",
            alt="One row per case: the image, its adversarial twin, and the change, magnified so that the largest fills the scale.",
            cases=tuple(case.id for case in stored),
            pictures=("image", "adversarial twin", "change, magnified"),
        ),
    )
