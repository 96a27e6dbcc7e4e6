"""Whether a decision follows the wording of the question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from xvision import text
from xvision.analyses.prompt_sensitivity.wordings import DEPLOYED, Wordings, measure, wordings
from xvision.audit import Audit, apart, mean_metric, metric
from xvision.charts import Axis, Chart, Forest, Mark, Table
from xvision.methods.decision import decide, probabilities
from xvision.methods.image_reliance import Performance, weighted_balanced_accuracy
from xvision.methods.intervals import Estimate, bootstrap, proportion, with_width
from xvision.methods.prompt_variants import SOURCES, accuracy_range, consistency, spread, variance_of, variance_share
from xvision.methods.scores import auroc
from xvision.registry import analysis
from xvision.result import Metric, NotApplicable, Result, Where, spoken

_ANY = "any other wording"
_STATES = ("as it is", "mild noise")
_SHOWN = 15
"""Cases in the table of those that flip most."""
_NO_WRITING = (
    "not applicable: the answer is read from the scores of the label words alone; the model writes no text, so that it can"
    " neither refuse nor answer outside the labels"
)


@analysis(
    "Prompt sensitivity",
    pillar="Shift",
    need="words",
    passes="2 forward for each wording, of which there are about 15",
)
def prompt_sensitivity(
    audit: Audit,
    *,
    cases: int = 200,
    templates: tuple[str, ...] = (),
    synonyms: Mapping[str, tuple[str, ...]] | None = None,
    resamples: int = 500,
) -> Result:
    """Do the words of the question decide?

    Every case is asked again in other words that should make no difference: templates that ask in the same way, small edits of
    the question, the label words in other letter case, the options in another order; ``templates`` (names, or paths of TOML
    files) and ``synonyms`` (class → words that may stand for it) add your own. Each is asked of the image as it is and of the
    image with mild noise (Gaussian, severity 1 of 5), which is what a wording may be measured against. A model without a question
    that reads a clinical text is given that text with the same kinds of edits.

    ``flip_rate``: the share of cases decided otherwise than with the deployed prompt on the image as it is. ``consistency``: the
    share that every wording decides alike. ``majority_agreement``: the share of wordings that decide a case as most do.
    ``accuracy_range``: the best minus the worst wording; chosen on the same cases it is too large, so that it is also given
    with wordings chosen on other patients. ``variance_share`` divides the variance of the log-odds (of the positive class; with
    more than two, of the class decided) into that between cases, and within a case that between wordings, that between the
    two states of the image, and that of both together.

    A rate near 0 says that these wordings make no difference, not that none does. The variance between wordings depends on which are
    asked; it is no property of the model alone. A difference is no fault of the model where a wording changes the
    meaning: read the wordings as asked. ``label_word_probability``: how probable it is that the model would begin its answer with any
    of the label words; where it is small, the decision is between answers that the model would hardly give.
    """
    positions = audit.sample(cases)
    asked = wordings(audit, positions, templates, synonyms or {})
    if len(asked.names) < 2:
        raise NotApplicable("no other wording can be asked of this model")
    rows = audit.map(
        partial(measure, asked=asked),
        positions=positions,
        options={"measure": "wordings", "wordings": asked.names, "asked": asked.shown},
    )
    figures = _Figures(audit, positions, asked, rows["logits"].astype(float), resamples)
    metrics = tuple(figures.metrics())
    return Result(
        _summary(metrics, figures),
        metrics,
        tuple(_charts(metrics, figures)),
        tables={"prompt_sensitivity": figures.table()},
        caveats=tuple(_caveats(figures, bool(templates or synonyms))),
    )


class _Figures:
    """decided: (V, states, N). odds: (V, states, N), log-odds."""

    def __init__(
        self, audit: Audit, positions: np.ndarray, asked: Wordings, logits: np.ndarray, resamples: int
    ) -> None:
        self.audit, self.positions, self.asked, self.resamples = audit, positions, asked, resamples
        self.ids, self.patients, self.labels = audit.ids[positions], audit.patients[positions], audit.labels[positions]
        self.logits = np.moveaxis(logits, 0, 2)
        flat = self.logits.reshape(-1, logits.shape[-1])
        self.decided = decide(flat, audit.decision).reshape(self.logits.shape[:3])
        self.flips = self.decided != self.decided[0, 0]
        self.right = self.decided[:, 0] == self.labels
        chosen = audit.decision.positive
        of = self.decided[0, 0] if chosen is None else np.full(len(positions), chosen)
        mask = np.arange(logits.shape[-1]) == of[:, None]
        self.odds = self.logits[..., mask] - logsumexp(np.where(mask, -np.inf, self.logits), axis=-1)
        self.measured = "auroc" if chosen is not None else "balanced_accuracy"
        self.range = accuracy_range(self.right, self.patients, rng=audit.rng("halves"))
        self.consistency = consistency(self.decided[:, 0])

    def metrics(self) -> Iterator[Metric]:
        for place, name in enumerate(self.asked.names):
            yield from self._of_wording(place, name)
        where: dict[str, str | int | float] = {"variant": _ANY, "image": _STATES[0]}
        ever = self.flips[1:, 0].any(axis=0)
        yield metric("flip_rate", proportion(ever, self.patients), better="lower", where=where)
        for column in self.audit.groups:
            levels = self.audit.column(column)[self.positions]
            for level in sorted(set(levels)):
                own = levels == level
                found = proportion(ever[own], self.patients[own])
                yield metric("flip_rate", found, better="lower", where={**where, apart(column, *where): level})
        alike = self.consistency
        yield metric("consistency", proportion(alike.unanimous, self.patients), better="higher")
        yield metric("majority_agreement", self._agreement(), better="higher")
        yield metric("deployed_with_majority", proportion(alike.deployed, self.patients), better="higher")
        for chosen_on, found in (("the same cases", self.range.seen), ("other patients", self.range.fresh)):
            yield metric("accuracy_range", found, better="lower", where={"chosen_on": chosen_on})
        yield from self._sources()
        for name in ("refusal_rate", "unparseable_rate"):
            yield Metric(name, None, reason=_NO_WRITING)

    def _agreement(self) -> Estimate:
        """Votes are added as whole numbers, so that resamples that are all equal are seen to be."""
        count, patients = len(self.asked.names), self.patients
        votes = np.rint(self.consistency.agreement * count).astype(int)
        draws = self.audit.rng("majority_agreement")
        found = bootstrap(
            lambda weights: (weights @ votes) / weights.sum(axis=1) / count,
            patients,
            resamples=self.resamples,
            rng=draws,
        )
        return with_width(found, found.n, 0.95)

    def _of_wording(self, place: int, name: str) -> Iterator[Metric]:
        where: dict[str, str | int | float] = {"variant": name, "image": _STATES[0]}
        yield metric("accuracy", proportion(self.right[place], self.patients), better="higher", where=where)
        yield metric(self.measured, self._performance(place, name), better="higher", where=where)
        own = self.asked.changed[place]
        for state, image in enumerate(_STATES):
            counted = own if name != DEPLOYED else np.full(len(own), state > 0)
            if counted.any():
                rate = proportion(self.flips[place, state][counted], self.patients[counted])
                yield metric("flip_rate", rate, better="lower", where={"variant": name, "image": image})
        if self.asked.models:
            yield self._mentioned(place, name, where)

    def _performance(self, place: int, name: str) -> Estimate:
        if self.audit.decision.positive is not None:
            scores = probabilities(self.logits[place, 0])[:, self.audit.positive]
            return auroc(scores, self.labels == self.audit.positive, self.patients)
        found = weighted_balanced_accuracy(self.decided[place, 0], self.labels)
        draws = self.audit.rng(f"performance {name}")
        estimate = bootstrap(found, self.patients, resamples=self.resamples, rng=draws)
        smallest = min(len(np.unique(self.patients[self.labels == code])) for code in np.unique(self.labels))
        return with_width(estimate, smallest, 0.95)

    def _mentioned(self, place: int, name: str, where: Where) -> Metric:
        plan = self.asked.models[name].plan
        if plan.normalise != "sum":
            reason = f"labels are scored by {plan.normalise!r}, which is no probability of the words"
            return Metric("label_word_probability", None, where=where, reason=reason)
        values = np.exp(self.logits[place, 0] * plan.temperature).sum(axis=1)
        return mean_metric(self.audit, "label_word_probability", values, self.positions, where=where)

    def _sources(self) -> Iterator[Metric]:
        parts = spread(self.odds)
        for source in SOURCES:
            rng = self.audit.rng(f"share {source}")
            share = variance_share(parts, source, self.patients, rng=rng, resamples=self.resamples)
            yield metric("variance_share", share, where={"source": source})
            size, draws = variance_of(parts, source), self.audit.rng(f"size {source}")
            found = bootstrap(_root(size), self.patients, resamples=self.resamples, rng=draws)
            yield metric("log_odds_sd", found, where={"source": source}, unit="log-odds")

    def table(self) -> pd.DataFrame:
        """One row per case, wording and state of the image."""
        cells = [(name, image) for name in self.asked.names for image in _STATES]
        count = len(self.ids)
        return pd.DataFrame(
            {
                "id": np.tile(self.ids, len(cells)),
                "variant": np.repeat([name for name, _ in cells], count),
                "image": np.repeat([image for _, image in cells], count),
                "decision": np.asarray(self.audit.classes)[self.decided.ravel()],
                "flipped": self.flips.ravel(),
                "log_odds": self.odds.ravel(),
            }
        )


def _root(variance: Performance) -> Performance:
    return lambda weights: np.sqrt(variance(weights))


def _of(metrics: tuple[Metric, ...], name: str, **where: str) -> Metric | None:
    return next((item for item in metrics if item.name == name and dict(item.where) == where), None)


def _said(metrics: tuple[Metric, ...], name: str, **where: str) -> str:
    found = _of(metrics, name, **where)
    return spoken(found) if found is not None else "–"


def _summary(metrics: tuple[Metric, ...], figures: _Figures) -> str:
    names, rates = figures.asked.names, {}
    for name in names[1:]:
        found = _of(metrics, "flip_rate", variant=name, image=_STATES[0])
        rates[name] = found.value or 0.0 if found else 0.0
    most = max(rates, key=lambda name: rates[name])
    ever = _said(metrics, "flip_rate", variant=_ANY, image=_STATES[0])
    noise = _said(metrics, "flip_rate", variant=DEPLOYED, image=_STATES[1])
    ends = f"{names[figures.range.worst]!r} and {names[figures.range.best]!r}"
    one = f", most often “{most}” ({text.number(rates[most])})" if rates[most] else ""
    return (
        f"At least one of {len(rates)} other wordings changes the decision in a share of {ever} of the cases{one}; mild noise"
        f" changes {noise}. Accuracy differs between the worst and the best wording ({ends} here) by"
        f" {_said(metrics, 'accuracy_range', chosen_on='other patients')} on patients they were not chosen on."
    )


def _charts(metrics: tuple[Metric, ...], figures: _Figures) -> Iterator[Chart]:
    names = figures.asked.names
    plain = {name: _of(metrics, "flip_rate", variant=name, image=_STATES[0]) for name in names[1:]}
    plain["mild noise, deployed wording"] = _of(metrics, "flip_rate", variant=DEPLOYED, image=_STATES[1])
    rates = {name: item for name, item in plain.items() if item is not None}
    yield Forest(
        title="Decisions that change with the wording, and with mild noise",
        alt="; ".join(f"{name} {text.number(item.value)}" for name, item in rates.items()) + ".",
        value=Axis("Share of cases decided otherwise", low=0),
        marks=tuple(Mark(name, item.value, item.low, item.high) for name, item in rates.items()),
    )
    told = ("accuracy", figures.measured, *(("label_word_probability",) if figures.asked.models else ()))
    yield Table(
        title="Wordings",
        alt=f"{len(names)} wordings with accuracy, {text.label(figures.measured)} and the share of decisions that change.",
        columns=("Wording", *map(text.label, told), "Decisions that change", "With mild noise", "As asked"),
        rows=tuple(
            (
                name,
                *(_said(metrics, each, variant=name, image=_STATES[0]) for each in told),
                *(_said(metrics, "flip_rate", variant=name, image=image) for image in _STATES),
                words,
            )
            for name, words in zip(names, figures.asked.shown, strict=True)
        ),
    )
    yield Table(
        title="Where the spread of the log-odds comes from",
        alt="; ".join(f"{each} {_said(metrics, 'variance_share', source=each)}" for each in SOURCES) + ".",
        columns=("Source", "Share of the variance", "Standard deviation in log-odds"),
        rows=tuple(
            (each, *(_said(metrics, name, source=each) for name in ("variance_share", "log_odds_sd")))
            for each in SOURCES
        ),
    )
    yield from _whom(metrics)
    yield from _most(figures)


def _whom(metrics: tuple[Metric, ...]) -> Iterator[Table]:
    own = [item for item in metrics if item.name == "flip_rate" and len(item.where) > 2]
    if own:
        rows = []
        for item in own:
            level = {key: value for key, value in item.where.items() if key not in ("variant", "image")}
            rows.append((text.condition(level), spoken(item), item.n))
        alt = f"Share of cases that any other wording changes, for {len(own)} group levels."
        yield Table(
            "Decisions that any other wording changes, by group", alt, ("Group", "Share", "Patients"), tuple(rows)
        )


def _most(figures: _Figures) -> Iterator[Table]:
    counts = figures.flips[1:, 0].sum(axis=0)
    first = [place for place in np.argsort(-counts, kind="stable")[:_SHOWN] if counts[place]]
    if first:
        names, classes = figures.asked.names, figures.audit.classes
        rows = tuple(
            (
                str(figures.ids[place]),
                classes[figures.labels[place]],
                classes[figures.decided[0, 0, place]],
                int(counts[place]),
                text.listing([name for name, flip in zip(names, figures.flips[:, 0, place], strict=True) if flip]),
            )
            for place in first
        )
        columns = ("Case", "Label", "Deployed decision", "Wordings that change it", "Which")
        yield Table("Cases that the wording changes most", f"{len(rows)} cases with the wordings.", columns, rows)


def _caveats(figures: _Figures, given: bool) -> Iterator[str]:
    yield "That a wording keeps the meaning is a rule of thumb: read each as asked before calling a change a fault."
    yield "The wordings are not a sample of what users write: the variance between them is that of this list."
    if figures.asked.models:
        yield "Decisions of other wordings are made at the deployed threshold; none was chosen for them."
    else:
        yield "The model reads a clinical text and no question; the words that stand for its classes are part of its weights."
        if given:
            yield "The options templates and synonyms were not used: they belong to models that are asked a question."
    if figures.asked.left_out:
        yield f"Not asked: {'; '.join(figures.asked.left_out)}."
