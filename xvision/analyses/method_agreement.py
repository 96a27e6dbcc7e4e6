"""Whether different methods of explanation point at the same parts of an image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from xvision import text
from xvision.audit import Audit, mean_metric
from xvision.charts import Chart, HeatMap
from xvision.engine import Batch, Rows
from xvision.explain.maps import Explainer, prepared
from xvision.methods.agreement import kendall_w, pairwise_spearman, top_overlap
from xvision.registry import analysis
from xvision.result import Metric, NotApplicable, Result, spoken

_AGREE = 0.5
"""Mean rank correlation above which, with its whole interval, two methods are said to agree."""
_TOP = 0.1


@analysis("Agreement of methods", pillar="Explanation", need="pixels", passes="those of the methods")
def method_agreement(audit: Audit, *, cases: int = 100, methods: tuple[str, ...] = ()) -> Result:
    """Do different methods tell the same story?

    Each map is added up over the patches of the image, and methods are compared by how they rank the patches of one image.
    ``rank_correlation`` is Spearman's (0: nothing in common, 1: the same order), ``top_overlap`` the intersection over
    union of the highest tenth of the patches (chance about 0.05). Two methods that give evidence for and against are
    compared by evidence, otherwise by strength without its sign. ``kendall_w`` is the concordance of all methods by strength,
    without the controls: 1 is one order, and unrelated rankings of M methods reach about 1 / M. A case in which a method
    gives every patch the same value is left out of its figures. Controls know nothing of the model: a method that ranks
    patches as a control does may show the image instead of the model. Agreement is not correctness: gradient methods share
    their errors, and two methods may answer different questions and both be right.
    """
    explainer = prepared(audit, methods)
    if explainer.units.count < 2:
        raise NotApplicable("the model reads the image as a single patch, and one patch cannot be ranked")
    positions = explainer.sample(cases)

    def measure(batch: Batch) -> Rows:
        return {name: explainer.units.sums(found.values) for name, found in explainer.maps(batch).items()}

    rows = audit.map(measure, positions=positions, options=explainer.options)
    figures = _Figures(audit, explainer, positions, rows)
    return Result(figures.summary(), figures.metrics, tuple(figures.charts()), caveats=figures.caveats())


class _Figures:
    """Agreement of every two methods, but not of controls with each other."""

    def __init__(self, audit: Audit, explainer: Explainer, positions: np.ndarray, rows: Rows) -> None:
        self.audit, self.explainer, self.positions = audit, explainer, positions
        self.methods = len(explainer.methods)
        everything = explainer.everything
        self.names = tuple(method.name for method in everything)
        self.labels = tuple(method.label for method in everything)
        signed = np.array([method.signed for method in everything])
        values = np.stack([rows[name] for name in self.names], axis=1)
        values[~np.isfinite(values).all(axis=2)] = 0.0  # a map that could not be made ranks nothing
        by_evidence = signed[:, None] & signed[None, :]
        strength = np.abs(values)
        self.rank = np.where(by_evidence, pairwise_spearman(values), pairwise_spearman(strength))
        self.top = np.where(by_evidence, top_overlap(values, share=_TOP), top_overlap(strength, share=_TOP))
        self.concordance = self._concordance(strength)
        self.pairs = [pair for pair in combinations(range(len(self.names)), 2) if pair[0] < self.methods]
        self.correlations = {pair: self._pair("rank_correlation", self.rank, pair) for pair in self.pairs}
        self.overlaps = {pair: self._pair("top_overlap", self.top, pair) for pair in self.pairs}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (self.concordance, *self.correlations.values(), *self.overlaps.values())

    def _concordance(self, strength: np.ndarray) -> Metric:
        where = {"methods": self.methods}
        if self.methods < 2:
            return Metric("kendall_w", None, where=where, reason="only one method of explanation was used")
        values = kendall_w(strength[:, : self.methods])
        reason = "in every case one of the methods ranks nothing"
        return mean_metric(self.audit, "kendall_w", values, self.positions, where=where, reason=reason)

    def _pair(self, name: str, values: np.ndarray, pair: tuple[int, int]) -> Metric:
        first, second = pair
        return mean_metric(
            self.audit, name, values[:, first, second], self.positions,
            where={"method": self.names[first], "other": self.names[second]}, reason="one of the two ranks nothing",
        )  # fmt: skip

    def _agreeing(self, *, controls: bool) -> list[str]:
        """Pairs of methods, or of a method and a control, whose agreement is beyond doubt, in words; the closest first."""
        found = [
            (item.value or 0.0, f"{self.labels[first]} and {self.labels[second]} ({text.number(item.value)})")
            for (first, second), item in self.correlations.items()
            if (second >= self.methods) == controls and item.low is not None and item.low > _AGREE
        ]
        return [words for _, words in sorted(found, key=lambda pair: -pair[0])]

    def summary(self) -> str:
        count = text.plural(len(self.positions), "image")
        if self.methods < 2:
            closest = max(self.correlations.values(), key=lambda item: -1.0 if item.value is None else item.value)
            other = self.explainer.label(str(closest.where["other"]))
            return f"Only {self.labels[0]} was used on {count}; its rank correlation with the control {other} is {spoken(closest)}."
        agreeing = self._agreeing(controls=False)
        pairs = self.methods * (self.methods - 1) // 2
        named = f": {text.listing(agreeing, 3)}" if agreeing else ""
        return (
            f"On {count}, {len(agreeing)} of {pairs} pairs of methods surely agree{named}. Concordance of all methods is "
            f"{spoken(self.concordance)}; unrelated ones reach {1 / self.methods:.3f}."
        )

    def charts(self) -> Iterator[Chart]:
        agreeing = self._agreeing(controls=False)
        yield self._matrix(
            "Rank correlation of methods over patches; the controls at the end know nothing of the model",
            f"Agreeing are {text.listing(agreeing)}." if agreeing else "No two methods surely agree.",
            self.correlations,
            low=-1.0,
        )
        yield self._matrix(
            "Overlap of the highest tenth of the patches; about 0.05 is chance",
            "Intersection over union of the patches that every two methods rank highest.",
            self.overlaps,
            low=0.0,
        )

    def _matrix(self, title: str, alt: str, found: dict[tuple[int, int], Metric], *, low: float) -> HeatMap:
        everyone = range(len(self.names))
        values = tuple(
            tuple(1.0 if row == column else found[min(row, column), max(row, column)].value for column in everyone)
            for row in range(self.methods)
        )
        rows = self.labels[: self.methods]
        return HeatMap(title, alt, self.labels, rows, values, "Method or control", "Method", low=low, high=1.0)

    def caveats(self) -> tuple[str, ...]:
        found = ["Agreement is not correctness: methods that share an error agree on it, as gradient methods do."]
        if blind := self._agreeing(controls=True):
            found.append(
                f"Some methods rank patches as a control does, which knows nothing of the model: {text.listing(blind)}."
            )
        return tuple(found)
