"""Do the maps describe the model? Every method against controls that know nothing of it, and against its own maps of shuffled weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from xvision import text
from xvision.audit import Audit, mean_metric, metric
from xvision.charts import Axis, Chart, Forest, HeatMap, Lines, Mark, Reference, Series, Table
from xvision.engine import Rows
from xvision.explain.maps import Explainer, prepared
from xvision.explain.method import Settings
from xvision.explain.quality import Probes, Removed, measured, removable
from xvision.methods.attribution import Baseline
from xvision.methods.intervals import Estimate, not_estimable
from xvision.methods.map_verdicts import advantage, decide_map
from xvision.registry import analysis
from xvision.result import Better, MapVerdict, Metric, NotApplicable, Result, spoken


class _Figure(NamedTuple):
    """A per-case figure: its name, which side is better, its unit, whether each removal operator has its own, and whether it
    is among the few that are set side by side."""

    name: str
    better: Better
    unit: str = ""
    by_operator: bool = False
    beside: bool = False


_FIGURES = (
    _Figure("srg", "higher", by_operator=True, beside=True),
    _Figure("srg_log_odds", "higher", by_operator=True),
    _Figure("deletion_auc", "lower", by_operator=True),
    _Figure("insertion_auc", "higher", by_operator=True),
    _Figure("aopc", "higher", by_operator=True),
    _Figure("faithfulness_correlation", "higher", beside=True),
    _Figure("infidelity", "lower", beside=True),
    _Figure("max_sensitivity", "lower", beside=True),
    _Figure("average_sensitivity", "lower"),
    _Figure("relative_input_stability", "lower", beside=True),
    _Figure("relative_output_stability", "lower"),
    _Figure("randomisation_similarity", "lower", beside=True),
    _Figure("bottom_up_similarity", "lower"),
    _Figure("randomisation_ssim", "lower"),
    _Figure("entropy_rise", "higher"),
    _Figure("random_logit", "lower"),
    _Figure("gini", "neither", beside=True),
    _Figure("entropy", "neither", "nats"),
)
_ABSENT = {"random_logit": "with two classes the map of the other class is this one with its sign turned"}
_BESIDE = tuple(figure for figure in _FIGURES if figure.beside)


@analysis(
    "Explanation quality",
    pillar="Explanation",
    need="pixels",
    passes=(
        "for each method: (1 + copies + shuffles) × its own; for all: removals × 2 × steps × (methods + 4 controls) + bank + copies"
    ),
)
def explanation_quality(
    audit: Audit,
    *,
    cases: int = 64,
    methods: tuple[str, ...] = (),
    removals: tuple[Removed, ...] = ("blur", "road"),
    steps: int = 10,
    bank: int = 100,
    copies: int = 4,
    radius: float = 0.02,
    shuffles: int = 3,
    margin: float = 0.05,
    limit: float = 0.5,
    baseline: Baseline = "blur",
    path_steps: int = 32,
    samples: int = 16,
    masks: int = 256,
) -> Result:
    """May these maps be relied on: do they describe the model, better than maps that know nothing of it?

    Each map explains the decision of its case. Patches are removed in the order of the map, strongest first and weakest first.
    ``srg`` (symmetric relevance gain, Blücher 2024) is the area between the two curves of the decided class's probability;
    ``srg_log_odds`` the same in log-odds; ``aopc`` (Samek 2017) the mean fall with the strongest first. What fills a removed patch
    is an operator of its own, because the answer depends on it: blur, mean, ROAD's noisy linear imputation (Rong 2022), or, for
    models that can do without a token, ``tokens``: nothing fills it, the token is gone (Jain 2022). ``faithfulness_correlation``
    (Bhatt 2020) and normalised ``infidelity`` (Yeh 2019) compare the map's sum over random patches with the fall of the score when
    those are removed. ``max_sensitivity``, ``average_sensitivity`` (Yeh 2019), ``relative_input_stability`` and
    ``relative_output_stability`` (Agarwal 2022) say how the map moves under noise that leaves the decision as it was.
    ``randomisation_similarity`` is the rank correlation, by patch, with the map of the same network with all weights shuffled
    (Adebayo 2018), ``bottom_up_similarity`` its mean while shuffling from the input up, ``entropy_rise`` the efficient variant
    (Hedström 2024), ``random_logit`` the rank correlation with the map of the least likely class (Sixt 2020). ``deletion_auc``
    and ``insertion_auc`` (Petsiuk 2018) are the areas under the two curves.

    The verdict: *fails randomisation* where the interval of that similarity lies above ``limit``; *describes the model* where under
    every operator the method's srg exceeds that of every control (random, edges, centre, brightness) by more than ``margin``, its
    whole interval; *no better than a control* where one of these advantages lies below ``margin``, its whole interval; else *not
    decided*. How a removed patch is filled can matter: a method must win under every operator.
    A map that describes the model need not be right about the patient: it says what the model uses.
    """
    settings = Settings(baseline=baseline, steps=path_steps, samples=samples, masks=masks)
    explainer = prepared(audit, methods, settings=settings, decided=True)
    if "tokens" in removals and (reason := removable(audit.model)):
        raise NotApplicable(f"removal of tokens is refused: {reason}")
    probes = Probes(removals, steps, bank, copies, radius, shuffles)
    positions = explainer.sample(cases)
    options = {**explainer.options, "probes": repr(probes)}
    rows = audit.map(lambda batch: measured(explainer, batch, probes), positions=positions, options=options)
    metrics = _metrics(audit, explainer, rows, positions, probes)
    advantages = _advantages(audit, explainer, rows, positions, probes)
    verdicts = _verdicts(explainer, metrics, advantages, margin, limit)
    charts = _charts(explainer, rows, metrics, advantages, verdicts, probes, margin)
    gains = tuple(found for each in advantages.values() for found in each.values())
    return Result(
        _summary(verdicts),
        (*metrics, *gains),
        charts,
        caveats=_caveats(verdicts, len(positions)),
        map_verdicts=verdicts,
    )


def _metrics(
    audit: Audit, explainer: Explainer, rows: Rows, positions: np.ndarray, probes: Probes
) -> tuple[Metric, ...]:
    found = []
    for figure in _FIGURES:
        for method in explainer.everything:
            for operator in probes.removals if figure.by_operator else ("",):
                key = "|".join(part for part in (figure.name, method.name, operator) if part)
                where = {"method": method.name} | ({"removal": operator} if operator else {})
                if key not in rows:
                    reason = _ABSENT.get(figure.name, "the weights of this model cannot be shuffled")
                    found.append(
                        Metric(figure.name, None, better=figure.better, where=where, unit=figure.unit, reason=reason)
                    )
                    continue
                found.append(
                    mean_metric(
                        audit, figure.name, rows[key], positions, better=figure.better, where=where, unit=figure.unit,
                        reason="no map ranks the patches: each is constant or not finite",
                    )
                )  # fmt: skip
    return tuple(found)


Advantages = Mapping[str, Mapping[tuple[str, str], Metric]]
"""By method, then by control and removal operator: srg of the method less that of the control, case by case."""


def _advantages(audit: Audit, explainer: Explainer, rows: Rows, positions: np.ndarray, probes: Probes) -> Advantages:
    patients = audit.patients[positions]
    found: dict[str, dict[tuple[str, str], Metric]] = {}
    for method, control, operator in product(explainer.methods, explainer.controls, probes.removals):
        where = {"method": method.name, "control": control.name, "removal": operator}
        gained = advantage(
            rows[f"srg|{method.name}|{operator}"],
            rows[f"srg|{control.name}|{operator}"],
            patients,
            rng=audit.rng(f"advantage {where}"),
        )
        item = metric("srg_advantage", gained.difference, better="higher", where=where)
        found.setdefault(method.name, {})[control.name, operator] = item
    return found


def _verdicts(
    explainer: Explainer, metrics: tuple[Metric, ...], advantages: Advantages, margin: float, limit: float
) -> dict[str, MapVerdict]:
    similar = {item.where["method"]: item for item in metrics if item.name == "randomisation_similarity"}
    found = {}
    for method in explainer.methods:
        gains: dict[str, dict[str, Estimate]] = {}
        for (control, operator), item in advantages[method.name].items():
            gains.setdefault(explainer.label(control), {})[operator] = _estimate(item)
        word, sentence = decide_map(gains, _estimate(similar[method.name]), margin=margin, limit=limit)
        found[method.label] = MapVerdict(word, sentence)
    return found


def _estimate(item: Metric) -> Estimate:
    if item.value is None:
        return not_estimable(item.reason or "", item.n or 0)
    return Estimate(item.value, item.low, item.high, item.n or 0, item.interval)


def _charts(
    explainer: Explainer,
    rows: Rows,
    metrics: tuple[Metric, ...],
    advantages: Advantages,
    verdicts: Mapping[str, MapVerdict],
    probes: Probes,
    margin: float,
) -> tuple[Chart, ...]:
    worst = {name: min(each.values(), key=_smallest) for name, each in advantages.items()}
    charts: tuple[Chart, ...] = (
        _verdict_table(explainer, metrics, worst, verdicts, probes),
        _advantage_forest(explainer, worst, margin),
        _curves(explainer, rows, probes),
    )
    agreement = _metric_agreement(explainer, metrics, probes)
    return (*charts, *((agreement,) if agreement else ()), _every_figure(explainer, metrics, probes))


def _smallest(item: Metric) -> float:
    return np.inf if item.value is None else item.value


def _verdict_table(
    explainer: Explainer,
    metrics: tuple[Metric, ...],
    worst: Mapping[str, Metric],
    verdicts: Mapping[str, MapVerdict],
    probes: Probes,
) -> Table:
    by = _by_key(metrics)
    rows = tuple(
        (
            method.label,
            verdicts[method.label].word,
            *(spoken(by["srg", method.name, operator]) for operator in probes.removals),
            spoken(worst[method.name]),
            spoken(by["randomisation_similarity", method.name, ""]),
        )
        for method in explainer.methods
    )
    return Table(
        title="May these maps be relied on?",
        alt="Each method's verdict, its symmetric relevance gain under every removal operator, its smallest advantage over a "
        "control, and the likeness of its maps to those of shuffled weights.",
        columns=(
            "Method", "Verdict", *(f"SRG, {operator}" for operator in probes.removals), "Smallest advantage over a control",
            "Similarity with shuffled weights (0 is good)",
        ),
        rows=rows,
    )  # fmt: skip


def _advantage_forest(explainer: Explainer, worst: Mapping[str, Metric], margin: float) -> Forest:
    marks = tuple(
        Mark(
            explainer.label(name), item.value, item.low, item.high,
            item.reason or f"{explainer.label(str(item.where['control']))}, {item.where['removal']}",
        )
        for name, item in worst.items()
    )  # fmt: skip
    return Forest(
        title="Smallest advantage over a control that knows nothing of the model",
        alt="For each method the control and the removal operator under which it gains least, with the interval by patient.",
        value=Axis("SRG of the method less SRG of the control"),
        marks=marks,
        references=(Reference("needed", margin, "x"),),
    )


def _curves(explainer: Explainer, rows: Rows, probes: Probes) -> Lines:
    operator = probes.removals[0]
    shown = [*explainer.methods, *(control for control in explainer.controls if control.name == "random")]
    series = []
    for method in shown:
        mean = (
            np.nanmean(rows[f"most_first|{method.name}|{operator}"], axis=0)
            if _any(rows, method.name, operator)
            else None
        )
        if mean is not None:
            share = np.linspace(0.0, 1.0, len(mean))
            series.append(Series(method.label, tuple(map(float, share)), tuple(map(float, mean)), marks=False))
    return Lines(
        title=f"What is left of the decision as the strongest patches go ({operator} removal)",
        alt="Mean probability of the decided class against the share of patches removed, strongest first: the faster it falls, the "
        "more of what the model uses the map has found.",
        x=Axis("Share of patches removed", low=0, high=1),
        y=Axis("Probability of the decision", low=0, high=1),
        series=tuple(series),
    )


def _any(rows: Rows, name: str, operator: str) -> bool:
    return bool(np.isfinite(rows[f"most_first|{name}|{operator}"]).any())


def _metric_agreement(explainer: Explainer, metrics: tuple[Metric, ...], probes: Probes) -> HeatMap | None:
    """Rank correlation of the orders in which the figures put the methods; None for fewer than three methods."""
    if len(explainer.methods) < 3:
        return None
    by = _by_key(metrics)
    columns = {}
    for figure in _BESIDE:
        for operator in probes.removals if figure.by_operator else ("",):
            values = [by[figure.name, method.name, operator].value for method in explainer.methods]
            if figure.better != "neither" and None not in values and len(set(values)) > 1:
                title = f"{text.label(figure.name)}, {operator}" if operator else text.label(figure.name)
                columns[title] = np.array(values, dtype=float) * (1.0 if figure.better == "higher" else -1.0)
    if len(columns) < 2:
        return None
    table = np.array(
        [[float(spearmanr(one, other).statistic) for other in columns.values()] for one in columns.values()]
    )
    return HeatMap(
        title="Do the figures agree on which method is better?",
        alt="Rank correlation between the orders in which two figures put the methods; −1 is the reverse order.",
        columns=tuple(columns),
        rows=tuple(columns),
        values=tuple(tuple(map(float, row)) for row in table),
        x_label="Figure",
        y_label="Figure",
        low=-1,
        high=1,
        better="higher",
    )


def _every_figure(explainer: Explainer, metrics: tuple[Metric, ...], probes: Probes) -> Table:
    by = _by_key(metrics)
    columns = [
        (figure, operator) for figure in _BESIDE for operator in (probes.removals[:1] if figure.by_operator else ("",))
    ]
    rows = tuple(
        (method.label, *(_value(by.get((figure.name, method.name, operator))) for figure, operator in columns))
        for method in explainer.everything
    )
    return Table(
        title="Methods and controls by figure",
        alt="Means over cases; intervals are among the numbers below. The last rows are the controls.",
        columns=("Method", *(text.label(figure.name) for figure, _ in columns)),
        rows=rows,
    )


def _value(item: Metric | None) -> float | None:
    return None if item is None else item.value


def _by_key(metrics: tuple[Metric, ...]) -> dict[tuple[str, str, str], Metric]:
    return {(item.name, str(item.where["method"]), str(item.where.get("removal", ""))): item for item in metrics}


def _summary(verdicts: Mapping[str, MapVerdict]) -> str:
    groups: dict[str, list[str]] = {}
    for label, verdict in verdicts.items():
        groups.setdefault(verdict.word, []).append(label)
    said = "; ".join(f"{word}: {text.listing(labels, most=8)}" for word, labels in groups.items())
    return f"{text.opening(said)}."


def _caveats(verdicts: Mapping[str, MapVerdict], cases: int) -> tuple[str, ...]:
    failing = [
        f"Do not rely on {label} maps: {verdict.sentence}" for label, verdict in verdicts.items() if verdict.stamp
    ]
    undecided = [label for label, verdict in verdicts.items() if verdict.word == "not decided"]
    more = [
        f"Not decided on {text.plural(cases, 'image')}: {text.listing(undecided, most=8)}. More cases may decide it (option `cases`)."
    ] if undecided else []  # fmt: skip
    return (
        *failing,
        *more,
        "A map that describes the model shows what it uses, which may be a marker or an edge: read it together with localisation.",
    )
